"""One episode of the walk at random (walk.py), from its first request until nothing is left.

An episode has a model, a little KV memory, and clients: prompts that begin alike, several choices,
echoes, log-probabilities, grammars that break, inputs to embed, and clients that leave at any
moment. Messages are damaged on their way, as a fault of ours would. Prefixes are kept, cut and
given up, requests are paused. A second engine follows as a worker does, and learns everything from
the bytes that rank 0 sends.

The oracle: what a request gets is what it gets alone, on a fresh engine that keeps nothing. After
each turn the ranks hold the same, index and stores agree, and the ranks hold nothing that the
scheduler does not know. At the end nothing is left.
"""

import random
from collections import Counter
from fractions import Fraction
from types import SimpleNamespace
from unittest import mock

from server.engine.prefix_store import REUSE_CUT, reuse_kind
from server.observe.status import Status
from server.protocol.errors import ApiError
from server.protocol.events import Failed, Scored, Token
from server.protocol.requests import Common, Places
from server.protocol.row_lengths import STEP, WHOLE, Precision
from server.sampling.choosers import ChoosesForAll, Follows
from server.scheduler.kv_budget import KvBudget
from server.scheduler.prefix_index import PrefixIndex
from server.scheduler.queue import Line, Ticket
from server.scheduler.scheduler import Scheduler
from server.scheduler.spectator import Spectator
from server.scheduler.speculation import Speculation
from server.wire.mailbox import Mailbox
from server.wire.messages import Cancel, Cut, Message, Submit
from tests.support.drafting import ByChance
from tests.support.small_models import VOCAB
from tests.support.walk_disks import FORGETS, LEAST, Disks
from tests.support.walk_embeds import Embedders
from tests.support.walk_parts import (
    EOS,
    Asked,
    Broken,
    Coin,
    Copies,
    Leads,
    Multiples,
    Pace,
    Rank,
    check_by_forward_pass,
    check_kept,
    check_scores,
    damage,
    is_end,
    is_plain,
    quiet_answer,
    some_parameters,
)

TURNS_OF_SILENCE = 200  # while something is asked for; only a hang takes as many
LONG = 40  # tokens of an answer

SYSTEMS = [[n * k % VOCAB for n in range(length)] for k, length in ((7, 150), (11, 90), (13, 30))]


