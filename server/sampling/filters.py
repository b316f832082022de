"""Sampling tokens from logits: temperature, top_p, top_k, min_p, and the row's random numbers.

Called on the main thread of any rank, inside a step. Filters follow mlx_lm.sample_utils: top_p and
min_p look at the distribution before the temperature, top_k at its ranking.

Everything stays lazy, and nothing here sorts a vocabulary or takes noise for each of its tokens:
on a CPU that costs more than a small model's forward pass. A token is drawn where the sum of the
weights before it passes a random number, first among groups of tokens, then within one.
"""

import functools
import math
import operator
from collections.abc import Callable, Iterator

import mlx.core as mx
import numpy as np

from server.sampling.random_state import RandomState

# The vocabulary is looked at as [N, _GROUPS]: across N, MLX sums many numbers at once on a CPU,
# which takes a third of the time that it takes along a row. It also rounds less.
_GROUPS = 64

# Bisection of a threshold over the bits of a positive float32, whose order is the floats' own:
# from the likeliest token's probability, which is 1, down to 2^-40 of it. For top_p alone, whose
# threshold is known to be higher, to 1e-3 of its own value or better; for top_k to 4e-5, as it has
# to count.
_BITS_OF_1 = 0x3F80_0000
_OCTAVE = 1 << 23
_RANGE = 40 * _OCTAVE
_TO_SUM, _TO_COUNT = int(1e-3 * _OCTAVE), int(4e-5 * _OCTAVE)

# A group that weighs less is not drawn: its tokens may be too light to be told from excluded
# ones where small numbers are flushed to 0. The likeliest token weighs 1.
_LEAST_GROUP = 1e-30


def draw(logits: mx.array, rows: list[RandomState]) -> mx.array:
    """One token a row. logits: [B, V] float32, -inf where excluded. Returns [B] int32.

    An excluded token is never drawn, whatever the rounding, unless a row has no other.
    """
    relative = relative_logits(logits)
    temperatures = [row.sampling.temperature for row in rows]
    weights = relative if set(temperatures) == {1} else relative / column(temperatures)
    weights = mx.power(math.e, weights)
    filtered = [i for i, row in enumerate(rows) if row.filtered]
    if filtered:
        some = slice(None) if len(filtered) == len(rows) else mx.array(filtered)
        if all(temperatures[i] == 1 for i in filtered):
            probs = weights[some]
        else:
            probs = mx.power(math.e, relative[some])
        weights[some] *= keep_likely(probs, [rows[i].sampling for i in filtered])
    tokens = draw_weighted(weights, [row.uniforms() for row in rows])
    # Logits that are no numbers could lead anywhere, and MLX does not check an index.
    return mx.minimum(tokens, logits.shape[-1] - 1)


def relative_logits(logits: mx.array) -> mx.array:
    """Logits [B, V] less each row's maximum, as [B, N, _GROUPS]; -inf beyond the vocabulary."""
    vocab = logits.shape[-1]
    if vocab % _GROUPS:
        logits = mx.pad(logits, ((0, 0), (0, -vocab % _GROUPS)), constant_values=-np.inf)
    logits = logits.reshape(len(logits), -1, _GROUPS)
    # Where nothing is allowed, -inf less -inf would be NaN.
    return logits - mx.maximum(_over_row(mx.max, logits), np.finfo(np.float32).min)


def column(values: list[float]) -> mx.array:
    """One number for each of B rows of groups: [B, 1, 1] float32."""
    return mx.array(values, dtype=mx.float32)[:, None, None]


def draw_weighted(weights: mx.array, uniforms: list[tuple[float, float]]) -> mx.array:
    """One place a row, by weight. weights: [B, N, _GROUPS], the greatest 1. Returns [B] int32.

    uniforms: of each row, two numbers from 0 to 1, below 1 by 2^-23 at least: one picks the
    group, one the token in it, so that unlikely tokens keep their share.
    """
    for_group, for_token = (mx.array(part)[:, None] for part in zip(*uniforms, strict=True))
    group = _pick(mx.sum(weights, axis=1), for_group, _LEAST_GROUP)
    inside = mx.take_along_axis(weights, group[:, None, None], axis=2)[:, :, 0]
    return (_pick(inside, for_token, 0.0) * _GROUPS + group).astype(mx.int32)


