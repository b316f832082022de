"""A scheduler without ranks, and the messages that it should write."""

from dataclasses import replace

import mlx.core as mx

from server.engine.turn import Turn
from server.observe.status import Status
from server.protocol.requests import Common
from server.sampling.row_state import Scores
from server.scheduler.kv_budget import KvBudget
from server.scheduler.pacing import PrefillPace
from server.scheduler.prefix_index import PrefixIndex
from server.scheduler.queue import Line, Ticket
from server.scheduler.scheduler import Scheduler
from server.wire.messages import Submit


class Desk:
    """A scheduler with its line and status. room: tokens of prefixes to keep."""

    def __init__(
        self, max_running: int = 2, max_waiting: int = 4, capacity: int = 10**9, room: int = 0
    ) -> None:
        self.status = Status("demo", "run")
        self.line = Line(max_running, max_waiting, lambda: self.status.load.slot_free_s)
        self.pace = PrefillPace(0.25, 512)
        self.scheduler = Scheduler(
            self.line,
            self.status,
            100,
            KvBudget(capacity),
            self.pace,
            PrefixIndex(room, True),
        )

    def admit(self, count: int = 1, **fields) -> list[Ticket]:
        defaults = {"prompt": [1, 2, 3], "max_tokens": 10, "common": Common()}
        tickets = [Ticket(**defaults | fields) for _ in range(count)]
        for ticket in tickets:
            self.line.admit([ticket])
        return tickets

    def admit_choices(self, count: int, **fields) -> list[Ticket]:
        """One request for several choices of one prompt; the first has the others in it."""
        defaults = {"prompt": [1, 2, 3], "max_tokens": 10, "common": Common()} | fields
        first = Ticket(**defaults)
        later = defaults | {"score_prompt": False, "events": first.events}
        first.followers = [Ticket(**later, choice=n) for n in range(1, count)]
        self.line.admit([first])
        return [first, *first.followers]

    def compose(self):
        """What it says, but for how to draw, which has random seeds and its own tests."""
        return [
            replace(message, draws=()) if isinstance(message, Submit) else message
            for message in self.scheduler.compose()
        ]

    def deliver(self, events, computed=0, chunk_s=0.0, step_s=0.0) -> None:
        """What the engine brought in a turn, and its seconds."""
        self.scheduler.deliver(Turn(events, [], computed, chunk_s, step_s))

    def counts(self) -> tuple[int, int]:
        load = self.status.load
        return load.running, load.waiting


def submits(tickets: list[Ticket]) -> list[Submit]:
    return [Submit(t.uid, t.prompt, t.max_tokens, t.common.ignore_eos) for t in tickets]


def together(tickets: list[Ticket], **fields) -> Submit:
    """The message that starts choices of one prompt."""
    first, *others = tickets
    forks = tuple(one.uid for one in others)
    return Submit(first.uid, first.prompt, first.max_tokens, forks=forks, **fields)


def scores_of(*logprobs: float) -> Scores:
    return Scores(mx.arange(len(logprobs)), mx.array(logprobs), None, None)
