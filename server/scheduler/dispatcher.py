"""Rank 0's decisions above the models: whose a ticket is, what is loaded, and what goes for it.

Lives on rank 0's main thread, between the Line and the schedulers of the models that are loaded. A
ticket for another one waits here until that is loaded. Where memory does not suffice for both, the
model that was used longest ago leaves: what it has begun is finished first, and what comes for it
meanwhile waits, so that a switch comes to an end.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from server.observe.status import Status
from server.protocol.errors import context_exceeded
from server.protocol.events import Failed
from server.scheduler.catalog import (
    AGAIN_S,
    FIRST,
    LEAVING,
    LOADED,
    LOADING,
    UNLOADED,
    Catalog,
    cannot_load,
)
from server.scheduler.inbox import Inbox
from server.scheduler.kv_pool import KvPool, KvShare, Need
from server.scheduler.naps import Naps
from server.scheduler.queue import Line, Ticket
from server.scheduler.scheduler import Scheduler
from server.scheduler.seen import Loads, Seen
from server.wire.messages import Canary, Message, Shutdown, To, Unload
from server.wire.messages import Load as LoadModel

log = logging.getLogger(__name__)


@dataclass
class Seat:
    """A model that is loaded. context: what it was made for; used: when it last had work."""

    scheduler: Scheduler
    inbox: Inbox
    context: int
    used: float


class Dispatcher:
    """needs: what each model is likely to take, and the peak of its loading beside that, by rank.
    idle_s: seconds without work after which a model leaves that is not pinned; 0: it stays.
    on_context: hears what context a model has from now on."""

    def __init__(
        self,
        line: Line,
        status: Status,
        catalog: Catalog,
        pool: KvPool,
        needs: Mapping[int, tuple[Need, int]],
        idle_s: float = 0,
        on_context: Callable[[int, int], None] = lambda number, context: None,
    ) -> None:
        self._line = line
        self._status = status
        self._catalog = catalog
        self._pool = pool
        self._needs = dict(needs)
        self._idle_s = idle_s
        self._on_context = on_context
        self._seats: dict[int, Seat] = {}
        self._loads = Loads(status, catalog, line)
        self._queues: dict[int, deque[Ticket]] = {n: deque() for n in range(len(catalog.models))}
        self._loading: int | None = None
        self._leaving: dict[int, str] = {}  # with the reason
        self._began = 0.0
        self._naps = Naps()  # while no model is loaded

    # Models come and go.

    def seat(
        self, number: int, context: int, make: Callable[[Inbox, Seen, KvShare], Scheduler]
    ) -> Scheduler:
        """A model is loaded, and in the pool. make: its scheduler. context: of its making."""
        inbox = Inbox(self._line)
        share = KvShare(
            lambda: self._pool.budget(number),
            lambda: self._taken(number),
            lambda: self._kept(number),
            lambda: not any(s.scheduler.running for n, s in self._seats.items() if n != number),
        )
        name = self._catalog.models[number].name
        seen = Seen(self._status, name, lambda load: self._loads.count(number, load, self._queues))
        scheduler = make(inbox, seen, share)
        self._seats[number] = Seat(scheduler, inbox, context, time.monotonic())
        one = self._catalog.models[number]
        if self._loading == number:
            self._loading = None
            took = time.monotonic() - self._began
            self._catalog.note(number, load_s=took)
            self._tell(f"{one.name} is loaded, after {took:.1f} s")
        self._catalog.note(
            number, state=LOADED, why="loaded", loads=one.loads + 1, failed="", share=1.0
        )
        self._catalog.granted(number)
        self._tell_contexts()
        return scheduler

    def learn(self, number: int, need: Need) -> None:
        """What a model takes, now that it has been measured."""
        _, peak = self._needs[number]
        self._needs[number] = need, peak

    def not_loaded(self, number: int, reason: str) -> None:
        """On no rank, for this reason: who waits for it hears so."""
        self._loading = None
        name = self._catalog.models[number].name
        self._tell(f"{name} could not be loaded: {reason}", logging.ERROR)
        self._refuse(number, reason)
        self._tell_contexts()

    # What the loop asks.

    def compose(self) -> list[Message]:
        """The next messages to every rank."""
        self._line.arrived.clear()
        for ticket in self._line.take():
            self._queues[ticket.model].append(ticket)
        self._drop_cancelled()
        self._hand_out()  # first, or two models would make room for each other and never begin
        messages = self._switch()
        at = FIRST
        # Who was used longest ago gives up what it keeps first.
        for number, seat in sorted(self._seats.items(), key=lambda item: item[1].used):
            said = seat.scheduler.compose()
            if self._running_beside(number):
                said = [message for message in said if not isinstance(message, Canary)]
            if said and number != at:
                messages.append(To(number))
                at = number
            messages += said
        if self._line.stopping is not None and self._may_stop():
            messages.append(Shutdown(self._line.stopping))
        if not self._seats:
            self._loads.show(self._queues)  # as no scheduler does
        if messages:
            self._naps.begin_again()
        return messages

    def nap_ms(self) -> int:
        """How long all ranks nap after the coming meeting; grows while nothing happens."""
        if self._loading is not None or self._line.arrived.is_set():
            return 0
        naps = [seat.scheduler.nap_ms() for seat in self._seats.values()]
        return min(naps) if naps else self._naps.next_ms(disks=False)

    def chunk(self) -> int:
        """Tokens of prompts between two decode steps: what the slowest at work can bear."""
        seats = [seat.scheduler for seat in self._seats.values()]
        busy = [one.chunk() for one in seats if one.running] or [one.chunk() for one in seats]
        return min(busy, default=1)

    def late(self) -> bool:
        """Scheduler.late, of all that are at work."""
        busy = [one.scheduler for one in self._seats.values() if one.scheduler.running]
        return any(one.late() for one in busy) and not any(one.constrained for one in busy)

    def nap(self, ms: int) -> None:
        """Naps, but looks up when a ticket arrives."""
        self._line.arrived.wait(ms / 1000)

    # Which models are loaded.

    def _switch(self) -> list[Message]:
        now = time.monotonic()
        for seat in self._seats.values():
            if seat.scheduler.running or seat.inbox.held():
                seat.used = now
        if self._loading is not None or self._line.stopping is not None:
            return []
        wanted = self._wanted(now)
        self._leaving = {n: why for n, why in self._leaving.items() if why in wanted.values()}
        messages: list[Message] = []
        for number in self._idle(now):
            messages += self._unload(number, f"idle for {self._idle_s:g} s", idle=True)
        for number, why in wanted.items():
            if self._is_coming(number, why, messages):
                break  # one after another, in the order in which they were asked for
        for n in self._seats:
            why = self._leaving.get(n)
            state = LEAVING if why else LOADED
            if self._catalog.models[n].state != state:
                self._catalog.note(n, state=state, why=why or "loaded")
        return messages

    def _wanted(self, now: float) -> dict[int, str]:
        """Models that are not loaded and are asked for, each with words that say what for; who
        asked first comes first."""
        since = self._catalog.wished()
        for number, queue in self._queues.items():
            if queue:
                since[number] = min(queue[0].accepted, since.get(number, queue[0].accepted))
        wanted = {}
        for number in sorted(since, key=since.get):
            one = self._catalog.models[number]
            if number in self._seats:
                self._catalog.granted(number)
            elif one.failed and now - one.failed_at < AGAIN_S:
                self._refuse(number, one.failed, again=False)
            else:
                wanted[number] = f"makes room for {one.name}"
        return wanted

    def _is_coming(self, number: int, why: str, messages: list[Message]) -> bool:
        """Loads a model, or has room made for it. False where it cannot be loaded at all."""
        need, peak = self._needs[number]
        going: list[int] = []
        may_go = sorted(
            (n for n in self._seats if not self._catalog.models[n].pinned),
            key=lambda n: self._seats[n].used,
        )
        while misfit := self._pool.misfit(need, peak, going):
            if not may_go:
                self._refuse(number, misfit)
                return False
            going.append(may_go.pop(0))
        for n in reversed(list(going)):  # whoever need not go, the last used one first
            stay = [other for other in going if other != n]
            if not self._pool.misfit(need, peak, stay):
                going = stay
        self._leaving |= dict.fromkeys(going, why)
        if not all(self._may_go(n) for n in going) or not self._fits_who_stay(number, need, going):
            return True
        for n in going:
            messages += self._unload(n, why)
        self._loading, self._began = number, time.monotonic()
        self._tell(f"loading {self._catalog.models[number].name}")
        self._catalog.note(number, state=LOADING, why="loading", share=0.0)
        messages.append(LoadModel(number))
        return True

    def _fits_who_stay(self, number: int, need: Need, going: list[int]) -> bool:
        """Whether what runs fits the memory that is left then. From now on nobody is promised
        more."""
        fits = True
        for n, budget in self._pool.with_it(number, need, going).items():
            seat = self._seats.get(n)
            if seat is not None and n not in going:
                self._promise(n, min(seat.context, budget.reach))
                fits &= seat.inbox.longest() <= budget.reach
        return fits

    def _idle(self, now: float) -> list[int]:
        """Models that leave because nobody uses them."""
        return [
            n
            for n, seat in self._seats.items()
            if self._idle_s
            and now - seat.used > self._idle_s
            and not self._catalog.models[n].pinned
            and not self._queues[n]
            and self._may_go(n)
        ]

    def _may_go(self, number: int) -> bool:
        """Whether it has nothing to do, and nothing to write."""
        seat = self._seats[number]
        return not seat.inbox.held() and not seat.scheduler.running and seat.scheduler.flushed

    def _unload(self, number: int, why: str, idle: bool = False) -> list[Message]:
        del self._seats[number]
        self._loads.leave(number)
        self._leaving.pop(number, None)
        one = self._catalog.models[number]
        self._tell(f"{one.name} is unloaded: {why}")
        left = (
            {"left_idle": one.left_idle + 1} if idle else {"left_for_room": one.left_for_room + 1}
        )
        self._catalog.note(number, state=UNLOADED, why=why, share=0.0, **left)
        return [Unload(number)]

    def unloaded(self) -> None:
        """A model is gone from the pool: the others have more."""
        self._tell_contexts()

    def _refuse(self, number: int, reason: str, again: bool = True) -> None:
        """Who waits for a model hears why it does not come."""
        one = self._catalog.models[number]
        name = one.name
        if again:
            if reason != one.failed:
                log.warning("%s cannot be loaded: %s", name, reason)
            self._catalog.note(
                number,
                state=UNLOADED,
                why=reason,
                failed=reason,
                failed_at=time.monotonic(),
                failures=one.failures + 1,
            )
        queue = self._queues[number]
        while queue:
            ticket = queue.popleft()
            for one in (ticket, *ticket.followers):
                one.put(Failed(cannot_load(name, reason)))
                self._line.release(one)
        self._catalog.granted(number)

    # Whose a ticket is.

    def _hand_out(self) -> None:
        """To the models that are loaded and stay, in order; but nobody overtakes a request that
        waits for memory which another model has."""
        starved = min((s.scheduler.starved for s in self._seats.values()), default=math.inf)
        for number, queue in self._queues.items():
            seat = self._seats.get(number)
            if seat is None or number in self._leaving:
                continue
            while queue:
                if queue[0].uid > starved and seat.scheduler.starved == math.inf:
                    break
                ticket = queue.popleft()
                if self._cut(ticket, self._pool.budget(number).reach):
                    seat.inbox.put(ticket)

    def _cut(self, ticket: Ticket, reach: int) -> bool:
        """To what its model has room for, which may be less than when it came."""
        every = (ticket, *ticket.followers)
        if not ticket.inputs:
            for one in every:
                one.max_tokens = min(one.max_tokens, max(1, reach - len(one.prompt)))
        if ticket.longest <= reach:
            return True
        name = "input" if ticket.inputs else "prompt"
        tokens = ticket.longest if ticket.inputs else len(ticket.prompt)
        for one in every:
            one.put(Failed(context_exceeded(tokens, reach, name)))
            self._line.release(one)
        return False

    def _drop_cancelled(self) -> None:
        for number, queue in self._queues.items():
            if not any(one.cancelled.is_set() for t in queue for one in (t, *t.followers)):
                continue
            left: deque[Ticket] = deque()
            for ticket in queue:
                every = [ticket, *ticket.followers]
                stay = [one for one in every if not one.cancelled.is_set()]
                for one in every:
                    if one not in stay:
                        self._line.release(one)
                if stay:
                    stay[0].followers = stay[1:]
                    left.append(stay[0])
            self._queues[number] = left

    # What each may have, and how all is.

    def _taken(self, number: int) -> float:
        """The part of the memory that rows of other models need."""
        return sum(self._part(n, s.scheduler.wanted) for n, s in self._beside(number))

    def _kept(self, number: int) -> float:
        """The part that is kept for models which were used later: it stays before this one's."""
        used = self._seats[number].used if number in self._seats else 0.0
        return sum(
            self._part(n, s.scheduler.kept) for n, s in self._beside(number) if s.used > used
        )

    def _part(self, number: int, tokens: int) -> float:
        return tokens / max(1, self._pool.budget(number).capacity)

    def _beside(self, number: int) -> list[tuple[int, Seat]]:
        return [(n, seat) for n, seat in self._seats.items() if n != number]

    def _running_beside(self, number: int) -> bool:
        return any(seat.scheduler.running for _, seat in self._beside(number))

    def _tell_contexts(self) -> None:
        for n, seat in self._seats.items():
            budget = self._pool.budget(n)
            self._catalog.note(n, kv_tokens=budget.capacity)
            self._promise(n, min(seat.context, budget.reach))

    def _promise(self, number: int, context: int) -> None:
        if self._catalog.models[number].context != context:
            self._catalog.note(number, context=context)
            self._on_context(number, context)

    def _may_stop(self) -> bool:
        return all(seat.scheduler.flushed for seat in self._seats.values())

    def _tell(self, text: str, level: int = logging.INFO) -> None:
        log.log(level, "%s", text)
        self._status.note(text)
