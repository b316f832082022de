"""Applies grammar masks to logits.

Called on rank 0's main thread, inside a step. One mx.where over the whole batch: gathering and
scattering only the constrained rows costs more than the rows it spares.
"""

import mlx.core as mx
import numpy as np

WORD_BITS = 32
ALL = np.uint32(2**32 - 1)


def apply_mask(logits: mx.array, rows: list[int], masks: np.ndarray) -> mx.array:
    """The logits with -inf for every token that is not allowed; other rows are unchanged.

    logits: [B, V], any float type. masks: uint32 [len(rows), ceil(V / 32)], bit i of word w is
    token 32 w + i and set where it is allowed; masks[k] belongs to row rows[k], each row at most
    once.
    """
    batch, vocab = logits.shape
    words = -(-vocab // WORD_BITS)
    if masks.shape != (len(rows), words):
        raise ValueError(f"masks are {masks.shape}, not {(len(rows), words)}")
    if not rows:
        return logits
    every = masks
    if rows != list(range(batch)):
        every = np.full((batch, words), ALL)
        every[rows] = masks
    bits = mx.array(2 ** np.arange(WORD_BITS, dtype=np.uint32))
    allowed = ((mx.array(every)[..., None] & bits) != 0).reshape(batch, -1)[:, :vocab]
    return mx.where(allowed, logits, mx.array(-float("inf"), logits.dtype))
