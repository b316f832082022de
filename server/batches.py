"""mlx-lm's continuous batching with one difference: what happens at the end of a step.

Runs on the main thread of every rank. mlx-lm's BatchGenerator does the batching, prefill and
caches; its step is replaced, because it lets each rank sample for itself, and computes
log-probabilities of the whole vocabulary for every row, wanted or not. The overridden names are
private to mlx-lm 0.32, which is why versions are pinned.
"""

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, GenerationBatch, PromptProcessingBatch

from server.choosers import Step


class LockstepBatch(GenerationBatch):
    """Decoding rows. `samplers` holds each request's Row (None on workers)."""

    header: list[int] | None = None  # came with the tokens that next() returned last
    _next_header: mx.array | None = None

    def _step(self):
        inputs, header = self._next_tokens, self._next_header
        logits = self.model(inputs[:, None], cache=self.prompt_cache)[:, -1, :]
        self._next_tokens, self._next_header, extras = self.fallback_sampler(
            logits, self.samplers, inputs
        )
        # Next step runs while this one's tokens are delivered.
        mx.async_eval(self._next_tokens, self._next_header, *extras)
        mx.eval(inputs, *([] if header is None else [header]))
        self.header = None if header is None else header.tolist()
        tokens = inputs.tolist()
        for row_tokens, token in zip(self.tokens, tokens, strict=True):
            row_tokens.append(token)
        self._next_logprobs = [None] * len(tokens)  # mlx-lm's next() expects one entry a row
        return tokens, self._next_logprobs

    def extend(self, batch: "LockstepBatch") -> None:
        super().extend(batch)
        if self._next_header is None or len(self.uids) == len(batch.uids):
            # Nothing was in flight here: the newcomers' step is the one that will be read.
            self._next_header = batch._next_header


class LockstepPrompts(PromptProcessingBatch):
    """Prefilling rows, which become a LockstepBatch."""

    def generate(self, tokens: list[list[int]]) -> LockstepBatch:
        if any(len(t) > 1 for t in tokens):
            self.prompt([t[:-1] for t in tokens])
        batch = LockstepBatch(
            self.model,
            self.uids,
            mx.array([t[-1] for t in tokens]),
            self.prompt_cache,
            self.tokens,
            self.samplers,
            self.fallback_sampler,
            self.logits_processors,
            self.stop_sequences,
            self.max_tokens,
        )
        self.uids, self.prompt_cache, self.tokens = [], [], []
        self.samplers, self.logits_processors, self.max_tokens = [], [], []
        self.stop_sequences = []
        return batch


class LockstepGenerator(BatchGenerator):
    """BatchGenerator over the two classes above."""

    def __init__(self, model, step: Step, *, max_batch: int, prefill_step: int):
        super().__init__(
            model,
            sampler=step,
            completion_batch_size=max_batch,
            prefill_batch_size=min(8, max_batch),
            prefill_step_size=prefill_step,
            # All collectives on one stream, in one order: the default one.
            stream=mx.default_stream(mx.default_device()),
        )
        self._prompt_batch = LockstepPrompts.empty(model, step, prefill_step_size=prefill_step)
        self._generation_batch = LockstepBatch.empty(model, step)
        # As after the last row left: newcomers bring their own tokens (int32, not uint32).
        self._generation_batch._next_tokens = None

    @property
    def decoding(self) -> bool:
        return len(self._generation_batch) > 0

    @property
    def busy(self) -> bool:
        return self.decoding or len(self._prompt_batch) > 0 or bool(self._unprocessed_sequences)

    def read_header(self) -> list[int] | None:
        """The header that came with the last step's tokens, once."""
        header, self._generation_batch.header = self._generation_batch.header, None
        return header
