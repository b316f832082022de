"""mlx-lm's continuous batching, with our own step, our own turns and fair prefill.

Runs on the main thread of every rank. mlx-lm's BatchGenerator holds the queues, the batches and
their caches. Two things are ours. Its step lets each rank sample for itself, and computes
log-probabilities of the whole vocabulary for every row, wanted or not. And its next() prefills
one chunk of fixed size for every prompt; here a turn's chunk has a size that the caller sets, is
shared by the prompts, and gives a prompt that ends in it its first token. The overridden names
are private to mlx-lm 0.32, which is why versions are pinned.
"""

import itertools
from collections import deque

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, PromptProcessingBatch
from mlx_lm.models.cache import make_prompt_cache

from server.engine.decoding import Decoded, LockstepBatch, Stepped
from server.engine.last_logits import LastLogits
from server.engine.rows_apart import are_apart, rows_of
from server.sampling.choosers import Step
from server.sampling.random_state import RandomState
from server.wire.messages import LEAST_KEPT

PROMPTS_TOGETHER = 8  # share a chunk at most; each is padded to the widest
LEAST_SHARE = 16  # tokens of a chunk for each of them
STRETCH = 1.25  # a chunk grows so much rather than leave a prompt's last tokens for the next
STEPS_BETWEEN_SWEEPS = 512  # as mlx-lm: then MLX gives back what it keeps for reuse

Response = PromptProcessingBatch.Response


class LockstepPrompts(PromptProcessingBatch):
    """Prefilling rows, which become a LockstepBatch. `model` is a LastLogits."""

    def compute(self, parts: list[list[int]], ends: list[int]) -> LockstepBatch | None:
        """One chunk, a part of each row's prompt. The rows at `ends` have all of theirs with it:
        they leave, as a batch with their first tokens."""
        if are_apart(self.prompt_cache):
            logits = self._prompt_apart(parts, ends)
        else:
            self.model.want(ends, [len(parts[i]) - 1 for i in ends])
            self.prompt(parts)
            logits = self.model.take()
        if not ends:
            return None
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
            self._decoding(done.prompt_cache),
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

    def _prompt_apart(self, parts: list[list[int]], ends: list[int]) -> mx.array | None:
        """The chunk one row after another, none padded. The logits of the rows at `ends`."""
        logits = []
        for i, cache in enumerate(rows_of(self.prompt_cache)):
            self.tokens[i] += parts[i]
            self.model.want([0] if i in ends else [], [len(parts[i]) - 1])
            self.model(mx.array([parts[i]]), cache)
            one = [self.model.take()] if i in ends else []
            mx.eval([layer.state for layer in cache], one)
            mx.clear_cache()
            logits += one
        return mx.concatenate(logits) if logits else None

    def _decoding(self, caches: list) -> list:
        """The caches of prompts that are done, as decoding rows have them."""
        if are_apart(caches) and not self.model.ways.rows_apart:
            return [layer.together() for layer in caches]
        return caches


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
        self._ways = model.ways
        self._chunk: set[int] = set()  # uids of the prompts in the last chunk
        self._joining = False  # while rows come into the decoding batch
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

    def put(self, segments: list[list[int]], cache: list | None, **fields) -> int:
        """A prompt; prefill stops after each of its segments. Returns its uid. cache: what it goes
        on from, one of mlx-lm's a layer. fields: as insert_segments', each a list of one."""
        if cache is None:
            cache = make_prompt_cache(self.model)
        cache = self._ways.wrap(cache)
        (uid,) = self.insert_segments([segments], caches=[cache], **fields)
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

    def part(self, uid: int) -> tuple[list[int], list] | None:
        """The tokens that are computed of a prompt that is not done, and their cache; None where
        they are too few to keep, or none but those that it began with."""
        batch = self._prompt_batch
        place = batch.uids.index(uid) if uid in batch.uids else -1
        if place < 0 or not self._currently_processing[place][1]:
            return None
        tokens = batch.tokens[place]
        return (tokens, batch.extract_cache(place)) if len(tokens) >= LEAST_KEPT else None

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
        self._chunk = set(self._prompt_batch.uids)
        self._gather(tokens)
        uids, parts, responses = list(self._prompt_batch.uids), [], []
        if not uids:
            return [], 0
        share = _share(tokens, len(uids))
        most = min(share * STRETCH, self.prefill_step_size)
        for uid, progress in zip(uids, self._currently_processing, strict=True):
            segments, done, total = progress
            size = share if len(segments[0]) > most else len(segments[0])
            if self._ways.whole:
                size = self.prefill_step_size
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
            self._joining = True
            self._generation_batch.extend(batch)
            self._joining = False
        lengths = list(map(len, parts))
        padded = len(parts) * max(lengths)
        return responses, sum(lengths) if self._ways.prompts_apart else padded

    def lose_prompts(self) -> list[int]:
        """Gives up the prompts of a chunk that has failed, whatever state they are in, and where
        they were joining the decoding rows, these as well. Returns their uids."""
        batch, lost = self._prompt_batch, self._chunk
        batch.uids, batch.prompt_cache, batch.tokens = [], [], []
        batch.samplers, batch.logits_processors, batch.max_tokens = [], [], []
        batch.stop_sequences, self._currently_processing = [], []
        if self._joining:
            self._joining = False
            lost = lost | set(self.lose_rows())
        return sorted(lost)

    def lose_rows(self) -> list[int]:
        """Gives up all decoding rows, whatever state they are in. Returns their uids."""
        return self._generation_batch.lose()

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
        self._chunk |= taken
        others = [s for s in self._unprocessed_sequences if s[0] not in taken]
        self._unprocessed_sequences = deque([*sequences, *others])
        self._prompt_batch.extend(self._make_batch(len(sequences)))


def _share(tokens: int, prompts: int) -> int:
    """Tokens of a chunk for each of its prompts."""
    return max(LEAST_SHARE, tokens // prompts)


def _ready(segments: list[list[int]]) -> bool:
    """Whether only a prompt's last token is left."""
    return len(segments) == 1 and len(segments[0]) == 1
