"""The choice of the next tokens: one call for the whole batch, whatever mix of parameters.

Called on rank 0's main thread; workers never sample. Filters follow mlx_lm.sample_utils: top_p
and min_p look at the distribution before the temperature, top_k at its ranking. Penalties follow
vLLM: repetition over prompt and output, presence and frequency over output alone. What a request
does not ask for is not computed.

Nothing here sorts a vocabulary: on a CPU that costs more than a small model's forward pass.
"""

import math
from collections.abc import Callable

import mlx.core as mx
import numpy as np

from server.rows import Row, Scores
from server.token_masks import apply_mask

# Bisection of a threshold over the bits of a positive float32, whose order is the floats' own:
# from the likeliest token's probability down to 2^-40 of it. For top_p alone, whose threshold is
# known to be higher, to 6e-4 of its own value or better; for top_k to 4e-5, as it has to count.
_OCTAVES = 40
_OCTAVE_BITS = 2**23
_HALVINGS, _HALVINGS_TO_COUNT = 15, 20

# The vocabulary is looked at in blocks of so many tokens: across blocks MLX sums many numbers at
# once on a CPU, which takes half as long as along a row. It also rounds less.
_BLOCK = 64


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
    drawing = [i for i, row in enumerate(rows) if not row.greedy]
    if len(drawing) == len(rows):
        tokens = _draw(logits, rows)
    else:
        tokens = mx.argmax(logits, axis=-1).astype(mx.int32)
        if drawing:
            places = mx.array(drawing)
            tokens[places] = _draw(logits[places], [rows[i] for i in drawing])
    extras = _score(raw, tokens, rows)
    for i, row in enumerate(rows):
        row.drew(tokens, i)
    return tokens, extras


def _adjust(logits: mx.array, rows: list[Row]) -> mx.array:
    """Bias, penalties, and end tokens that would come too early."""
    penalised = [i for i, row in enumerate(rows) if row.penalised]
    if penalised:
        places = mx.array(penalised)
        worse = penalise(logits[places], [rows[i] for i in penalised])
        logits = mx.array(logits)  # assignment would change the caller's too
        logits[places] = worse
    places, ids, values = [], [], []
    for i, row in enumerate(rows):
        for token, value in row.biases():
            places.append(i)
            ids.append(token)
            values.append(value)
    if ids:
        logits = logits.at[mx.array(places), mx.array(ids)].add(mx.array(values))
    return logits


def penalise(logits: mx.array, rows: list[Row]) -> mx.array:
    """Repetition, presence and frequency penalties. logits: [R, V], one row a request."""
    seen, counts = (mx.stack(part) for part in zip(*(row.history() for row in rows), strict=True))
    repetition, presence, frequency = _columns(
        [
            (s.repetition_penalty, s.presence_penalty, s.frequency_penalty)
            for s in (row.sampling for row in rows)
        ]
    )
    generated = counts > 0
    shrunk = mx.where(logits > 0, logits / repetition, logits * repetition)
    logits = mx.where(generated | seen, shrunk, logits)
    return logits - frequency * counts - presence * generated


def _columns(values: list[tuple[float, ...]]) -> list[mx.array]:
    """One [R, 1] array for each of the numbers that R rows have."""
    return [mx.array(column)[:, None] for column in zip(*values, strict=True)]


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
    if len(filtered) == len(rows):
        logits = keep_likely(logits, [row.sampling for row in rows])
    elif filtered:
        places = mx.array(filtered)
        logits[places] = keep_likely(logits[places], [rows[i].sampling for i in filtered])
    keys = mx.array([row.key() for row in rows], dtype=mx.uint32)
    vocab = logits.shape[-1]
    noise = mx.vmap(lambda key: mx.random.gumbel(shape=(vocab,), key=key))(keys)
    (temperature,) = _columns([(row.sampling.temperature,) for row in rows])
    return mx.argmax(logits / temperature + noise, axis=-1).astype(mx.int32)


def keep_likely(logits: mx.array, wanted: list) -> mx.array:
    """The logits with what top_p, top_k and min_p exclude at -inf.

    logits: [B, V] float32; wanted: B Samplings. All three keep the likeliest tokens down to some
    probability, so their intersection is one threshold a row; tokens that are as likely as the
    last one kept stay, too. Returns [B, V].
    """
    vocab = logits.shape[-1]
    blocks = mx.pad(logits, ((0, 0), (0, -vocab % _BLOCK)), constant_values=-np.inf)
    blocks = blocks.reshape(len(wanted), -1, _BLOCK)
    # On a CPU MLX's exp, and softmax with it, takes 2.5 times as long as its power.
    probs = mx.power(math.e, blocks - _over_row(mx.max, blocks))
    probs = probs / _over_row(mx.sum, probs)
    best = _over_row(mx.max, probs)
    (min_p,) = _columns([(s.min_p,) for s in wanted])
    keep = probs >= min_p[:, None] * best
    top_k = [s.top_k if 0 < s.top_k < vocab else 0 for s in wanted]
    top_p = [s.top_p if s.top_p < 1 else 0.0 for s in wanted]
    if any(top_k) or any(top_p):
        keep &= probs > _below_kept(probs, best, top_p, top_k)
    return mx.where(keep, blocks, -np.inf).reshape(len(wanted), -1)[:, :vocab]


def _over_row(reduce: Callable, blocks: mx.array) -> mx.array:
    """Sum or maximum of each row, which is in blocks. Returns [B, 1, 1]."""
    return reduce(reduce(blocks, axis=1, keepdims=True), axis=2, keepdims=True)


def _below_kept(probs: mx.array, best: mx.array, top_p: list[float], top_k: list[int]) -> mx.array:
    """A probability just below the least that top_p and top_k keep. 0 in either: not asked for.

    probs: [B, N, _BLOCK]; best: [B, 1, 1], their maxima. A token stays while the tokens likelier
    than it have less than top_p together and are fewer than top_k. Returns [B, 1, 1].
    """
    mass = mx.array([p or 2.0 for p in top_p])[:, None, None]
    count = mx.array([k or 2**30 for k in top_k])[:, None, None]
    # Tokens less likely than this have less than 1 - top_p together, however many they are.
    places = probs[0].size
    floor = mx.array([(1 - p) / places if p else 0.0 for p in top_p])[:, None, None]
    kept = mx.view(best, mx.int32)  # known to stay
    out = mx.maximum(kept - _OCTAVES * _OCTAVE_BITS, mx.view(floor, mx.int32))  # taken to be out
    for _ in range(_HALVINGS_TO_COUNT if any(top_k) else _HALVINGS):
        middle = out + (kept - out) // 2
        likelier = probs > mx.view(middle, mx.float32)
        stays = mx.array(True)
        if any(top_p):
            stays &= _over_row(mx.sum, likelier * probs) < mass
        if any(top_k):
            stays &= _over_row(mx.sum, likelier) < count
        kept, out = mx.where(stays, middle, kept), mx.where(stays, out, middle)
    return mx.view(out, mx.float32)


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
