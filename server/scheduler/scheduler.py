"""Rank 0's decisions: which request starts, which is dropped, and who gets which token.

Lives on rank 0's main thread, between the Line of tickets and the lockstep loop. It never touches
MLX: it composes messages that every rank, rank 0 included, then carries out. A worker has a
Spectator in its place, so the loop holds no test of the rank.

KV memory: a request is admitted when its prompt and the likely part of its answer fit beside what
runs. When running requests outgrow the budget all the same, the youngest is paused: it leaves the
ranks, goes back to the head of the line and continues later from its tokens so far. Its client
notices only time.
"""

import logging
import math
import time
from collections.abc import Iterable
from functools import partial

from server.engine.turn import Turn
from server.observe.status import Status
from server.protocol.errors import engine_failed
from server.protocol.events import Embedded, Failed, Prefilled, Token
from server.protocol.failures import is_shared
from server.sampling.row_state import Row
from server.scheduler.canary_clock import CanaryClock
from server.scheduler.disk_index import DiskIndex
from server.scheduler.embeddings import GREEDY, Embeddings
from server.scheduler.kv_budget import KvBudget
from server.scheduler.load import load_of, prefix_use, slot_free_s
from server.scheduler.naps import Naps
from server.scheduler.pacing import SMOOTHING, PrefillPace
from server.scheduler.prefix_index import Plan, PrefixIndex
from server.scheduler.queue import Line, Ticket
from server.scheduler.running import Running, submit_of
from server.scheduler.speculation import Speculation
from server.scheduler.waiting import Waiting
from server.wire.messages import Cancel, Cut, Evict, Message, Settled, Shutdown, Submit

LIKELY_LEAST = 64  # tokens of answer that a newcomer reserves at least, if its limit allows
LOOK_AHEAD = 3  # steps between the need for room and the ranks' having made it
SLOW_S = 0.03  # for MLX to take in a decode step: other work is a small part of that

log = logging.getLogger(__name__)


