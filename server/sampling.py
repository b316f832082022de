"""The choice of the next tokens: one call for the whole batch, whatever mix of parameters.

Called on rank 0's main thread; workers never sample. Filters follow mlx_lm.sample_utils: top_p
and min_p look at the distribution before the temperature, top_k at its ranking. Penalties follow
vLLM: repetition over prompt and output, presence and frequency over output alone.

Each row draws from its own key, made of its seed and the position of the token, so that a seeded
request gets the same noise alone and in any batch.
"""

import math
import secrets

import mlx.core as mx
import numpy as np

from server.requests import Sampling

# Below this, temperature would overflow float32 long before it changed the choice.
GREEDY_BELOW = 1e-3
_MASK64 = 2**64 - 1


class Row:
    """One request's sampling state. vocab: size of the logits' last axis.

    resume() makes the state of a request that continues from the tokens it has generated.
    """

    def __init__(self, sampling: Sampling, prompt: list[int], vocab: int) -> None:
        self.sampling = sampling
        self.drawn = 0
        self._seed = sampling.seed if sampling.seed is not None else secrets.randbits(64)
        self._prompt = prompt
        self._vocab = vocab
        self._before: list[int] = []  # generated before a pause
        self._seen: mx.array | None = None  # [V] bool: token is in the prompt
        self._counts: mx.array | None = None  # [V] float32: how often it was generated

    def resume(self, generated: list[int]) -> "Row":
        """A fresh state, as if these tokens had just been drawn."""
        row = Row(self.sampling, self._prompt, self._vocab)
        row._seed = self._seed
        row._before = list(generated)
        row.drawn = len(generated)
        return row

    @property
    def greedy(self) -> bool:
        return self.sampling.temperature < GREEDY_BELOW

    @property
    def filtered(self) -> bool:
        s = self.sampling
        return s.top_p < 1 or 0 < s.top_k < self._vocab or s.min_p > 0

    @property
    def penalised(self) -> bool:
        s = self.sampling
        return s.repetition_penalty != 1 or s.presence_penalty != 0 or s.frequency_penalty != 0

    def key(self) -> tuple[int, int]:
        """The key of the token about to be drawn: two uint32, mixed from seed and position."""
        x = (self._seed * 0x9E3779B97F4A7C15 + self.drawn * 0xD1B54A32D192ED03) & _MASK64
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
        x ^= x >> 31
        return x >> 32, x & 0xFFFFFFFF

    def penalise(self, logits: mx.array) -> mx.array:
        """logits: [V] float32. Returns the same shape."""
        s = self.sampling
        if self._counts is None:
            counts = np.bincount(self._before, minlength=self._vocab)
            self._counts = mx.array(counts.astype(np.float32))
            self._seen = mx.zeros(self._vocab, dtype=mx.bool_)
            self._seen[mx.array(self._prompt)] = True
        generated = self._counts > 0
        if s.repetition_penalty != 1:
            shrunk = mx.where(
                logits > 0, logits / s.repetition_penalty, logits * s.repetition_penalty
            )
            logits = mx.where(generated | self._seen, shrunk, logits)
        return logits - s.frequency_penalty * self._counts - s.presence_penalty * generated

    def drew(self, token: mx.array) -> None:
        """Remembers a token, lazily: it may still be in flight. token: [] int32."""
        self.drawn += 1
        if self._counts is not None:
            self._counts = self._counts.at[token].add(1.0)


def sample(logits: mx.array, rows: list[Row]) -> mx.array:
    """Next tokens, lazy. logits: [B, V], one row a request. Returns [B] int32."""
    logits = logits.astype(mx.float32)
    penalised = [i for i, row in enumerate(rows) if row.penalised]
    if penalised:
        logits[mx.array(penalised)] = mx.stack([rows[i].penalise(logits[i]) for i in penalised])
    tokens = mx.argmax(logits, axis=-1).astype(mx.int32)
    drawing = [i for i, row in enumerate(rows) if not row.greedy]
    if drawing:
        drawn = _draw(logits[mx.array(drawing)], [rows[i] for i in drawing])
        tokens[mx.array(drawing)] = drawn
    for i, row in enumerate(rows):
        row.drew(tokens[i])
    return tokens


def _draw(logits: mx.array, rows: list[Row]) -> mx.array:
    """Gumbel-max over the filtered logits. logits: [B, V]. Returns [B] int32."""
    filtered = [i for i, row in enumerate(rows) if row.filtered]
    if filtered:
        logits[mx.array(filtered)] = keep_likely(
            logits[mx.array(filtered)], [rows[i].sampling for i in filtered]
        )
    keys = mx.array([row.key() for row in rows], dtype=mx.uint32)
    vocab = logits.shape[-1]
    noise = mx.vmap(lambda key: mx.random.gumbel(shape=(vocab,), key=key))(keys)
    temperature = mx.array([[row.sampling.temperature] for row in rows])
    return mx.argmax(logits / temperature + noise, axis=-1).astype(mx.int32)


def keep_likely(logits: mx.array, wanted: list[Sampling]) -> mx.array:
    """Log-probabilities with what top_p, top_k and min_p exclude at -inf.

    logits: [B, V] float32; wanted: B entries. All three keep the likeliest tokens down to some
    rank, so their intersection is one threshold a row. Returns [B, V].
    """
    vocab = logits.shape[-1]
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    ordered = mx.sort(logprobs, axis=-1)[:, ::-1]
    probs = mx.exp(ordered)
    before = mx.cumsum(probs, axis=-1) - probs  # mass of the likelier tokens
    top_p = mx.array([[s.top_p if s.top_p < 1 else math.inf] for s in wanted])
    top_k = mx.array([[s.top_k if 0 < s.top_k < vocab else vocab] for s in wanted])
    min_p = mx.array([[math.log(s.min_p) if s.min_p > 0 else -math.inf] for s in wanted])
    keep = (before < top_p) & (mx.arange(vocab)[None] < top_k)
    keep &= ordered >= ordered[:, :1] + min_p
    # The likeliest token always stays: top_p may be smaller than its own probability's rounding.
    keep[:, 0] = True
    threshold = mx.min(mx.where(keep, ordered, math.inf), axis=-1, keepdims=True)
    return mx.where(logprobs >= threshold, logprobs, -math.inf)
