"""Masks on logits, against numpy."""

import mlx.core as mx
import numpy as np
import pytest

from server.sampling.token_masks import apply_mask


def expected(logits: np.ndarray, rows: list[int], masks: np.ndarray) -> np.ndarray:
    result = logits.copy()
    for row, mask in zip(rows, masks, strict=True):
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[: logits.shape[1]]
        result[row, bits == 0] = -np.inf
    return result


@pytest.mark.parametrize("vocab", [1, 31, 32, 33, 264, 1000, 49152])
@pytest.mark.parametrize(
    ("batch", "rows"), [(1, [0]), (4, []), (4, [2]), (4, [3, 0]), (4, [0, 1, 2, 3]), (2, [1, 0])]
)
def test_only_what_is_allowed_keeps_its_logit(vocab, batch, rows):
    rng = np.random.default_rng(vocab + batch)
    logits = rng.normal(size=(batch, vocab)).astype(np.float32)
    masks = rng.integers(0, 2**32, (len(rows), -(-vocab // 32)), dtype=np.uint32)
    result = apply_mask(mx.array(logits), rows, masks)
    assert np.array_equal(np.array(result), expected(logits, rows, masks))


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
def test_the_type_of_the_logits_is_kept(dtype):
    logits = mx.array(np.ones((2, 40)), dtype=dtype)
    masks = np.array([[0x80000001, 0x80]], np.uint32)
    result = apply_mask(logits, [1], masks)
    assert result.dtype == dtype
    kept = np.flatnonzero(np.isfinite(np.array(result.astype(mx.float32))[1]))
    assert list(kept) == [0, 31, 39]


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match="masks are"):
        apply_mask(mx.zeros((2, 64)), [0], np.zeros((1, 3), np.uint32))
