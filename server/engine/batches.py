"""mlx-lm's continuous batching, with our own step, our own turns and fair prefill.

Runs on the main thread of every rank. mlx-lm's BatchGenerator holds the queues, the batches and
their caches. Two things are ours. Its step lets each rank sample for itself, and computes
log-probabilities of the whole vocabulary for every row, wanted or not. And its next() prefills
one chunk of fixed size for every prompt; here a turn's chunk has a size that the caller sets, is
shared by the prompts, and gives a prompt that ends in it its first token. The overridden names
are private to mlx-lm 0.32, which is why versions are pinned.
"""

import itertools
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, GenerationBatch, PromptProcessingBatch

from server.engine.last_logits import LastLogits
from server.sampling.choosers import Shared, Step
from server.sampling.random_state import RandomState

PROMPTS_TOGETHER = 8  # share a chunk at most; each is padded to the widest
LEAST_SHARE = 16  # tokens of a chunk for each of them
STRETCH = 1.25  # a chunk grows so much rather than leave a prompt's last tokens for the next
STEPS_BETWEEN_SWEEPS = 512  # as mlx-lm: then MLX gives back what it keeps for reuse

Response = PromptProcessingBatch.Response


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
    to wait for it. launch_s: those that MLX took to take in a step."""

    rows: list[Decoded]
    header: list[int]
    step_s: float
    launch_s: float


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
        self._built: list[mx.array] = []  # the next step, until MLX has it
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
        if build:
            self._build(shared.inputs)
            if not late:
                self.launch()
        # Nothing is done with them before this has seen that they are whole.
        tokens, header = shared.read()
        step_s = (over or time.monotonic()) - launched if launched else 0.0
        waiting = [i for i, uid in enumerate(self.uids) if uid not in self._ahead]
        self._ahead.clear()
        if hold:
            self._held = dict(zip(self.uids, tokens, strict=True))
        if build:
            self._append(tokens)
        rows = self._hand_out(waiting, [tokens[i] for i in waiting])
        return Stepped(rows, header, step_s, self._launch_s)

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
                    text, cache = self.tokens[i], self.extract_cache(i)
            decoded.append(Decoded(uid, token, finish, text, cache))
        self.leave(finished)
        return decoded

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
            mx.async_eval(*self._built)
            self._launch_s = time.monotonic() - self._launched
            self._built = []

    def _build(self, inputs: mx.array) -> None:
        """The next step, lazy. inputs: the rows' last tokens, [B] int32."""
        logits = self.model(inputs[:, None], cache=self.prompt_cache)[:, -1, :]
        self._next_tokens, extras = self.fallback_sampler.propose(logits, self.samplers, inputs)
        self._built = [self._next_tokens, *extras]
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


class LockstepPrompts(PromptProcessingBatch):
    """Prefilling rows, which become a LockstepBatch. `model` is a LastLogits."""

    def compute(self, parts: list[list[int]], ends: list[int]) -> LockstepBatch | None:
        """One chunk, a part of each row's prompt. The rows at `ends` have all of theirs with it:
        they leave, as a batch with their first tokens."""
        self.model.want(ends, [len(parts[i]) - 1 for i in ends])
        self.prompt(parts)
        if not ends:
            return None
        logits = self.model.take()
        done = self
        if len(ends) < len(self):
            done = self.split(ends)  # copies every cache
        inputs = mx.array([parts[i][-1] for i in ends])
        tokens, extras = self.fallback_sampler.propose(logits, done.samplers, inputs)
        # By themselves, as the step that would carry them takes long.
        first = self.fallback_sampler.share_first(tokens)
        mx.eval(first.sealed.total, tokens, *extras)
        batch = LockstepBatch(
            self.model.model,
            done.uids,
            tokens,
            done.prompt_cache,
            done.tokens,
            done.samplers,
            done.fallback_sampler,
            done.logits_processors,
            done.stop_sequences,
            done.max_tokens,
            first=first.read()[0],
        )
        if done is self:
            self.uids, self.prompt_cache, self.tokens = [], [], []
            self.samplers, self.logits_processors, self.max_tokens = [], [], []
            self.stop_sequences = []
        return batch


