"""The engine: mlx-lm's continuous batching, with one difference in its step.

Runs on the main thread of every rank; every rank makes the same calls in the same order. mlx-lm's
BatchGenerator does the batching, prefill and caches. Its step is replaced, for two reasons: each
rank would sample for itself, and ranks that round differently would part ways and hang; and it
computes log-probabilities of the whole vocabulary for every row, wanted or not.

Here rank 0 chooses the tokens and one all_sum carries them to every rank, with the mailbox's
header behind them: the only collective a step costs beyond the model's own.
"""

from collections.abc import Callable
from typing import Protocol

import mlx.core as mx
from mlx_lm.generate import (
    BatchGenerator,
    GenerationBatch,
    PromptProcessingBatch,
    StopSequences,
)

from server.link import Link
from server.mailbox import Header
from server.messages import Submit
from server.sampling import Row, sample
from server.tickets import Prefilled, Token


class Chooser(Protocol):
    """Proposes this rank's part of a step's payload: tokens [B] and header [3], as [B+3] int32."""

    def row(self, uid: int) -> Row | None: ...

    def propose(self, logits: mx.array, rows: list[Row | None]) -> mx.array: ...


class ChoosesForAll:
    """Rank 0: samples. A row whose sampling fails is reported through on_failure and gets a
    token all the same, so that every rank's shapes stay equal until the request is dropped."""

    def __init__(
        self,
        make_row: Callable[[int], Row],
        header: Callable[[], list[int]],
        on_failure: Callable[[Row, Exception], None],
    ) -> None:
        self.row = make_row
        self._header = header
        self._on_failure = on_failure

    def propose(self, logits: mx.array, rows: list[Row]) -> mx.array:
        try:
            tokens = sample(logits, rows)
        except Exception:
            tokens = self._sample_apart(logits, rows)
        return mx.concatenate([tokens, mx.array(self._header(), dtype=mx.int32)])

    def _sample_apart(self, logits: mx.array, rows: list[Row]) -> mx.array:
        tokens = []
        for i, row in enumerate(rows):
            try:
                tokens.append(sample(logits[i : i + 1], [row]))
            except Exception as error:
                self._on_failure(row, error)
                tokens.append(mx.argmax(logits[i : i + 1], axis=-1).astype(mx.int32))
        return mx.concatenate(tokens)


class Follows:
    """A worker: adds zeros to rank 0's choice."""

    def row(self, uid: int) -> None:
        return None

    def propose(self, logits: mx.array, rows: list[None]) -> mx.array:
        zeros = mx.zeros(logits.shape[0] + Header.SIZE, dtype=mx.int32)
        # Without this, laziness would skip the forward pass and its collectives on this rank,
        # and rank 0 would wait for them for ever.
        return mx.depends([zeros], [logits])[0]


class Step:
    """The sampler slot of mlx-lm's batches, which all of them carry along unchanged."""

    def __init__(self, link: Link, chooser: Chooser) -> None:
        self._link = link
        self._chooser = chooser

    def __call__(self, logits: mx.array, rows: list[Row | None]) -> tuple[mx.array, mx.array]:
        """Tokens [B] and header [3], the same on every rank, lazy. logits: [B, V]."""
        payload = self._link.sum(self._chooser.propose(logits, rows))
        return payload[: -Header.SIZE], payload[-Header.SIZE :]


class LockstepBatch(GenerationBatch):
    """Decoding rows. `samplers` holds each request's Row (None on workers)."""

    header: list[int] | None = None  # came with the tokens that next() returned last
    _next_header: mx.array | None = None

    def _step(self):
        inputs, header = self._next_tokens, self._next_header
        logits = self.model(inputs[:, None], cache=self.prompt_cache)[:, -1, :]
        self._next_tokens, self._next_header = self.fallback_sampler(logits, self.samplers)
        # Next step runs while this one's tokens are delivered.
        mx.async_eval(self._next_tokens, self._next_header)
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

    def __init__(self, model, step: Step, *, max_batch: int, prefill_step: int, eos: list[int]):
        super().__init__(
            model,
            sampler=step,
            stop_tokens=[(token,) for token in eos],
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


class Engine:
    """Requests by uid: submit, cancel, step."""

    def __init__(
        self,
        model,
        link: Link,
        chooser: Chooser,
        *,
        max_batch: int,
        prefill_step: int,
        eos: list[int],
    ) -> None:
        self._chooser = chooser
        self._generator = LockstepGenerator(
            model, Step(link, chooser), max_batch=max_batch, prefill_step=prefill_step, eos=eos
        )
        self._inner: dict[int, int] = {}  # our uid -> mlx-lm's
        self._outer: dict[int, int] = {}

    @property
    def busy(self) -> bool:
        """Whether step() has anything to do. The same on every rank."""
        return self._generator.busy

    def submit(self, message: Submit) -> None:
        """Puts a prompt in; it is prefilled in the coming steps."""
        (inner,) = self._generator.insert(
            [list(message.prompt)],
            max_tokens=[message.max_tokens],
            samplers=[self._chooser.row(message.uid)],
            stop_sequences=[StopSequences()] if message.ignore_eos else None,
        )
        self._inner[message.uid] = inner
        self._outer[inner] = message.uid

    def cancel(self, uid: int) -> None:
        """Drops a request wherever it is; unknown uids are ignored."""
        inner = self._inner.pop(uid, None)
        if inner is not None:
            del self._outer[inner]
            self._generator.remove([inner])

    def step(self) -> tuple[list[tuple[int, Token | Prefilled]], Header | None]:
        """One decode step and one prefill chunk, where there is any.

        Returns (uid, event) pairs and the header that came with the tokens, if tokens came.
        """
        prompts, tokens = self._generator.next()
        events: list[tuple[int, Token | Prefilled]] = []
        for response in tokens:
            uid = self._outer[response.uid]
            events.append((uid, Token(response.token, response.finish_reason)))
            if response.finish_reason is not None:
                del self._outer[response.uid], self._inner[uid]
        events += [(self._outer[r.uid], Prefilled(*r.progress)) for r in prompts]
        header = self._generator.read_header()
        return events, None if header is None else Header(*header)
