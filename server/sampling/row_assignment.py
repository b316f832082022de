"""Which rank chooses for which row of a step, and what each rank adds to the step's sum.

Called on the main thread of every rank, with the same rows in the same order. Every rank has all
logits, and without this the others would wait while rank 0 draws for all. A row has one chooser,
so there is still nothing that two ranks could disagree about.
"""

from collections.abc import Sequence

import mlx.core as mx

from server.sampling.random_state import RandomState


def assign(rows: Sequence[RandomState], ranks: int) -> list[int]:
    """The rank that chooses for each row: shared ones in equal parts, in order; else rank 0."""
    shared = [i for i, row in enumerate(rows) if row.shared]
    choosers = [0] * len(rows)
    for place, i in enumerate(shared):
        choosers[i] = place * ranks // len(shared)
    return choosers


def pick(values: mx.array, places: list[int]) -> mx.array:
    """values[places], of B; places ascend. Neighbours are not copied."""
    first, count = places[0], len(places)
    if places[-1] - first == count - 1:
        return values[first : first + count]
    return values[mx.array(places)]


def part(tokens: mx.array | None, places: list[int], logits: mx.array) -> mx.array:
    """This rank's summand of the step's tokens, [B] int32: zeros but for its own.

    tokens: those chosen for the rows at places, None for none. logits: [B, V].
    """
    if len(places) == len(logits):
        return tokens
    mine = mx.zeros(len(logits), dtype=mx.int32)
    if places:
        mine[mx.array(places)] = tokens
    # Without this, laziness would skip the forward pass and its collectives on a rank that chooses
    # for nobody, and the others would wait for it for ever.
    return mx.depends([mine], [logits])[0]
