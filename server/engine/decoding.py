"""Decoding rows: mlx-lm's GenerationBatch, with a step in which each row has one chooser.

Used by batches.py, on the main thread of every rank. A step is made while the last one runs, its
tokens are handed out as soon as they are known, and a row that leaves does so at the next step.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
from mlx_lm.generate import GenerationBatch

from server.engine.rows_apart import are_apart, rows_of
from server.protocol.failures import is_shared
from server.sampling.choosers import Shared

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decoded:
    """One row's next token. finish is None, "stop" or "length". tokens and cache: of a finished
    row that is to be kept, everything in its cache, and the cache."""

    uid: int
    token: int
    finish: str | None
    tokens: list[int] | None = None
    cache: list | None = None


@dataclass(frozen=True)
class Stepped:
    """A decode step: the next tokens of rows, and the header that came with them. step_s: seconds
    from handing it to MLX to its tokens, chunks of prompts between them left out; 0 if no row had
    to wait for it. launch_s: those that MLX took to take in a step. lost: rows that are no more,
    as the step after it cannot be computed, for that error."""

    rows: list[Decoded]
    header: list[int]
    step_s: float
    launch_s: float
    lost: Sequence[int] = ()
    error: Exception | None = None


class LockstepBatch(GenerationBatch):
    """Decoding rows. `samplers` holds what the chooser made of each row, `fallback_sampler` the
    Step, `_next_tokens` this rank's part of the next tokens."""

    def __init__(self, *arguments, first: Sequence[int] = (), **named) -> None:
        super().__init__(*arguments, **named)
        self.kept: set[int] = set()  # uids whose cache is wanted when they finish
        self._first = dict(zip(self.uids, first, strict=True))  # tokens, not handed out yet
        self._ahead: set[int] = set()  # uids of rows whose next token has been handed out
        self._gone: set[int] = set()  # uids of rows that have left, but for their place
        self._held: dict[int, int] | None = None  # tokens by uid of a step that is put off
        self._built: list[list[mx.array]] = []  # the next step in its parts, until MLX has it
        self._launched = self._over = 0.0  # when the running step was, if it runs or is over
        self._launch_s = 0.0  # how long MLX took to take it in

    @property
    def live(self) -> int:
        """Rows that go on."""
        return len(self.uids) - len(self._gone)

    def newcomers(self) -> list[Decoded]:
        """The first tokens of rows that have joined since the last call."""
        tokens, self._first = self._first, {}
        if self._held is not None:
            self._held |= tokens
        self._ahead.update(tokens)
        places = [i for i, uid in enumerate(self.uids) if uid in tokens]
        return self._hand_out(places, [tokens[self.uids[i]] for i in places])

    def next(self, late: bool, more: bool) -> Stepped:
        """One token for every row that has not had it yet, and the header. late: the step after
        it is not handed to MLX; launch() does that. more: prompts are waiting."""
        self._drop_gone()
        launched, over = self._launched, self._over
        self._launched = self._over = 0.0
        counts = zip(self.uids, self._num_tokens, self.max_tokens, strict=True)
        goes_on = any(count + (uid not in self._ahead) < most for uid, count, most in counts)
        # Where every row has reached its limit, nobody would read what a further step makes, and
        # the next request would wait for it.
        shared = self._share()
        # The next step is made while this one runs. But prompts that are computed before it is
        # launched should be part of it, and while nothing runs, nothing is lost by looking first
        # whether there is news.
        hold = goes_on and late and (more or not launched)
        build = goes_on and not hold
        error = self._begin(shared.inputs, late) if build else None
        # Nothing is done with them before this has seen that they are whole.
        tokens, header = shared.read()
        step_s = (over or time.monotonic()) - launched if launched else 0.0
        waiting = [i for i, uid in enumerate(self.uids) if uid not in self._ahead]
        self._ahead.clear()
        if hold:
            self._held = dict(zip(self.uids, tokens, strict=True))
        if build:
            self._append(tokens)
        if error is not None:
            self.kept.clear()  # their caches are not what they were
        rows = self._hand_out(waiting, [tokens[i] for i in waiting])
        lost = [] if error is None else self.lose()
        return Stepped(rows, header, step_s, self._launch_s, lost, error)

    def _begin(self, inputs: mx.array, late: bool) -> Exception | None:
        """Makes the next step, and launches it. Returns what stands against it: this step's tokens,
        and the header with them, are on their way, and have to be read all the same."""
        try:
            self._build(inputs)
            if not late:
                self.launch()
        except Exception as error:
            if not is_shared(error):
                raise
            return error
        return None

    def lose(self) -> list[int]:
        """Gives up all rows, whatever state they are in. Returns their uids."""
        uids = [uid for uid in self.uids if uid not in self._gone]
        self._gone = set(self.uids)  # and none that a filter which failed has dropped
        self.leave([])
        return uids

    def _resume(self) -> None:
        """Makes the step that next() has put off, with the rows that have joined since."""
        self._drop_gone()
        tokens = [self._held[uid] for uid in self.uids]
        self._held = None
        self._ahead.clear()
        self._build(mx.array(tokens, dtype=mx.int32))
        self._append(tokens)

    def _append(self, tokens: list[int]) -> None:
        for text, token in zip(self.tokens, tokens, strict=True):
            text.append(token)  # the next step puts it into the cache

    def _drop_gone(self) -> None:
        if self._gone:
            self.filter([i for i, uid in enumerate(self.uids) if uid not in self._gone])
            self._gone.clear()

    def _hand_out(self, places: list[int], tokens: list[int]) -> list[Decoded]:
        """The next tokens of the rows at places. Rows that end with them leave."""
        decoded, finished = [], []
        for i, token in zip(places, tokens, strict=True):
            uid, finish = self.uids[i], None
            self._num_tokens[i] += 1
            if self._num_tokens[i] >= self.max_tokens[i]:
                finish = "length"
            if self._matchers[i].advance(token):
                finish = "stop"
            text = cache = None
            if finish is not None:
                finished.append(uid)
                if uid in self.kept:
                    text, cache = self.tokens[i], self._extract(i)
            decoded.append(Decoded(uid, token, finish, text, cache))
        self.leave(finished)
        return decoded

    def _extract(self, place: int) -> list | None:
        """A row's cache; None where it cannot be had, and so is not kept."""
        try:
            return self.extract_cache(place)
        except Exception as error:
            if not is_shared(error):
                raise
            log.warning("a row's cache cannot be kept: %s: %s", type(error).__name__, error)
            return None

    def settle(self) -> None:
        """Waits for the running step, if there is one."""
        if self._launched:
            mx.eval(self._next_tokens)
            self._over = time.monotonic()

    def leave(self, uids: list[int]) -> None:
        """Takes rows out: at the next step, since to filter caches waits for the step that is
        running, and the tokens of the last one should be on their way meanwhile."""
        self._gone.update(uids)
        self.kept.difference_update(uids)
        for uid in uids:
            self._first.pop(uid, None)
        if not self.live:
            self.filter([])
            for left in (self._gone, self._ahead, self._first, self._built):
                left.clear()
            self._held = None
            self._launched = 0.0

    def _step(self) -> None:
        """mlx-lm's batches step when they are made. Here newcomers have their first token already,
        and share the step of all rows: one of their own would take as long."""
        self._next_logprobs = [None] * len(self.uids)  # filter() expects one entry a row

    def launch(self) -> None:
        """Hands the next step to MLX, if that has not been done; first makes one put off."""
        if self._held is not None:
            self._resume()
        if self._built:
            self._launched = time.monotonic()
            for part in self._built:
                mx.async_eval(*part)
            self._launch_s = time.monotonic() - self._launched
            self._built = []

    def _build(self, inputs: mx.array) -> None:
        """The next step, lazy. inputs: the rows' last tokens, [B] int32."""
        if are_apart(self.prompt_cache):
            # Handed to MLX one by one: in a pipeline nothing else orders what ranks receive.
            rows = [
                self.model(inputs[i : i + 1, None], cache=cache)[:, -1, :]
                for i, cache in enumerate(rows_of(self.prompt_cache))
            ]
            logits = mx.concatenate(rows)
        else:
            rows, logits = [], self.model(inputs[:, None], cache=self.prompt_cache)[:, -1, :]
        self._next_tokens, extras = self.fallback_sampler.propose(logits, self.samplers, inputs)
        self._built = [*([row] for row in rows), [self._next_tokens, *extras]]
        self._next_logprobs = [None] * len(self.uids)  # filter() expects one entry a row

    def _share(self) -> Shared:
        """The running step's tokens, and the header behind them."""
        shared = self.fallback_sampler.share(self._next_tokens)
        # First on every rank: in a pipeline a rank's recv depends on nothing, and could overtake.
        mx.async_eval(shared.sealed.total)
        return shared

    def extend(self, batch: "LockstepBatch") -> None:
        super().extend(batch)
        self._first |= batch._first
        # Known by the time that a row leaves, or that would wait for a running step.
        mx.async_eval([c.left_padding for c in self.prompt_cache if hasattr(c, "left_padding")])