class LockstepGenerator(BatchGenerator):
    """BatchGenerator over the two classes above. A turn is prefill(), newcomers(), decode()."""

    def __init__(self, model: LastLogits, step: Step, *, max_batch: int, prefill_step: int):
        super().__init__(
            model.model,
            sampler=step,
            completion_batch_size=max_batch,
            prefill_batch_size=min(PROMPTS_TOGETHER, max_batch),
            prefill_step_size=prefill_step,
            # All collectives on one stream, in one order: the default one.
            stream=mx.default_stream(mx.default_device()),
        )
        self._prompt_batch = LockstepPrompts.empty(model, step, prefill_step_size=prefill_step)
        self._generation_batch = LockstepBatch.empty(model.model, step)
        # As after the last row left: newcomers bring their own tokens (int32, not uint32).
        self._generation_batch._next_tokens = None

    @property
    def decoding(self) -> int:
        """Rows that decode."""
        return self._generation_batch.live

    @property
    def waiting(self) -> int:
        """Prompts that are not done."""
        return len(self._prompt_batch) + len(self._unprocessed_sequences)

    @property
    def busy(self) -> bool:
        return bool(self.decoding or self.waiting)

    def launch(self) -> None:
        """Hands the next decode step to MLX, if that has not been done."""
        self._generation_batch.launch()

    def settle(self) -> None:
        """Waits for the running decode step, if there is one."""
        self._generation_batch.settle()

    def put(self, segments: list[list[int]], **fields) -> int:
        """A prompt; prefill stops after each of its segments. Returns its uid. fields: as
        insert_segments', each a list of one."""
        (uid,) = self.insert_segments([segments], **fields)
        # mlx-lm has set the last token apart, for a step of its own.
        self._unprocessed_sequences[-1][1][:] = segments
        return uid

    def keep(self, uid: int) -> None:
        """The row's cache is wanted when it finishes."""
        self._generation_batch.kept.add(uid)

    def hand_over(self, uid: int, sampler: RandomState) -> None:
        """A prompt that is not done is computed for somebody else from now on."""
        for place, sequence in enumerate(self._unprocessed_sequences):
            if sequence[0] == uid:
                self._unprocessed_sequences[place] = (*sequence[:5], sampler, *sequence[6:])
        if uid in self._prompt_batch.uids:
            self._prompt_batch.samplers[self._prompt_batch.uids.index(uid)] = sampler

    def remove(self, uids: list[int]) -> None:
        """Drops requests wherever they are."""
        self._generation_batch.kept.difference_update(uids)
        found = self._find_uids(uids)
        decoding = [uid for uid, (stage, _) in found.items() if stage == 2]
        self._generation_batch.leave(decoding)
        super().remove([uid for uid in found if uid not in decoding])

    def newcomers(self) -> list[Decoded]:
        """The first tokens of the prompts that the last chunk has ended."""
        return self._generation_batch.newcomers()

    def decode(self, late: bool) -> Stepped:
        """A decode step of all rows; see LockstepBatch.next."""
        self._counters.generation_steps += 1
        if self._counters.generation_steps % STEPS_BETWEEN_SWEEPS == 0:
            mx.clear_cache()
        return self._generation_batch.next(late, self.waiting > 0)

    def prefill(self, tokens: int) -> tuple[list[Response], int]:
        """One chunk of about that many tokens, shared by the prompts in it.

        Prompts that end in it decode from now on, and newcomers() has their first tokens. Returns
        how far each of them has come, and the tokens computed, padding included.
        """
        self._gather(tokens)
        uids, parts, responses = list(self._prompt_batch.uids), [], []
        if not uids:
            return [], 0
        share = _share(tokens, len(uids))
        most = min(share * STRETCH, self.prefill_step_size)
        for uid, progress in zip(uids, self._currently_processing, strict=True):
            segments, done, total = progress
            size = share if len(segments[0]) > most else len(segments[0])
            parts.append(segments[0][:size])
            segments[0] = segments[0][size:]
            at_end = not segments[0]
            if at_end:
                segments.pop(0)
            progress[1] = done + len(parts[-1])
            responses.append(
                Response(uid, (progress[1], total), at_end, at_end and _ready(segments))
            )
        left = [bool(segments) for segments, _, _ in self._currently_processing]
        batch = self._prompt_batch.compute(parts, [i for i, more in enumerate(left) if not more])
        if batch is not None:
            self._currently_processing = list(itertools.compress(self._currently_processing, left))
            self._generation_batch.extend(batch)
        return responses, len(parts) * max(map(len, parts))

    def _gather(self, tokens: int) -> None:
        """Adds waiting prompts to those being prefilled.

        In order, and one long prompt at a time; a prompt that would be done in this very chunk
        joins, wherever it stands. So a long one holds up no short ones, and they can't starve it.
        """
        rows, widest, chosen = len(self._prompt_batch), 0, []
        for sequence in self._unprocessed_sequences:
            length = sum(map(len, sequence[1]))
            if rows == self.prefill_batch_size:
                break
            if rows == 0 or max(widest, length) <= _share(tokens, rows + 1) * STRETCH:
                chosen.append(sequence)
                rows += 1
                if length <= tokens * STRETCH:
                    widest = max(widest, length)
        self._take(chosen)

    def _take(self, sequences: list[tuple]) -> None:
        """Moves waiting sequences into the prompt batch."""
        if not sequences:
            return
        taken = {sequence[0] for sequence in sequences}
        others = [s for s in self._unprocessed_sequences if s[0] not in taken]
        self._unprocessed_sequences = deque([*sequences, *others])
        self._prompt_batch.extend(self._make_batch(len(sequences)))


def _share(tokens: int, prompts: int) -> int:
    """Tokens of a chunk for each of its prompts."""
    return max(LEAST_SHARE, tokens // prompts)


def _ready(segments: list[list[int]]) -> bool:
    """Whether only a prompt's last token is left."""
    return len(segments) == 1 and len(segments[0]) == 1
