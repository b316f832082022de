"""The engine: requests by uid, over batches of rows. Submit, cancel, step.

Runs on the main thread of every rank; every rank makes the same calls in the same order. Choices
of one prompt share its prefill; a prompt whose log-probabilities are wanted is prefilled apart.

What a message refers to (a kept prefix) is taken when the message comes, and never looked up again:
a later message may have changed it. A message that fails leaves nothing of it behind.
"""

import copy
import itertools
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from server.engine.acceptance import check
from server.engine.batch_caches import snapshot
from server.engine.decoding import Decoded, Decoding
from server.engine.last_logits import LastLogits
from server.engine.prefix_store import PrefixStore
from server.engine.prompts import Chunk, Done, Prompts
from server.engine.quantised_kv import next_caches
from server.engine.row import Row
from server.engine.turn import Scoring, Turn
from server.protocol.events import Embedded, Prefilled, Token
from server.protocol.failures import is_shared
from server.protocol.row_lengths import SLACK
from server.sampling.choosers import Chooser, Step
from server.wire.link import Link
from server.wire.mailbox import Header
from server.wire.messages import LEAST_KEPT, Submit

log = logging.getLogger(__name__)


class Engine:
    """Requests by uid: submit, cancel, step. prefill_step: tokens of a full chunk. slack: tokens by
    which rows may differ and share arrays, whatever their length."""

    def __init__(
        self,
        model: LastLogits,
        link: Link,
        chooser: Chooser,
        *,
        max_batch: int,
        prefill_step: int,
        eos: list[int],
        slack: int = SLACK,
    ) -> None:
        self._model = model.model
        self._whole, self._quantised = model.ways.whole, model.ways.quantised
        self._alike = model.alike
        self._chooser = chooser
        self._prefill_step = prefill_step
        self._pace, self._late = prefill_step, False
        self.beside, self.interrupted = 0, False  # other models' rows that decode; as a Turn has it
        self._eos, step = frozenset(eos), Step(link, chooser)
        self.prompts = Prompts(model, step, most=max_batch, full=prefill_step)
        self.decoding = Decoding(model, step, slack=slack)
        self.rows: dict[int, Row] = {}  # by uid
        self._forks: dict[int, Submit] = {}  # by the uid of the first, until it is prefilled
        self._scoring: dict[int, Scoring] = {}
        self._started: dict[int, Submit] = {}  # by uid, those whose cache is to be kept
        self._failed: list[tuple[int, Exception]] = []  # and nobody has been told
        self.prefixes = PrefixStore()

    @property
    def busy(self) -> bool:
        """Whether step() has anything to do. The same on every rank."""
        return bool(self.decoding.live or self.prefilling)

    @property
    def prefilling(self) -> bool:
        """Whether the next turn has a chunk of prompts."""
        return bool(self.prompts or self._scoring)

    def submit(self, message: Submit) -> None:
        """Puts a prompt in; it is prefilled in the coming steps.

        Raises Refused before anything is changed. Whatever it raises, no part of it is left.
        """
        at_work = self.rows.keys() | self._scoring.keys()
        at_work |= {fork for other in self._forks.values() for fork in other.forks}
        check(message, at_work, self.prefixes)
        try:
            self._begin(message)
        except Exception:
            self.give_up(message.uid)
            raise

    def cancel(self, uid: int, keep: int = 0) -> list[tuple[int, list[int]]]:
        """Drops a request wherever it is; unknown uids are ignored. Returns what is kept of it."""
        for first, message in list(self._forks.items()):
            if uid in message.forks:
                left = tuple(fork for fork in message.forks if fork != uid)
                self._forks[first] = replace(message, forks=left)
                if not left:
                    del self._forks[first]
        if uid in self._forks:
            self._hand_over(self._forks[uid])
            return []
        row, caches = self.rows.get(uid), None
        if keep and row is not None and row.done and len(row.tokens) >= LEAST_KEPT:
            caches = row.caches if row.segments else self.decoding.extract(row)
        self._drop(uid)
        return [] if caches is None else [self._keep(keep, row.tokens, caches)]

    def give_up(self, uid: int) -> tuple[int, ...]:
        """Drops a request whose message or prompt has failed, and all that wait for the same
        prompt: they are one request. Returns their uids."""
        together = next((m for m in self._forks.values() if uid in (m.uid, *m.forks)), None)
        uids = (uid,) if together is None else (together.uid, *together.forks)
        for one in uids:
            self._forks.pop(one, None)
        for one in uids:
            self._drop(one)
        return uids

    def steer(self, header: Header) -> None:
        """From now on: tokens of prompts that those who decode can bear between two steps, whether
        MLX has a step after messages and prompts, and how many drafts come with its tokens."""
        self._pace = min(header.chunk, self._prefill_step)
        self._late = bool(header.late)
        self.decoding.room = header.drafts

    def step(self, deliver: Callable[[Turn], None] = lambda turn: None) -> Turn:
        """One prefill chunk, where there is any (a full one if nothing decodes), then one decode
        step of all whose prompts are done.

        deliver is called with each of the two as soon as it is there. Returns both in one.
        """
        chunk = decoded = Turn([], [])
        if not self._late:
            self._launch()
        if self.prefilling:
            chunk = self._prefill()
            deliver(chunk)
        self._launch()
        if self.decoding.live or self._failed:
            decoded = self._decode()
            deliver(decoded)
        if not self.decoding.live:
            self._launch()  # there may be no other turn
        return replace(
            decoded,
            events=chunk.events + decoded.events,
            kept=chunk.kept + decoded.kept,
            refused=[*chunk.refused, *decoded.refused],
            computed=chunk.computed,
            chunk_s=chunk.chunk_s,
        )

    def _launch(self) -> None:
        """Hands the next decode step to MLX, and then what is to be kept of the last one: some of
        it is computed in that step, so before it would be waited for."""
        try:
            self.decoding.launch()
        except Exception as error:
            self._lose(error, self.decoding.lose)
        self.prefixes.compute()

    def _lose(self, error: Exception, lose: Callable[[], Iterable[Row]], *uids: int) -> None:
        """A part of a step has failed. Where every rank fails alike, the requests in it are over,
        and no others; else this rank is. lose: gives up a batch, and returns its rows."""
        # In a pipeline the others have other layers, and may be waiting for this one's.
        if not (self._alike and is_shared(error)):
            raise error
        log.error("a batch is given up", exc_info=error)
        for uid in [*uids, *[row.uid for row in lose()]]:
            self._failed += [(one, error) for one in self.give_up(uid)]

    def _tell_failed(self) -> list[tuple[int, Exception]]:
        failed, self._failed = self._failed, []
        return failed

    def _prefill(self) -> Turn:
        chunk = self._chunk()
        if self._scoring:
            chunk = max(1, chunk // 2)  # the two kinds of prompts share it
        # Or the running step's time would be taken for the chunk's.
        self.decoding.settle()
        began = time.monotonic()
        events: list[tuple[int, Token | Prefilled | Embedded]] = []
        kept: list[tuple[int, list[int]]] = []
        refused: list[tuple[int, Exception]] = []
        work = Chunk()
        try:
            work = self.prompts.compute(chunk)
        except Exception as error:
            self._lose(error, self.prompts.lose)
        ended, computed = work.ended, work.computed
        for done in work.done:
            row = done.row
            events.append((row.uid, Prefilled(*done.progress)))
            if done.at_end:
                refused += self._or_give_up(row.uid, self._keep_prompt, done, kept)
            if done.at_end and row.ready and row.uid in self._forks and not row.gone:
                refused += self._or_give_up(row.uid, self._fork_all, row.uid, row.caches)
        for row, vector in work.embedded:
            del self.rows[row.uid]
            events.append((row.uid, Embedded(vector)))
        if ended is not None:
            try:
                self.decoding.join(ended)
            except Exception as error:
                # Nobody knows what the decoding rows' caches are now.
                rows = [row for row in ended.rows if not row.gone]
                self._lose(error, lambda: dict.fromkeys([*rows, *self.decoding.lose()]))
        if self._scoring:
            event, scored, failed = self._score_chunk(next(iter(self._scoring.values())), chunk)
            events += event
            computed += scored
            refused += failed
        refused += self._tell_failed()
        self._note(self.decoding.newcomers(), events, kept)
        return Turn(events, kept, computed, time.monotonic() - began, refused=refused)

    def _decode(self) -> Turn:
        if not self.decoding.live:
            return Turn([], [], refused=self._tell_failed())
        try:
            step = self.decoding.next(self._late, len(self.prompts) > 0)
        except Exception as error:
            self._lose(error, self.decoding.lose)
            return Turn([], [], refused=self._tell_failed())
        events: list[tuple[int, Token]] = []
        kept: list[tuple[int, list[int]]] = []
        self._note(step.rows, events, kept)
        if step.error is not None:
            self._lose(step.error, lambda: step.lost)
        return Turn(
            events,
            kept,
            step_s=step.step_s,
            launch_s=step.launch_s,
            header=Header.of(step.header),
            width=step.width,
            refused=self._tell_failed(),
            interrupted=self.interrupted,
        )

    def _note(self, rows: list[Decoded], events: list, kept: list) -> None:
        """Adds the rows' tokens to a turn's events, and forgets those that are over."""
        for one in rows:
            row = one.row
            token = Token(one.token, one.finish, drafted=one.drafted, wrong=one.wrong)
            events.append((row.uid, token))
            if one.finish is not None:
                del self.rows[row.uid]
                message = self._started.pop(row.uid, None)
                if one.caches is not None and len(row.tokens) >= LEAST_KEPT:
                    kept.append(self._keep(message.store, row.tokens, one.caches))

    def _chunk(self) -> int:
        """Tokens of prompts to compute in this turn."""
        decoding, waiting = self.decoding.live + self.beside, self.prompts.newcomers
        if not decoding:
            return self._prefill_step
        # Where more wait than decode, those who decode bear more, or newcomers would take turns.
        return min(self._prefill_step, self._pace * max(decoding, waiting) // decoding)

    def _begin(self, message: Submit) -> None:
        if message.forks:
            self._forks[message.uid] = message
        if message.score and len(message.prompt) > 1:
            self._scoring[message.uid] = Scoring(message, make_prompt_cache(self._model))
            return
        cache, start = None, 0
        if message.reuse:
            entry, start = message.reuse
            cache = self.prefixes.take(entry, start)
        self._insert(message, message.uid, start, cache)
        if message.forks and start == len(message.prompt) - 1:
            self._fork_all(message.uid, cache)

    def _hand_over(self, message: Submit) -> None:
        """The first of several choices is gone before its prompt was done: what is computed of it
        is the next one's, from where it is. So nothing has to be looked up again."""
        heir, *rest = message.forks
        inherited = replace(message, uid=heir, forks=tuple(rest))
        if message.uid in self._scoring:
            # Rank 0 has noted what was computed so far for the one that is gone: from the start.
            self._scoring[heir] = Scoring(inherited, make_prompt_cache(self._model))
        else:
            state = self._chooser.row(heir, message.draw(heir))
            self.rows[message.uid].hand_over(heir, state)
            self.rows[heir] = self.rows.pop(message.uid)
        if self._started.pop(message.uid, None) is not None:
            self._started[heir] = inherited
        del self._forks[message.uid]
        if rest:
            self._forks[heir] = inherited
        self._drop(message.uid)

    def _drop(self, uid: int) -> None:
        """Forgets one uid, and the row that is its own."""
        for mine in (self._forks, self._scoring, self._started):
            mine.pop(uid, None)
        row = self.rows.pop(uid, None)
        if row is not None:
            self.prompts.remove(row)
            self.decoding.leave([row])

    def _insert(self, message: Submit, uid: int, start: int, cache: list | None = None) -> None:
        """start: how many tokens of the prompt are in cache."""
        prompt = list(message.prompt)
        # Prefill stops at each place where the cache is to be kept, and where other choices of
        # the same prompt begin: before the last token.
        ends = {start, len(prompt)} | {at for at, _ in message.keep if start < at}
        if message.forks or self._whole:
            ends.add(len(prompt) - 1)
        segments = [prompt[a:b] for a, b in itertools.pairwise(sorted(ends))]
        row = Row(
            uid,
            segments,
            tokens=prompt[:start],
            caches=make_prompt_cache(self._model) if cache is None else cache,
            state=self._chooser.row(uid, message.draw(uid)),
            limit=message.max_tokens,
            stops=frozenset(message.stop_ids) | (frozenset() if message.ignore_eos else self._eos),
            store=bool(message.store) and uid == message.uid,
            embed=message.embed,
        )
        if uid == message.uid and (message.keep or message.store):
            self._started[uid] = message
        self.prompts.put(row)
        self.rows[uid] = row

    def _keep_prompt(self, done: Done, kept: list) -> None:
        """Keeps a prompt's cache, if rank 0 wants it with so many new tokens in it."""
        row, message = done.row, self._started.get(done.row.uid)
        if message is None:
            return
        length = done.progress[0] + (message.reuse[1] if message.reuse else 0)
        entries = [entry for at, entry in message.keep if at == length]
        kept += [self._keep(entry, row.tokens, snapshot(row.caches)) for entry in entries]

    def _keep(self, entry: int, tokens: list[int], cache: list) -> tuple[int, list[int]]:
        self.prefixes.put(entry, next_caches(self._quantised, cache), len(tokens))
        return entry, list(tokens)

    def _or_give_up(self, uid: int, act: Callable, *arguments: Any) -> list[tuple[int, Exception]]:
        """For what a step does with a message: there is none at hand that could be refused.
        Returns who failed."""
        try:
            act(*arguments)
        except Exception as error:
            if not is_shared(error):
                raise
            return [(one, error) for one in self.give_up(uid)]
        return []

    def _fork_all(self, uid: int, cache: list | None) -> None:
        """Puts the other choices in, each with its own copy of the prompt's cache."""
        message = self._forks[uid]
        for fork in message.forks:
            # A deep copy shares the arrays, which are never changed in place.
            self._insert(message, fork, len(message.prompt) - 1, copy.deepcopy(cache))
        del self._forks[uid]  # until now they are one request, which fails as one

    def _score_chunk(
        self, job: Scoring, chunk: int
    ) -> tuple[list[tuple[int, Prefilled]], int, list[tuple[int, Exception]]]:
        """One chunk of a prompt with its logits; the last one hands over to the generator.

        Returns its event, the tokens computed, and who failed.
        """
        uid, prompt = job.message.uid, job.message.prompt
        if self._whole:
            chunk = self._prefill_step
        if self._quantised is not None:
            chunk = self._quantised.within(job.done, chunk)
        start, end = job.done, min(job.done + chunk, len(prompt) - 1)
        try:
            job.cache = next_caches(self._quantised, job.cache)
            logits = self._model(mx.array([prompt[start:end]]), cache=job.cache)[0]
        except Exception as error:
            self._lose(error, lambda: [], uid)
            return [], 0, []
        extras = self._chooser.score(uid, logits, list(prompt[start + 1 : end + 1]))
        mx.eval([layer.state for layer in job.cache], extras)
        job.done = end
        refused = []
        if end == len(prompt) - 1:
            del self._scoring[uid]
            refused = self._or_give_up(uid, self._begin_scored, job)
        return [(uid, Prefilled(end, len(prompt)))], end - start, refused

    def _begin_scored(self, job: Scoring) -> None:
        """Its prompt is done but for the last token, which goes the way of all others."""
        uid = job.message.uid
        self._insert(job.message, uid, len(job.message.prompt) - 1, copy.deepcopy(job.cache))
        if uid in self._forks:
            self._fork_all(uid, job.cache)
