"""What a model's scheduler sees of the Status, and what all models' schedulers show together.

On rank 0's main thread. Imports no mlx.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from server.observe.status import Status
from server.observe.views import Load, PrefixUse
from server.scheduler.catalog import Catalog
from server.scheduler.queue import Line, Ticket

Queues = Mapping[int, Sequence[Ticket]]

SUMS = ("entries", "tokens", "hit_tokens", "miss_tokens", "evicted_tokens")


class Seen:
    """A Status for one model's scheduler. on_load: hears of its load."""

    def __init__(self, status: Status, name: str, on_load: Callable[[Load], None]) -> None:
        self.record, self.fleet, self.note = status.record.model(name), status.fleet, status.note
        self.publish = on_load


class Loads:
    """What the schedulers tell, by model, and all of them together. line: of all models."""

    def __init__(self, status: Status, catalog: Catalog, line: Line) -> None:
        self._status, self._catalog, self._line = status, catalog, line
        self._now: dict[int, Load] = {}
        self._past: dict[int, Load] = {}  # what was counted of models before they went

    def count(self, number: int, load: Load, queues: Queues) -> None:
        """How a model's scheduler stands. queues: of tickets that no scheduler has."""
        past = self._past.get(number)
        self._now[number] = load if past is None else since(load, past)
        self.show(queues)

    def leave(self, number: int) -> None:
        """It is unloaded."""
        self._past[number] = past_of(self._now.pop(number))

    def show(self, queues: Queues) -> None:
        """What there is now of all models, and was."""
        past = {n: load for n, load in self._past.items() if n not in self._now}
        loads = list(self._now.values())
        self._status.publish(together(loads, list(past.values()), self._line.held()))
        each = past | self._now
        for number, queue in queues.items():
            if queue:  # until its model is loaded
                load, more = each.get(number, Load()), sum(1 + len(t.followers) for t in queue)
                each[number] = replace(load, waiting=load.waiting + more)
        self._catalog.loads = each


def together(loads: Sequence[Load], gone: Sequence[Load] = (), held: int = 0) -> Load:
    """The loads of all models as one. gone: what was counted of those that are not loaded; held:
    tickets in the line. Tokens are of several models, so their sum is no more than a hint."""
    every, running = [*loads, *gone] or [Load()], sum(load.running for load in loads)
    return replace(
        Load(),
        running=running,
        waiting=max(0, held - running),
        paused=sum(load.paused for load in loads),
        kv_used=sum(load.kv_used for load in loads),
        prefixes=_added([load.prefixes for load in every]),
        drafts=_summed([load.drafts for load in every], vars(every[0].drafts)),
        slot_free_s=min((load.slot_free_s for load in loads), default=Load().slot_free_s),
    )


def since(load: Load, past: Load) -> Load:
    """One model's, with what was counted of it before it left and came again."""
    every = [load, past]
    return replace(
        load,
        prefixes=_added([one.prefixes for one in every]),
        drafts=_summed([one.drafts for one in every], vars(past.drafts)),
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
