"""What a model's scheduler sees of the Status, and what all models' schedulers show together.

On rank 0's main thread. Imports no mlx.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from server.observe.status import Status
from server.observe.views import Load, PrefixUse

SUMS = ("entries", "tokens", "hit_tokens", "miss_tokens", "evicted_tokens")


class Seen:
    """A Status for one model's scheduler. on_load: hears of its load."""

    def __init__(self, status: Status, on_load: Callable[[Load], None]) -> None:
        self.record, self.fleet, self.note = status.record, status.fleet, status.note
        self.publish = on_load


def together(loads: Sequence[Load], past: Load, held: int = 0) -> Load:
    """The loads of all models as one. past: of those that have gone; held: tickets in the line.
    Tokens are of several models, so their sum is no more than a hint."""
    every, running = [*loads, past], sum(load.running for load in loads)
    return replace(
        past,
        running=running,
        waiting=max(0, held - running),
        paused=sum(load.paused for load in loads),
        kv_used=sum(load.kv_used for load in loads),
        prefixes=_added([load.prefixes for load in every]),
        drafts=_summed([load.drafts for load in every], vars(past.drafts)),
        slot_free_s=min((load.slot_free_s for load in loads), default=past.slot_free_s),
    )


def past_of(load: Load) -> Load:
    """What stays of it when its model goes: what was counted so far."""
    disk = replace(load.prefixes.disk, entries=0, bytes=0)
    prefixes = replace(load.prefixes, entries=0, tokens=0, disk=disk)
    return replace(Load(), prefixes=prefixes, drafts=load.drafts)


def _added(uses: Sequence[PrefixUse]) -> PrefixUse:
    disks = [use.disk for use in uses]
    limit = max(one.limit_bytes for one in disks)  # of all models
    disk = replace(_summed(disks, vars(disks[0])), limit_bytes=limit)
    return replace(_summed(uses, SUMS), disk=disk)


def _summed(uses: Sequence[Any], names: Iterable[str]) -> Any:
    return replace(uses[0], **{name: sum(getattr(use, name) for use in uses) for name in names})