class Episode:
    """One walk. shard: model and LastLogits, see small_models."""

    def __init__(self, seed: int, shards: dict) -> None:
        self.seed = seed
        self.rng = rng = random.Random(seed)
        self.kind = rng.choice(["attention", "attention", "sliding", "state"])
        if rng.random() < 0.25:
            self.kind = rng.choice([kind for kind in shards if "," in kind])
        self.shard = shards[self.kind]
        self.turns = 0
        self._heard = 0  # the last turn in which a client was told something
        self.seen: Counter = Counter()  # what has happened, to know that the walk is not idle
        self.asked: list[Asked] = []
        self.max_batch = rng.randrange(2, 9)
        # Long answers outgrow what was reserved for them, and requests are paused.
        self._lengths = rng.choice([[1, 3, 12, 30]] * 3 + [[12, 250]])
        self.capacity = STEP * rng.choice([2, 3] if 250 in self._lengths else [2, 3, 8, 32, 32])
        self._room = room = rng.choice([0, 500, 1500, 1500, 4000, 10**6])
        cuttable = reuse_kind(self.shard.model) == REUSE_CUT
        self.line = Line(self.max_batch, 8)
        fewer = self.shard.last.ways.quantised
        precision = Precision(fewer.start, Fraction(2)) if fewer and fewer.start else WHOLE
        self.index = PrefixIndex(room, cuttable, 0 if cuttable else 20, precision)
        self.status = Status("m", "walk")
        follows = rng.random() < 0.5
        self.link = Leads()
        self._links = [self.link, Copies(self.link)][: 1 + follows]
        self.disks = None
        if random.Random(f"{seed} disk").random() < 0.5:
            model = self.shard.model
            self.disks = Disks(seed, model, self._links, cuttable, precision, lambda: self.turns)
        self.drafts = Speculation()
        if cuttable and random.Random(f"{seed} drafts").random() < 0.7:
            self.drafts = ByChance(random.Random(f"{seed} drafted"), VOCAB)
        self.scheduler = Scheduler(
            self.line, self.status, VOCAB, KvBudget(self.capacity, precision=precision), Pace(rng),
            self.index, EOS, canary_interval=1e9, disk=self.disks and self.disks.index,
            speculation=self.drafts,
        )  # fmt: skip
        if random.Random(f"{seed} pauses").random() < 0.5:
            self.scheduler._reserve = lambda one: one.length  # takes in more than there is room for
        mailbox = Mailbox(
            self.link, self._compose, lambda: 0, self.scheduler.chunk, self.scheduler.late,
            drafts=self.scheduler.drafts,
        )  # fmt: skip
        chooser = ChoosesForAll(
            self.scheduler.row, mailbox.header, self.scheduler.failed, self.drafts.draft
        )
        sizes = {"max_batch": self.max_batch, "chunk": rng.choice([16, 32, 64])}
        self.ranks = [Rank(self.shard, self.link, mailbox, chooser, self.scheduler, **sizes)]
        for link in self._links[1:]:
            idle = Spectator()
            mailbox = Mailbox(link, idle.compose, idle.nap_ms, idle.chunk, idle.late)
            self.ranks.append(Rank(self.shard, link, mailbox, Follows(), idle, **sizes))
        for rank, disk in zip(self.ranks, self.disks.ranks if self.disks else (), strict=False):
            rank.disk = disk
        self.embedders = Embedders(seed, self.shard, self.line, self.capacity, self.seen)
        self._watch()
        self._texts: list[list[int]] = []  # prompts with their answers: conversations go on
        self._damages = rng.choice([0, 0, 0.02, 0.1])
        self._busy = rng.choice([0.05, 0.2, 0.5])
        self._leaving = rng.choice([0, 0.1, 0.4])
        self._hunts = rng.random() < 0.5  # prompts of several choices whose beginning goes
        if self._hunts:
            self._lengths, self._leaving, self._busy = [1, 3], 0.5, 0.2

    def _watch(self) -> None:
        """Looks at what would else be mended without a trace."""
        engine, scheduler = self.ranks[0].engine, self.scheduler
        hand_over, refused = engine._hand_over, scheduler.refused

        def handing_over(message: Submit) -> None:
            self.seen["handed over"] += 1
            if message.reuse and message.reuse[0] not in engine.prefixes.lengths():
                self.seen["handed over without its prefix"] += 1
            hand_over(message)

        def refusing(uid: int, error: Exception) -> None:
            self.seen["refused"] += 1
            if uid in self._inputs():
                refused(uid, error)
                return
            one = next(one for one in self.asked if uid in [t.uid for t in one.tickets])
            assert one.may_fail, f"request {uid} is refused: {error}"
            refused(uid, error)

        engine._hand_over, scheduler.refused = handing_over, refusing

    def walk(self) -> Counter:
        """Until all clients have their answers. Raises Broken."""
        rng = self.rng
        by_chance = SimpleNamespace(randbits=rng.getrandbits)
        with (
            mock.patch("server.scheduler.scheduler.SLOW_S", Coin(random.Random(self.seed))),
            mock.patch("server.sampling.row_state.secrets", by_chance),
            mock.patch("server.scheduler.disk_index.LEAST", LEAST),
            mock.patch("server.scheduler.disk_entries.LEAST", LEAST),
        ):
            try:
                for _ in range(rng.randrange(20, 150)):
                    self._act()
                    self._turn()
                self._heard = self.turns
                while self.line.held():
                    self._turn()
                    assert self.turns - self._heard < TURNS_OF_SILENCE, "requests that do not end"
                self._turn()  # what rank 0 has decided last
                self._check_end()
            except Exception as error:
                where = f"episode {self.seed} ({self.kind}), turn {self.turns}"
                raise Broken(f"{where}: {type(error).__name__}: {error}") from error
            finally:
                if self.disks:
                    self.disks.close()
        return self.seen

    # What happens.

    def _inputs(self) -> dict[int, Ticket]:
        """Requests for embeddings, by the uids of their inputs on the ranks."""
        running = self.scheduler._running.items()
        return {uid: one.ticket.of for uid, one in running if one.ticket.of}

    def _act(self) -> None:
        rng = self.rng
        self.embedders.act()
        while rng.random() < self._busy:
            self._ask()
        if self.asked and rng.random() < self._leaving:
            # Many while their prompt is computed, and what they began with is gone.
            begun = self._begun()
            late = [one for one, entry in begun if entry and entry not in self.index._entries]
            some = late or [one for one, _ in begun]
            one = rng.choice(some if some and rng.random() < 0.7 else self.asked[-8:])
            # Most leave with all of their choices; a stop string ends one alone.
            self._leave(one, one.tickets if rng.random() < 0.7 else [rng.choice(one.tickets)])
        in_use = any(entry in self.index._entries for _, entry in self._begun())
        # Now and then nothing kept has room, as when running requests need all of it.
        self.index.room = 40 if in_use and rng.random() < 0.2 + 0.3 * self._hunts else self._room
        if rng.random() < 0.02:
            self.scheduler._canary._due = 0
        if self.disks:
            self.seen["files harmed"] += self.disks.harm()
            if self.disks.by_chance(FORGETS):
                self.index.room = 40

    def _begun(self) -> list[tuple[Asked, int]]:
        """Requests of several choices whose prompt is not done, each with the entry it uses."""
        shared = self.ranks[0].engine._forks.values()
        entries = {uid: m.reuse[0] if m.reuse else 0 for m in shared for uid in (m.uid, *m.forks)}
        return [
            (one, entries[uids[0]])
            for one in self.asked
            if (uids := [t.uid for t in one.tickets if t.uid in entries])
        ]

    def _leave(self, one: Asked, tickets: list[Ticket]) -> None:
        for ticket in tickets:
            self.line.cancel(ticket)
            one.gone.add(ticket.uid)
            self.seen["leavers"] += 1

    def _ask(self) -> None:
        one = Asked(self._request())
        try:
            self.line.admit([one.first])
        except ApiError as error:
            assert error.status in (400, 429)
            return
        grammar = one.first.grammar
        one.may_fail = grammar is not None and grammar.breaks is not None
        self.asked.append(one)
        self.seen["requests"] += 1
        self.seen["choices"] += len(one.tickets)

    def _request(self) -> Ticket:
        rng = self.rng
        if self.index._entries and rng.random() < 0.3:  # its answer makes an entry redundant
            in_use = [entry for _, entry in self._begun() if entry in self.index._entries]
            entry = self.index._entries[rng.choice(in_use or list(self.index._entries))]
            return Ticket([*entry.tokens.tolist(), 5][: self.capacity - 1], 1, Common())
        count = min(rng.choice([1, 1, 1, 2, 2, 3, 4]), self.max_batch)
        prompt = self._prompt()
        if self._hunts and self.index._entries:
            count = max(2, count)
            prompt = rng.choice(list(self.index._entries.values())).tokens.tolist()
        if count > 1 and rng.random() < 0.5:
            # Long enough that much can happen before it is done.
            prompt = (prompt + rng.choices(range(4, VOCAB), k=250))[: self.capacity - 1]
        limit = self.capacity - len(prompt)
        most = max(1, min(limit, rng.choice(self._lengths)))
        grammar = None
        if rng.random() < 0.15:
            breaks = rng.choice([None, None, -1, 0, 1, 5, 20])
            error = rng.choice([ValueError, RuntimeError, KeyError])("broken")
            grammar = Multiples(rng.choice([2, 3]), breaks, error)
        common = some_parameters(rng)
        score = common.logprobs is not None and rng.random() < 0.5
        places = tuple(sorted(rng.sample(range(len(prompt)), min(len(prompt), rng.randrange(4)))))
        first = Ticket(
            prompt, most, common, score_prompt=score, grammar=grammar,
            places=Places(places, rng.choice([0, *places])), owner=rng.choice(["", "", "", "one"]),
        )  # fmt: skip
        first.followers = [
            Ticket(
                prompt,
                most,
                common,
                choice=n,
                grammar=grammar,
                events=first.events,
                owner=first.owner,
            )  # fmt: skip
            for n in range(1, count)
        ]
        return first

    def _prompt(self) -> list[int]:
        rng = self.rng
        most = self.capacity - 1
        if self._texts and rng.random() < 0.6:
            start = rng.choice(self._texts[-6:])
            start = start[: rng.randrange(1, len(start) + 1)] if rng.random() < 0.3 else start
        else:
            start = rng.choice([[], *SYSTEMS])
        new = rng.choices(range(4, VOCAB), k=rng.choice([1, 2, 17, 60, 200, 280]))
        return (start + new)[:most]

    # Faults of ours: a message that says something wrong.

    def _compose(self) -> list[Message]:
        messages = [self._damaged(message) for message in self.scheduler.compose()]
        for message in messages:
            self.seen[type(message).__name__] += 1
            self.seen["parts"] += isinstance(message, Cancel) and bool(message.keep)
            if isinstance(message, Submit) and message.reuse:
                self.seen["reuses"] += 1
        return messages

    def _damaged(self, message: Message) -> Message:
        rng = self.rng
        if rng.random() >= self._damages:
            return message
        if isinstance(message, Submit) and message.embed:
            self.embedders.may_fail.add(self._inputs()[message.uid].uid)
        elif isinstance(message, Submit):
            for one in self.asked:
                one.may_fail |= message.uid in {ticket.uid for ticket in one.tickets}
        if isinstance(message, Submit | Cut):
            self.seen["damaged"] += 1
        return damage(message, rng)

    # What must hold.

    def _turn(self) -> None:
        self.turns += 1
        for rank in self.ranks:
            rank.turn()
        if len(self.ranks) > 1:
            assert not self.link.sums, "rank 0 has a collective that the worker had not"
            assert self.ranks[0].holds() == self.ranks[1].holds(), "the ranks hold different things"
        self.link.sums.clear()
        if self.embedders.read():
            self._heard = self.turns
        for one in self.asked:
            if not one.first.events.empty():
                self._heard = self.turns
            one.read()
            if len(one.tickets) > 1 and any(
                isinstance(event, Failed) for events in one.seen.values() for event in events
            ):
                # The HTTP side ends the whole request.
                self._leave(one, [t for t in one.tickets if t.uid not in one.gone])
            for ticket in one.tickets:
                if one.ended(ticket) and ticket.uid not in one.gone and self.rng.random() < 0.5:
                    answer = [e.id for e in one.seen[ticket.choice] if isinstance(e, Token)]
                    self._texts = [*self._texts[-9:], [*ticket.prompt, *answer]]
        self._check_turn()

    def _check_turn(self) -> None:
        engine, running = self.ranks[0].engine, self.scheduler._running
        held = set(engine.rows) | set(engine._scoring)
        held |= {fork for message in engine._forks.values() for fork in message.forks}
        assert held == set(running), f"the ranks hold {held}, the scheduler {set(running)}"
        assert all(row.uid == uid for uid, row in engine.rows.items())
        rows = self.ranks[0].holds()
        in_rows = [row.uid for row in engine.decoding.rows if not row.gone]
        assert sorted(rows["waiting"] + rows["prompts"] + in_rows) == sorted(rows["rows"])
        waiting = [one.ticket.uid for group in self.scheduler._waiting for one in group]
        arrived = list(self.line._queue.queue)
        arrived = [one.uid for first in arrived for one in (first, *first.followers)]
        own = [uid for uid in running if uid not in self._inputs()]
        embeds = [one.ticket.uid for one in self.scheduler._embeddings._requests]
        found = sorted([*waiting, *own, *arrived, *embeds])
        assert found == sorted(self.line._held), "tickets are lost"
        check_kept(self.index, engine.prefixes)

    def _check_end(self) -> None:
        assert not self.line.held(), "requests that do not end"
        assert not self.scheduler._running and not list(self.scheduler._waiting)
        self.embedders.check_end()
        for one in self.asked:
            for ticket in one.tickets:
                self._check_answer(one, ticket)
        for rank in self.ranks:
            held = rank.holds()
            kept = held.pop("kept")
            assert not any(held.values()), f"left behind: {held}"
            assert rank.engine.decoding.step is None
            assert not rank.engine.decoding.caches.layers
            rank.engine.prefixes.drop(kept)
        self.seen["right drafts"] += self.drafts.right
        self.seen["pauses"] += self.status.record.pauses
        if self.shard.last.ways.quantised:
            self.seen["pauses in fewer bits"] += self.status.record.pauses
            self.seen["answers in fewer bits"] += self.seen["answers"]
        self.seen["evicted tokens"] += self.index.evicted_tokens
        if self.disks:
            use = self.disks.index.look()
            self.seen["tokens from disk"] += use.hit_tokens
            self.seen["disk failures"] += use.failures

    def _check_answer(self, one: Asked, ticket: Ticket) -> None:
        events = one.seen.get(ticket.choice, [])
        ends = [place for place, event in enumerate(events) if is_end(event)]
        who = f"request {ticket.uid} (choice {ticket.choice} of {len(one.tickets)})"
        assert len(ends) <= 1, f"{who} has {len(ends)} ends"
        assert not ends or ends[0] == len(events) - 1, f"{who} goes on after its end"
        assert ends or ticket.uid in one.gone, f"{who} has no end"
        failed = bool(ends) and isinstance(events[-1], Failed)
        assert not failed or one.may_fail, f"{who} failed: {failed and events[-1].error.message}"
        self.seen["failures" if failed else "answers" if ends else "left"] += 1
        if ticket.common.sampling.seed is None and ticket.common.sampling.temperature:
            return
        got = [event for event in events if isinstance(event, Token)]
        whole = ends and not failed
        if len(got) > LONG and is_plain(ticket):
            check_by_forward_pass(self.shard, ticket, [token.id for token in got], who)
            return
        right, scores = quiet_answer(self.shard, ticket, ticket.max_tokens if whole else len(got))
        ids, wanted = [token.id for token in got], [token.id for token in right]
        assert ids == (wanted if whole else wanted[: len(ids)]), f"{who}: {ids}, alone: {wanted}"
        if whole:
            assert got[-1].finish == right[-1].finish
        check_scores([t.score for t in got], [t.score for t in right[: len(got)]], who)
        for event in events:
            if isinstance(event, Scored):
                assert ticket.score_prompt or one.gone
                check_scores(event.scores, scores or event.scores, who)
        if ticket.score_prompt and got and len(ticket.prompt) > 1:
            assert sum(isinstance(event, Scored) for event in events) == 1, f"{who} is not scored"