def _pick(weights: mx.array, uniform: mx.array, least: float) -> mx.array:
    """The first place whose sum passes its share. weights: [B, K]; uniform: [B, 1]. Returns [B].

    What weighs no more than least is not picked, unless nothing else is there.
    """
    sums = mx.cumsum(weights, axis=-1)
    # A GPU sums in parallel, and rounding may make a sum less than the one before it: so a place
    # needs a weight of its own, and there may be none at the very end.
    passed = (sums > uniform * sums[:, -1:]) & (weights > least)
    first = mx.argmax(passed.astype(mx.int32), axis=-1)
    return mx.where(mx.any(passed, axis=-1), first, mx.argmax(weights, axis=-1))


def keep_likely(probs: mx.array, wanted: list) -> mx.array:
    """Which tokens top_p, top_k and min_p keep: [B, N, _GROUPS] bool.

    probs: [B, N, _GROUPS], relative to the likeliest token's, whose own is 1; wanted: B Samplings.
    All three keep the likeliest tokens down to some probability, so their intersection is one
    threshold a row; tokens that are as likely as the last one kept stay, too.
    """
    bits = mx.view(probs, mx.int32)
    places = probs[0].size
    below = mx.view(column([s.min_p for s in wanted]), mx.int32) - 1
    top_k = [s.top_k if 0 < s.top_k < places else 0 for s in wanted]
    top_p = [s.top_p if s.top_p < 1 else 0.0 for s in wanted]
    if any(top_k) or any(top_p):
        below = mx.maximum(below, _below_kept(probs, bits, top_p, top_k))
    return bits > below


def _over_row(reduce: Callable, groups: mx.array) -> mx.array:
    """Sum or maximum of each row, which is in groups. Returns [B, 1, 1]."""
    return reduce(reduce(groups, axis=1, keepdims=True), axis=2, keepdims=True)


def _below_kept(probs: mx.array, bits: mx.array, top_p: list[float], top_k: list[int]) -> mx.array:
    """The bits of a probability just below the least that top_p and top_k keep: [B, 1, 1] int32.

    probs, bits: [B, N, _GROUPS], the latter their bits. 0 in top_p or top_k: not asked for. A
    token stays while the tokens likelier than it have less than top_p of the total and are fewer
    than top_k.
    """
    total = _over_row(mx.sum, probs)
    mass = column([p or np.inf for p in top_p]) * total
    count = column([k or np.inf for k in top_k])
    # Tokens less likely than this have less than 1 - top_p together, however many they are.
    floors = [(1 - p) / probs[0].size if p else 0.0 for p in top_p]
    out = mx.maximum(_BITS_OF_1 - _RANGE, mx.view(column(floors) * total, mx.int32))
    out = mx.minimum(out, _BITS_OF_1 - 1)  # the likeliest stays; what is below out does not
    for step in _steps(min(floors), _TO_COUNT if any(top_k) else _TO_SUM):
        middle = out + step
        # All bits where likelier, else none: on integers, as where and a product with booleans
        # take longer.
        likelier = (middle - bits) >> 31
        stays = []
        if any(top_p):
            stays.append(_over_row(mx.sum, mx.view(likelier & bits, mx.float32)) < mass)
        if any(top_k):
            stays.append(-_over_row(mx.sum, likelier) < count)
        out = mx.where(functools.reduce(operator.and_, stays), out, middle)
    return out


def _steps(floor: float, precision: int) -> Iterator[int]:
    """The steps of a bisection from the bits of floor, which the total can only raise, to those
    of 1. Steps that all rows share cost fewer operations than two ends for each row."""
    step = min(_RANGE, _BITS_OF_1 - int(np.float32(floor).view(np.int32)))
    while step > precision:
        step = -(-step // 2)
        yield step