class Scheduler:
    """vocab: size of the logits' last axis; eos: ids that end a text. canary_interval: seconds
    of idleness between two canaries; 0 for none."""

    def __init__(
        self,
        line: Line,
        status: Status,
        vocab: int,
        budget: KvBudget,
        pace: PrefillPace,
        prefixes: PrefixIndex,
        eos: tuple[int, ...] = (),
        canary_interval: float = 0,
        disk: DiskIndex | None = None,
        speculation: Speculation | None = None,
    ) -> None:
        self._line = line
        self._status = status
        self._vocab = vocab
        self._eos = eos
        self._budget = budget
        self._pace = pace
        self._prefixes = prefixes
        self._disk = disk or DiskIndex()
        self.speculation = speculation or Speculation()
        self._waiting = Waiting()
        self._embeddings = Embeddings(line.release, vocab)
        self._running: dict[int, Running] = {}
        self._broken: set[int] = set()
        self._canary = CanaryClock(canary_interval)
        self._naps = Naps()
        self._slow = False  # MLX, to take in a decode step
        self._answer_tokens = 128.0  # running average, for Retry-After and for admission
        self._count()

    def compose(self) -> list[Message]:
        """The next messages to every rank: drops first, so that their slots are free."""
        self._line.arrived.clear()
        for ticket in self._line.take():
            if ticket.inputs:
                self._embeddings.add(ticket)
                continue
            every = [self._fresh(one) for one in (ticket, *ticket.followers)]
            if group := [one for one in every if one is not None]:
                self._line_up(group)
        self._waiting.look(self._disk.is_reading)
        dropped, paused = self._drop(), self._pause()
        messages: list[Message] = [self._cancel(one) for one in (*dropped, *paused)]
        if not paused:  # or one could begin again as its last token is on the way
            messages += [*self._start(), *self._embed()]
        messages += self._make_room()
        messages += self._canary.due(busy=bool(self._running))
        messages += self._disk.compose(self._prefixes.__contains__)
        if self._line.stopping is not None and self._disk.flushed:
            messages.append(Shutdown(self._line.stopping))
        if messages:
            self._naps.begin_again()
        self._count()
        return messages

    def deliver(self, turn: Turn) -> None:
        """Hands tokens to their tickets, and notes which prefixes the ranks have kept.

        A uid that was dropped or paused meanwhile, or whose sampling failed, is skipped."""
        now = time.monotonic()
        record = self._status.record
        record.turn(len(turn.events), turn.computed, turn.chunk_s, turn.step_s)
        self._status.fleet.hear()
        step_s = 0.0 if turn.interrupted else turn.step_s
        self._pace.observe(turn.computed, turn.chunk_s, step_s)
        self._disk.observe(turn.computed, turn.chunk_s)
        self.speculation.observe(turn, now)
        if turn.header is not None:
            self._slow = turn.launch_s > SLOW_S
        for uid, event in turn.events:
            one = self._running.get(uid)
            if one is None:
                continue
            if uid in self._broken:
                if isinstance(event, Token) and event.finish is not None:
                    self._forget(uid)
                continue
            if isinstance(event, Prefilled):
                one.row.read_prompt_scores()  # of this chunk; all at once would stop the ranks
            if isinstance(event, Token):
                record.token(one.ticket, now)
                event = one.take(event)
                if event.finish is not None:
                    count = len(one.generated)
                    self._answer_tokens += SMOOTHING * (count - self._answer_tokens)
                    self._forget(uid)
            one.ticket.put(event)
            if isinstance(event, Embedded):
                self._forget(uid)
        for entry, tokens in turn.kept:
            self._prefixes.add(entry, tokens)
            if entry in self._prefixes:
                self._disk.offer(entry, tokens, self._prefixes.owner(entry))
        for uid, error in turn.refused:
            self.refused(uid, error)
        self._count()

    def refused(self, uid: int, error: Exception) -> None:
        """The engine did not take a request: it ends with an error. No rank holds it."""
        if uid not in self._running:
            return  # its client has left meanwhile
        if uid not in self._broken:
            self._tell(self._running[uid].ticket, f"The engine refused the request: {error}")
        self._forget(uid)

    def distrust(self, entries: Iterable[int]) -> None:
        """A message about these prefixes has failed: no other is to refer to them."""
        for entry in entries:
            self._prefixes.give_up(entry)

    def settled(self, jobs: Iterable[Settled]) -> None:
        """All ranks have told how far their disks are."""
        for entry, tokens, _ in self._disk.settle(jobs):
            self._prefixes.add(entry, tokens)

    def nap_ms(self) -> int:
        """How long all ranks nap after the coming meeting; grows while nothing happens."""
        asked = self._running or self._waiting or self._embeddings or self._line.arrived.is_set()
        return 0 if asked else self._naps.next_ms(self._disk.busy)

    def chunk(self) -> int:
        """Tokens of prompts between two decode steps, from the next turn on."""
        return self._pace.tokens

    def late(self) -> bool:
        """Whether every rank does what else there is before it hands a decode step to MLX.

        A GPU should always have its next step. But of a large graph MLX takes in a part only, and
        blocks until most of it is computed: what comes after waits for the step. Not with a
        grammar: rank 0 has that row's step begin, alone, before it looks for what is allowed.
        """
        return self._slow and not self.constrained

    def drafts(self) -> int:
        """For how many drafts there shall be room behind the header after the next one."""
        return self.speculation.room([one.row for one in self._running.values() if one.generated])

    def nap(self, ms: int) -> None:
        """Naps, but looks up when a ticket arrives."""
        self._line.arrived.wait(ms / 1000)

    # What the dispatcher asks of it, beside other models.

    @property
    def running(self) -> int:
        """Requests on the ranks."""
        return len(self._running)

    @property
    def constrained(self) -> bool:
        """Whether one of them has a grammar."""
        return any(one.ticket.grammar for one in self._running.values())

    @property
    def wanted(self) -> int:
        """Tokens of KV memory that they are likely to need."""
        return self._budget.cost(self._reserve(one) for one in self._running.values())

    @property
    def kept(self) -> int:
        """Tokens of it that kept prefixes take."""
        return self._prefixes.used + self._disk.reserved

    @property
    def starved(self) -> float:
        """The uid of the first that waits for memory; infinite: none does."""
        return min(self._embeddings.short, self._first_short)

    @property
    def flushed(self) -> bool:
        """Whether all is on disk that should be and can be in a few seconds."""
        return self._disk.flushed

    # What the engine's sampler asks of it.

    def row(self, uid: int) -> Row:
        """The sampling state of a request that compose() started.

        Where choices of one prompt are dropped together, the engine hands the prompt from one to
        the next, and asks for each of them: what it makes of this stand-in is read by nobody.
        """
        one = self._running.get(uid)
        return Row(GREEDY, [], self._vocab) if one is None else one.row

    def failed(self, row: Row, error: Exception) -> None:
        """Sampling failed for one row: that request ends with an error, the others go on."""
        for uid, one in self._running.items():
            if one.row is row and uid not in self._broken:
                self._tell(one.ticket, f"Sampling failed: {error}")
                self._broken.add(uid)

    def _fresh(self, ticket: Ticket) -> Running | None:
        """None for one that cannot begin, which has its answer then."""
        try:
            one = Running.begin(ticket, self._vocab, self._eos)
        except Exception as error:
            if not is_shared(error):
                raise
            self._end(ticket, f"Sampling failed: {error}")
            return None
        one.row.guess = self.speculation.guess(ticket.common, ticket.prompt)
        return one

    def _line_up(self, group: list[Running]) -> None:
        """A newcomer waits for its turn, or first for what the disks have of its prompt."""
        ticket, job = group[0].ticket, 0
        if not ticket.score_prompt and len(self._disk.entries):
            room = min(self._prefixes.room, self._budget.rest(self.wanted))
            held = self._prefixes.held(ticket.prompt, ticket.owner)
            number = partial(self._prefixes.promise, ticket.owner)
            job = self._disk.fetch(ticket.prompt, held, room, number, ticket.owner)
        self._waiting.add(group, job)

    def _drop(self) -> list[Running]:
        """Removes cancelled and broken requests; returns those that ranks must drop."""
        self._waiting.drop_cancelled(self._line.release)
        self._embeddings.drop_cancelled()
        running = self._running.items()
        gone = [one for uid, one in running if uid in self._broken or one.ticket.cancelled.is_set()]
        self._broken.clear()
        for one in gone:
            self._forget(one.ticket.uid)
        return gone

    def _cancel(self, one: Running) -> Cancel:
        """Takes it off the ranks. What there is of it is kept, to be asked for again; of several
        choices that have begun the first one's, as of those that end."""
        wanted = not (one.ticket.of or (one.generated and one.ticket.choice))
        keep = self._prefixes.promise(one.ticket.owner, part=True) if wanted else 0
        return Cancel(one.ticket.uid, keep)

    def _pause(self) -> list[Running]:
        """Takes the youngest off the ranks until the rest fits; returns them."""
        paused = []
        while not self._budget.holds(
            one.length + min(one.left, LOOK_AHEAD + self.speculation.most)
            for one in self._running.values()
        ):
            uid = max(self._running)  # uids count up: the youngest, also after a pause
            one = self._running.pop(uid)
            paused.append(one)
            if one.ticket.of:
                self._embeddings.over(one, again=True)
                continue
            try:
                one.row = one.row.resume(one.generated)
            except Exception as error:
                if not is_shared(error):
                    raise
                self._end(one.ticket, f"Sampling failed: {error}")
                continue
            self._waiting.put_back(one)
            self._status.record.paused()
            log.info("request %d paused after %d tokens: no KV memory", uid, len(one.generated))
        return paused

    def _start(self) -> list[Message]:
        """Puts waiting requests on the ranks, in order, while slots and memory last."""
        messages: list[Message] = []
        while self._waiting:
            group = self._waiting.first()
            if group[0].ticket.uid > self._embeddings.short:
                break
            started = [one for one in group if self._admit(one)]
            if started:
                messages.append(self._submit(started))
            if not self._waiting.started(len(started)):
                break  # in order: a small one that overtook could starve a large one
        return messages

    def _admit(self, one: Running) -> bool:
        """Gives it a slot, if there is one and the likely length of its answer fits."""
        return self._decoding < self._line.max_running and self._fit(one)

    def _fit(self, one: Running) -> bool:
        if not self._budget.holds(self._reserve(r) for r in (*self._running.values(), one)):
            return False
        self._running[one.ticket.uid] = one
        self._status.record.started(one.ticket.of or one.ticket, time.monotonic())
        return True

    @property
    def _decoding(self) -> int:
        return len(self._running) - self._embeddings.in_flight

    def _embed(self) -> list[Message]:
        """Inputs to embed, while memory lasts; but who waits for it longer comes first."""
        return list(self._embeddings.start(self._fit, self._first_short))

    @property
    def _first_short(self) -> float:
        """The uid of the first that waits to decode though there is a slot."""
        free = self._decoding < self._line.max_running
        return self._waiting.first()[0].ticket.uid if self._waiting and free else math.inf

    def _submit(self, started: list[Running]) -> Submit:
        first, ticket = started[0], started[0].ticket
        prompt = first.tokens
        score = ticket.score_prompt and not first.generated
        plan = Plan() if score else self._prefixes.plan(prompt, ticket.places, ticket.owner)
        self._disk.use(prompt, ticket.owner)
        if not first.generated:
            ticket.cached = plan.length
        return submit_of(started, plan, score)

    def _make_room(self) -> list[Message]:
        """Gives up kept prefixes for which running requests need the memory."""
        wanted = self.wanted
        if wanted + self._disk.reserved > self._budget.capacity:
            self._disk.give_way()
        free = self._budget.rest(wanted) - self._disk.reserved
        room = self._prefixes.make_room(max(0, free))
        self._disk.gone([*room.drop, *(entry for entry, _ in room.cut)])
        cut = [Cut(entry, length) for entry, length in room.cut]
        return [*cut, Evict(room.drop)] if room.drop else cut

    def _reserve(self, one: Running) -> int:
        """Tokens of cache that a request is likely to need."""
        likely = max(LIKELY_LEAST, 1.5 * self._answer_tokens - len(one.generated))
        return one.length + min(one.left, int(likely))

    def _end(self, ticket: Ticket, reason: str) -> None:
        """For one that is not on the ranks."""
        self._tell(ticket, reason)
        self._line.release(ticket)

    def _tell(self, ticket: Ticket, reason: str) -> None:
        log.error("request %d failed: %s", ticket.uid, reason)
        self._status.note(f"request {ticket.uid} failed: {reason}")
        ticket.put(Failed(engine_failed(reason)))

    def _forget(self, uid: int) -> None:
        one = self._running.pop(uid)
        self._embeddings.over(one)
        self._line.release(one.ticket)

    def _count(self) -> None:
        """Shows what there is now."""
        running = list(self._running.values())
        load = load_of(
            self._decoding + self._embeddings.running,
            self._line.held(),
            self._waiting.paused(),
            self._budget.cost(one.length for one in running),
            prefix_use(self._prefixes, self._disk),
            self.speculation.look(),
            slot_free_s(running, self._answer_tokens, self._pace),
        )
        self._status.publish(load)
