"""Requests for embeddings, and which of their inputs are on the ranks. The scheduler's alone, on
rank 0's main thread.

A request has one place in the line, and up to thousands of inputs. Each goes to the ranks as a
prompt that ends where another would begin to decode; so it takes memory, and no slot of those that
decode. Few are there at a time, by turns from the requests that have begun: a prompt that arrives
meanwhile waits for no more than these.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from server.protocol.requests import Common, Sampling
from server.sampling.row_state import Row
from server.scheduler.queue import Ticket
from server.scheduler.running import Running
from server.wire.messages import Submit

IN_FLIGHT = 16  # inputs on the ranks: of two chunks, so that the next is there when one is done
TOKENS_IN_FLIGHT = 8192  # that they have together, or one has that is longer
IN_TURN = 8  # inputs of a request, before it is another's turn: they share a chunk
AT_ONCE = 4  # requests that have begun: all that has come of them is kept until they are answered
GREEDY = Common(sampling=Sampling(temperature=0))  # nothing is drawn


@dataclass
class Request:
    """left: places of the inputs that are not on the ranks, the shortest last: those of like length
    share a chunk."""

    ticket: Ticket
    left: list[int]
    out: int = 0  # inputs that are on the ranks
    begun: bool = False
    turn: int = 0  # inputs that have gone there in this turn


class Embeddings:
    """release: takes a request's ticket when nothing of it is left. vocab: of the logits."""

    def __init__(self, release: Callable[[Ticket], None], vocab: int) -> None:
        self._release = release
        self._vocab = vocab
        self._requests: list[Request] = []  # whose turn it is, first
        self.in_flight = self._tokens = 0
        self.short = math.inf  # the ticket that could not get memory when it was its turn

    def __bool__(self) -> bool:
        """Whether anything is left to do."""
        return bool(self._requests)

    @property
    def running(self) -> int:
        """Requests with inputs on the ranks."""
        return sum(bool(one.out) for one in self._requests)

    def add(self, ticket: Ticket) -> None:
        """A newcomer."""
        order = sorted(range(len(ticket.inputs)), key=lambda i: -len(ticket.inputs[i]))
        self._requests.append(Request(ticket, order))

    def drop_cancelled(self) -> None:
        """Of those whose clients have left nothing more begins."""
        for one in [one for one in self._requests if one.ticket.cancelled.is_set()]:
            one.left.clear()
            self._let_go(one)

    def start(self, admit: Callable[[Running], bool], before: float) -> Iterator[Submit]:
        """Inputs to put on the ranks now. admit: notes one as running, if there is memory. before:
        only tickets with a lower number."""
        self.short = math.inf
        while self.in_flight < IN_FLIGHT and (one := self._next(before)) is not None:
            ticket = one.ticket.input(one.left[-1])
            length = len(ticket.prompt)
            if self.in_flight and self._tokens + length > TOKENS_IN_FLIGHT:
                return
            if not admit(Running(ticket, Row(GREEDY, ticket.prompt, self._vocab), [])):
                self.short = one.ticket.uid
                return
            one.left.pop()
            one.out += 1
            one.begun = True
            self._pass_on(one)
            self.in_flight += 1
            self._tokens += length
            yield Submit(ticket.uid, ticket.prompt, 1, embed=True)

    def over(self, running: Running, again: bool = False) -> None:
        """One of its inputs is no more on the ranks, and has to come again or not; others' are not
        for here."""
        ticket = running.ticket
        if ticket.of is None:
            return
        one = next(one for one in self._requests if one.ticket is ticket.of)
        one.out -= 1
        self.in_flight -= 1
        self._tokens -= len(ticket.prompt)
        if again:
            one.left.append(ticket.choice)
        self._let_go(one)

    def _next(self, before: float) -> Request | None:
        """Whose turn it is, of those that have begun or may."""
        room = AT_ONCE - sum(one.begun for one in self._requests)
        for one in self._requests:
            if not one.begun:
                room -= 1
            if (one.begun or room >= 0) and one.left and one.ticket.uid < before:
                return one
        return None

    def _pass_on(self, one: Request) -> None:
        """One more of its inputs is on its way. After some it goes behind all others."""
        one.turn += 1
        if one.turn == IN_TURN:
            one.turn = 0
            self._requests.remove(one)
            self._requests.append(one)

    def _let_go(self, one: Request) -> None:
        if not one.left and not one.out:
            self._requests.remove(one)
            self._release(one.ticket)
