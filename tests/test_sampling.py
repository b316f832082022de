"""The batched sampler: against mlx-lm's own on the same logits, and row by row against batch."""

import math

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p

from server.requests import Sampling
from server.sampling import Row, keep_likely, sample

VOCAB = 1000


def logits_of(rows: int, seed: int = 0) -> mx.array:
    return mx.random.normal((rows, VOCAB), key=mx.random.key(seed)) * 3


def rows_of(*samplings: Sampling) -> list[Row]:
    return [Row(s, [1, 2, 3], VOCAB) for s in samplings]


def test_greedy_is_argmax_whatever_else_is_asked():
    logits = logits_of(2)
    rows = rows_of(Sampling(temperature=0), Sampling(temperature=0, top_p=0.1, top_k=5))
    assert sample(logits, rows).tolist() == mx.argmax(logits, axis=-1).tolist()


@pytest.mark.parametrize(
    ("sampling", "filters"),
    [
        (Sampling(top_p=0.7), [lambda x: apply_top_p(x, 0.7)]),
        (Sampling(top_k=17), [lambda x: apply_top_k(x, 17)]),
        (Sampling(min_p=0.05), [lambda x: apply_min_p(x, 0.05)]),
        (
            Sampling(top_p=0.9, min_p=0.01, top_k=40),
            [
                lambda x: apply_top_p(x, 0.9),
                lambda x: apply_min_p(x, 0.01),
                lambda x: apply_top_k(x, 40),
            ],
        ),
    ],
)
def test_filters_keep_what_mlx_lm_keeps(sampling, filters):
    logits = logits_of(4)
    theirs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    for apply in filters:
        theirs = apply(theirs)
    ours = keep_likely(logits, [sampling] * 4)
    kept, expected = np.isfinite(np.array(ours)), np.isfinite(np.array(theirs))
    assert (kept == expected).all()
    np.testing.assert_allclose(np.array(ours)[kept], np.array(theirs)[kept], rtol=1e-5)


def test_each_row_of_a_mixed_batch_gets_its_own_filter():
    logits = logits_of(3)
    wanted = [Sampling(top_k=1), Sampling(top_p=0.5), Sampling(min_p=0.3)]
    together = np.array(keep_likely(logits, wanted))
    for i, sampling in enumerate(wanted):
        alone = np.array(keep_likely(logits[i : i + 1], [sampling]))
        assert (together[i] == alone[0]).all()
    assert np.isfinite(together[0]).sum() == 1


def test_the_likeliest_token_survives_every_filter():
    logits = logits_of(1)
    kept = keep_likely(logits, [Sampling(top_p=1e-9, min_p=1.0, top_k=1)])
    assert mx.argmax(kept).item() == mx.argmax(logits).item()
    assert np.isfinite(np.array(kept)).sum() == 1


def test_top_k_above_the_vocabulary_is_no_limit():
    logits = logits_of(1)
    rows = rows_of(Sampling(temperature=1, seed=5, top_k=100_000))
    free = rows_of(Sampling(temperature=1, seed=5))
    assert sample(logits, rows).tolist() == sample(logits, free).tolist()


def test_draws_follow_the_softmax():
    logits = mx.array([[0.0, 1.0, 2.0, 3.0]])
    n = 4000
    rows = [Row(Sampling(temperature=1, seed=i), [0], 4) for i in range(n)]
    tokens = np.array(sample(mx.repeat(logits, n, axis=0), rows))
    frequencies = np.bincount(tokens, minlength=4) / n
    expected = np.exp([0, 1, 2, 3]) / np.exp([0, 1, 2, 3]).sum()
    # Five standard deviations of a binomial share at n draws.
    assert (abs(frequencies - expected) < 5 * np.sqrt(expected * (1 - expected) / n)).all()


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63)])
def test_a_seed_draws_the_same_in_any_batch_at_any_place(seed):
    def draw(position: int, size: int) -> list[int]:
        rows = rows_of(*[Sampling(temperature=1.2)] * size)
        rows[position] = Row(Sampling(temperature=1.2, seed=seed), [1], VOCAB)
        drawn = []
        for step in range(6):
            logits = logits_of(size, seed=step)
            logits[position] = logits_of(1, seed=100 + step)[0]
            drawn.append(sample(logits, rows)[position].item())
        return drawn

    assert draw(0, 1) == draw(3, 5)
    assert len(set(draw(0, 1))) > 1, "each position has noise of its own"


def test_unseeded_rows_differ():
    rows = rows_of(*[Sampling(temperature=2)] * 16)
    assert len(set(sample(mx.zeros((16, VOCAB)), rows).tolist())) > 8


def test_penalties_count_as_vllm_does():
    logits = mx.zeros((1, 8)) + mx.array([[2.0, 2.0, -2.0, 1.0, 0, 0, 0, 0]])
    row = Row(
        Sampling(repetition_penalty=2, presence_penalty=0.5, frequency_penalty=0.25), [0, 2], 8
    )
    row.penalise(logits[0])  # makes the counts
    row.drew(mx.array(1))
    row.drew(mx.array(1))
    after = row.penalise(logits[0]).tolist()
    assert after[0] == 1.0, "in the prompt: divided"
    assert after[2] == -4.0, "in the prompt, negative: multiplied"
    assert after[1] == pytest.approx(2.0 / 2 - 2 * 0.25 - 0.5), "generated twice: all three"
    assert after[3] == 1.0, "never seen: as it was"


def test_a_frequency_penalty_breaks_a_greedy_loop():
    logits = mx.array([[1.0, 0.9, 0.8, 0.0]])
    row = Row(Sampling(temperature=0, frequency_penalty=2), [3], 4)
    drawn = [sample(logits, [row]).item() for _ in range(3)]
    assert sorted(drawn) == [0, 1, 2]


def test_logits_of_half_precision_and_tiny_temperatures_stay_finite():
    logits = logits_of(1).astype(mx.bfloat16)
    rows = rows_of(Sampling(temperature=math.ulp(0)))
    assert sample(logits, rows).item() == mx.argmax(logits.astype(mx.float32)).item()
