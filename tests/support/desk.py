"""Rank 0 of one in this process: tickets in, events out, with the engine's own loop between."""

from collections.abc import Callable, Iterable

import mlx.core as mx

from server.engine.engine import Engine
from server.engine.prefix_disk import PrefixDisk
from server.loop import run_lockstep
from server.observe.status import Status
from server.protocol.events import Event, Failed, Token
from server.protocol.requests import Common, Sampling
from server.protocol.row_lengths import SLACK, Precision
from server.residents import Resident, Residents
from server.sampling.choosers import ChoosesForAll
from server.scheduler.disk_index import DiskIndex
from server.scheduler.kv_budget import KvBudget
from server.scheduler.pacing import PrefillPace
from server.scheduler.prefix_index import PrefixIndex
from server.scheduler.queue import Line, Ticket
from server.scheduler.scheduler import Scheduler
from server.scheduler.speculation import Speculation
from server.wire.link import Link
from server.wire.mailbox import Mailbox
from tests.support.ticket_events import all_events


class Desk:
    """Its loop ends when every ticket has its end; then it can run again.

    room: tokens of prefixes to keep; disk: keeps them, too. drafter: makes drafts, with their room.
    computed: tokens of prompts that the engine has computed.
    """

    def __init__(
        self,
        shard,
        max_batch=4,
        eos=(),
        room=0,
        cuttable=True,
        capacity=2**31 - 1,
        disk: tuple[PrefixDisk, DiskIndex] | None = None,
        slack=SLACK,
        drafter=None,
        speculation: Speculation | None = None,
    ) -> None:
        self.computed = 0
        self.shard = shard
        self.link = Link(mx.distributed.init())
        self.line = Line(max_batch, 100)
        self.scheduler = Scheduler(
            self.line,
            Status("m", "run"),
            shard.vocab,
            KvBudget(capacity),
            PrefillPace(0.25, 64),
            PrefixIndex(room, cuttable, precision=precision_of(shard)),
            tuple(eos),
            disk=disk and disk[1],
            speculation=speculation,
        )
        drafting = drafter or self.scheduler.speculation
        self.disk = disk and disk[0]
        self.mailbox = Mailbox(
            self.link,
            self.scheduler.compose,
            self.scheduler.nap_ms,
            self.scheduler.chunk,
            self.scheduler.late,
            drafts=drafter.room if drafter else self.scheduler.drafts,
        )
        chooser = ChoosesForAll(
            self.scheduler.row, self.mailbox.header, self.scheduler.failed,
            drafting.draft,
        )  # fmt: skip
        self.engine = Engine(
            shard.last, self.link, chooser, max_batch=max_batch, prefill_step=64, eos=list(eos),
            slack=slack,
        )  # fmt: skip

        step = self.engine.step

        def counted(*deliver):
            turn = step(*deliver)
            self.computed += turn.computed
            return turn

        self.engine.step = counted

    def run(
        self, *tickets: Ticket, act: Callable[[int], None] = lambda turn: None
    ) -> list[list[int] | Failed]:
        """Each choice's token ids, or its failure. act is called before each turn."""
        return [ids_of(events) for events in self.events(*tickets, act=act)]

    def events(self, *tickets: Ticket, act=lambda turn: None) -> list[list[Event]]:
        """Each choice's events."""
        self.line.stopping = None  # forgets the end of the run before
        self.line.admit(list(tickets))
        turns = 0

        def progress(stage: str) -> None:
            nonlocal turns
            if stage == "messages":
                act(turns)
                turns += 1
                assert turns < 3000, "it does not end"
            if not self.line.held() and self.line.stopping is None:
                self.line.stop("done")

        resident = Resident(self.engine, self.scheduler, lambda tell: None, self.disk)
        run_lockstep(Residents(resident), self.mailbox, self.scheduler, progress)
        queues = {one.uid: all_events(one) for one in tickets}
        return [
            [event for choice, event in queues[first.uid] if choice == one.choice]
            for first in tickets
            for one in (first, *first.followers)
        ]


def precision_of(shard) -> Precision:
    """Of what it keeps; reckons all tokens alike."""
    quantised = shard.last.ways.quantised
    return Precision(quantised.start if quantised else 0)


def shapes_of(shard, monkeypatch) -> list[tuple[int, int]]:
    """The rows and tokens of each call of its model from now on."""
    shapes, call = [], type(shard.model).__call__

    def noted(self, inputs, cache=None, **rest):
        shapes.append(inputs.shape)
        return call(self, inputs, cache=cache, **rest)

    monkeypatch.setattr(type(shard.model), "__call__", noted)
    return shapes


def ids_of(events: Iterable[Event]) -> list[int] | Failed:
    events = list(events)
    failures = [event for event in events if isinstance(event, Failed)]
    return failures[0] if failures else [e.id for e in events if isinstance(e, Token)]


def ticket(
    prompt=(5, 6, 7), max_tokens=8, common=None, choice=0, score_prompt=False, **sampling
) -> Ticket:
    common = Common(sampling=Sampling(**{"temperature": 0} | sampling), **common or {})
    return Ticket(list(prompt), max_tokens, common, choice=choice, score_prompt=score_prompt)


def choices(count: int, **fields) -> Ticket:
    """The first choice of one prompt, which has the others as followers."""
    first = ticket(**fields)
    first.followers = [
        Ticket(first.prompt, first.max_tokens, first.common, choice=n, events=first.events)
        for n in range(1, count)
    ]
    return first
