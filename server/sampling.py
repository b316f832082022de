"""The choice of the next tokens: one call for the whole batch, whatever mix of parameters.

Called on rank 0's main thread; workers never sample. Filters follow mlx_lm.sample_utils: top_p
and min_p look at the distribution before the temperature, top_k at its ranking. Penalties follow
vLLM: repetition over prompt and output, presence and frequency over output alone. What a request
does not ask for is not computed.
"""

import math
from collections.abc import Callable

import mlx.core as mx
import numpy as np

from server.rows import Row, Scores
from server.token_masks import apply_mask


def sample(
    logits: mx.array, rows: list[Row], previous: Callable[[], list[int]]
) -> tuple[mx.array, list[mx.array]]:
    """Next tokens, lazy. logits: [B, V], one row a request.

    previous: the last token of each row, evaluated; asked for only when a grammar must see it.
    Returns tokens [B] int32, and the other arrays to evaluate with them (log-probabilities).
    """
    logits = logits.astype(mx.float32)
    raw = logits
    logits = _adjust(logits, rows)
    constrained = [i for i, row in enumerate(rows) if row.constrained]
    if constrained:
        # The forward pass goes on while the grammars look at its input: only the choice waits.
        mx.async_eval(logits)
        logits = _constrain(logits, rows, constrained, previous())
    tokens = mx.argmax(logits, axis=-1).astype(mx.int32)
    drawing = [i for i, row in enumerate(rows) if not row.greedy]
    if drawing:
        drawn = _draw(logits[mx.array(drawing)], [rows[i] for i in drawing])
        tokens[mx.array(drawing)] = drawn
    extras = _score(raw, tokens, rows)
    for i, row in enumerate(rows):
        row.drew(tokens[i])
    return tokens, extras


def _adjust(logits: mx.array, rows: list[Row]) -> mx.array:
    """Bias, penalties, and end tokens that would come too early."""
    penalised = [i for i, row in enumerate(rows) if row.penalised]
    if penalised:
        logits = mx.array(logits)  # assignment would change the caller's too
        logits[mx.array(penalised)] = mx.stack([rows[i].penalise(logits[i]) for i in penalised])
    places, ids, values = [], [], []
    for i, row in enumerate(rows):
        for token, value in row.biases():
            places.append(i)
            ids.append(token)
            values.append(value)
    if ids:
        logits = logits.at[mx.array(places), mx.array(ids)].add(mx.array(values))
    return logits


def _constrain(
    logits: mx.array, rows: list[Row], constrained: list[int], previous: list[int]
) -> mx.array:
    """Excludes what the rows' grammars do not allow after their last tokens."""
    masked, masks = [], []
    for i in constrained:
        mask = rows[i].mask_after(previous[i])
        if mask is not None:
            masked.append(i)
            masks.append(mask)
    return apply_mask(logits, masked, np.stack(masks)) if masked else logits


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


def keep_likely(logits: mx.array, wanted: list) -> mx.array:
    """Log-probabilities with what top_p, top_k and min_p exclude at -inf.

    logits: [B, V] float32; wanted: B Samplings. All three keep the likeliest tokens down to some
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


def _score(raw: mx.array, tokens: mx.array, rows: list[Row]) -> list[mx.array]:
    """Log-probabilities of the chosen tokens and their rivals, for the rows that asked."""
    asked = [i for i, row in enumerate(rows) if row.logprobs is not None]
    if not asked:
        return []
    places = mx.array(asked)
    scores = score_tokens(raw[places], tokens[places], max(rows[i].logprobs for i in asked))
    for place, i in enumerate(asked):
        rows[i].scores.append((scores, place))
    return scores.arrays()


def score_tokens(logits: mx.array, tokens: mx.array, alternatives: int) -> Scores:
    """Natural log-probabilities, lazy. logits: [R, V] as the model gave them; tokens: [R].

    alternatives: how many of the likeliest tokens to tell, too.
    """
    logprobs = logits.astype(mx.float32)
    logprobs = logprobs - mx.logsumexp(logprobs, axis=-1, keepdims=True)
    chosen = mx.take_along_axis(logprobs, tokens[:, None].astype(mx.int32), axis=-1)[:, 0]
    if not alternatives:
        return Scores(tokens, chosen, None, None)
    top = mx.argpartition(-logprobs, kth=alternatives - 1, axis=-1)[:, :alternatives]
    values = mx.take_along_axis(logprobs, top, axis=-1)
    order = mx.argsort(-values, axis=-1)
    return Scores(
        tokens,
        chosen,
        mx.take_along_axis(top, order, axis=-1),
        mx.take_along_axis(values, order, axis=-1),
    )
