"""What a model's scheduler sees of the Status, and what all models' schedulers show together.

On rank 0's main thread. Imports no mlx.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from server.observe.status import Status
from server.observe.views import DraftUse, Load, PrefixUse

SUMS = ("entries", "tokens", "hit_tokens", "miss_tokens", "evicted_tokens")


class Seen:
    """A Status for one model's scheduler. on_load: hears of its load."""

    def __init__(self, status: Status, on_load: Callable[[Load], None]) -> None:
        self.record, self.fleet, self.note = status.record, status.fleet, status.note
        self.publish = on_load


def together(loads: Sequence[Load], held: int) -> Load:
    """The loads of all models as one. held: tickets in the line. Tokens are of several models, so
    their sum is no more than a hint."""
    running = sum(load.running for load in loads)
    return replace(
        loads[0],
        running=running,
        waiting=max(0, held - running),
        paused=sum(load.paused for load in loads),
        kv_used=sum(load.kv_used for load in loads),
        prefixes=_added([load.prefixes for load in loads]),
        drafts=_added_drafts([load.drafts for load in loads]),
        slot_free_s=min(load.slot_free_s for load in loads),
    )


def _added(uses: Sequence[PrefixUse]) -> PrefixUse:
    total = {name: sum(getattr(use, name) for use in uses) for name in SUMS}
    disks = [use.disk for use in uses]
    disk = {name: sum(getattr(one, name) for one in disks) for name in vars(disks[0])}
    disk["limit_bytes"] = max(one.limit_bytes for one in disks)  # of all models
    return replace(uses[0], **total, disk=replace(disks[0], **disk))


def _added_drafts(uses: Sequence[DraftUse]) -> DraftUse:
    total = {name: sum(getattr(use, name) for use in uses) for name in vars(uses[0])}
    return replace(uses[0], **total)
