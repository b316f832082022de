"""Drafts of the distributed benchmark: what the server's scheduler does for one request.

Rank 0's, on the main thread; every rank takes part in the measurement that comes first.
"""

import time
from collections.abc import Callable

from server.engine.turn import Turn
from server.protocol.events import Token
from server.sampling.row_state import Row
from server.scheduler.speculation import Speculation
from server.scheduler.step_costs import StepCosts
from server.startup.kinds_of_drafts import DRAFTS, agree_on_drafts
from server.startup.loading import Shard
from server.startup.piece_pace import at_once
from server.startup.step_curve import measure_curve
from server.wire.link import Link
from server.wire.mailbox import Header


class Drafting:
    """speculation: of one that makes none, unless it is told what steps cost."""

    def __init__(self, speculation: Speculation) -> None:
        self.speculation = speculation
        self._row: Row | None = None
        self._generated = 0

    def begin(self, row: Row, prompt: list[int]) -> Row:
        """A request begins, alone."""
        row.guess = self.speculation.guess(row.common, prompt)
        self._row, self._generated = row, 0
        return row

    def header(self) -> list[int]:
        """The mailbox header of a run without messages."""
        decoding = [self._row] if self._row is not None and self._generated else []
        return list(vars(Header(drafts=self.speculation.room(decoding))).values())

    def hear(self, turn: Turn) -> None:
        """Part of a turn is over."""
        self.speculation.observe(turn, time.monotonic())
        for _, event in turn.events:
            if isinstance(event, Token) and self._row is not None:
                self._generated += 1
                if self._row.guess is not None:
                    self._row.guess.hear([event.id], self._generated)


def speculate(link: Link, shard: Shard, tell: Callable[[str], None]) -> Speculation:
    """As rank 0 of the server has it with SPECULATE=auto. Every rank calls it."""
    drafts = agree_on_drafts("auto", shard.model, shard.last.ways, link)
    tell(f"drafts: {drafts}")
    if drafts not in DRAFTS:
        return Speculation()
    return Speculation(StepCosts(at_once(measure_curve(shard.model, link, tell))))
