"""Drawing: the filters against mlx-lm's own on the same logits, the draws against their chances."""

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p

from server.protocol.requests import Common, Sampling
from server.sampling.filters import draw, draw_weighted, keep_likely, relative_logits
from server.sampling.row_state import Row

VOCAB = 1000
LAST = 1 - 2**-23  # the greatest random number
ENDS = [(u, v) for u in (0.0, 0.5, LAST) for v in (0.0, 0.5, LAST)]


def logits_of(rows: int, seed: int = 0, vocab: int = VOCAB) -> mx.array:
    return mx.random.normal((rows, vocab), key=mx.random.key(seed)) * 3


def probs_of(logits: mx.array) -> mx.array:
    """Relative to the likeliest, in groups."""
    return mx.exp(relative_logits(logits))


def flat(groups: mx.array, vocab: int) -> np.ndarray:
    return np.array(groups.reshape(len(groups), -1)[:, :vocab])


def kept(logits: mx.array, *wanted: Sampling) -> np.ndarray:
    """Which tokens stay, [B, V] bool; one Sampling may serve all rows."""
    every = wanted if len(wanted) == len(logits) else wanted * len(logits)
    return flat(keep_likely(probs_of(logits), list(every)), logits.shape[-1])


class Fixed:
    """A row with given random numbers."""

    def __init__(self, sampling: Sampling, uniforms: tuple[float, float]) -> None:
        self.sampling = sampling
        self.filtered = sampling.top_p < 1 or sampling.top_k > 0 or sampling.min_p > 0
        self._uniforms = uniforms

    def uniforms(self) -> tuple[float, float]:
        return self._uniforms


def positions(count: int, sampling: Sampling) -> list[Row]:
    """Rows that stand at each of the first positions of one seed."""
    rows = [Row(Common(sampling=sampling), [0], VOCAB) for _ in range(count)]
    for place, row in enumerate(rows):
        row.drawn = place
    return rows


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
    logits = logits_of(4) * mx.array([[0.01], [0.3], [1.0], [5.0]])  # from flat to peaked
    theirs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    for apply in filters:
        theirs = apply(theirs)
    assert (kept(logits, sampling) == np.isfinite(np.array(theirs))).all()


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.0, 1.0, 6.0])
def test_the_nucleus_is_right_to_a_part_in_a_thousand(top_p, spread):
    """The threshold is bisected, not sorted out, so its error has to be bounded."""
    logits = mx.random.normal((3, 50_000), key=mx.random.key(3)) * spread
    nucleus = kept(logits, Sampling(top_p=top_p))
    probs = np.array(mx.softmax(logits, axis=-1)).astype(np.float64)
    for row, stays in zip(probs, nucleus, strict=True):
        least = row[stays].min()
        assert row[row > least * (1 + 1e-3)].sum() < top_p + 1e-4
        assert row[stays].sum() >= top_p - 1e-4


def test_top_k_counts_exactly_and_keeps_equals_of_the_last():
    values = mx.array(np.random.default_rng(1).permutation(5000).astype(np.float32)) / 400
    counts = [kept(values[None], Sampling(top_k=k)).sum() for k in (1, 2, 40, 999)]
    assert counts == [1, 2, 40, 999]
    ties = mx.array([[3.0, 2.0, 2.0, 1.0]])
    assert kept(ties, Sampling(top_k=2)).tolist() == [[True, True, True, False]]


def test_each_row_of_a_mixed_batch_gets_its_own_filter():
    logits = logits_of(3)
    wanted = [Sampling(top_k=1), Sampling(top_p=0.5), Sampling(min_p=0.3)]
    together = kept(logits, *wanted)
    for i, sampling in enumerate(wanted):
        assert (together[i] == kept(logits[i : i + 1], sampling)[0]).all()
    assert together[0].sum() == 1


def test_the_likeliest_token_survives_every_filter():
    logits = logits_of(1)
    for sampling in (
        Sampling(top_p=1e-9, min_p=1.0, top_k=1),
        Sampling(top_p=1e-9),
        Sampling(min_p=1.0),
    ):
        (stays,) = kept(logits, sampling).nonzero()[1:]
        assert stays.tolist() == [mx.argmax(logits).item()]


def test_equals_all_stay_however_little_is_asked_for():
    """The lower end of the bisection met its upper end, and nothing was left."""
    assert kept(mx.zeros((1, VOCAB)), Sampling(top_p=1e-9)).all()
    assert kept(mx.zeros((1, VOCAB)), Sampling(top_k=1)).all()


@pytest.mark.parametrize("vocab", [4, 63, 64, 65, 1000])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7, top_p=0.8)])
def test_draws_have_the_chances_of_the_softmax(vocab, sampling):
    n = 20_000
    logits = logits_of(1, seed=vocab, vocab=vocab) / 2
    weights = np.array(logits, dtype=np.float64)[0] / sampling.temperature
    expected = np.exp(weights - weights.max()) * kept(logits, sampling)[0]
    expected *= n / expected.sum()
    rows = positions(n, Sampling(**vars(sampling) | {"seed": 1}))
    counts = np.zeros(vocab)
    for start in range(0, n, 1000):
        tokens = draw(mx.repeat(logits, 1000, axis=0), rows[start : start + 1000])
        counts += np.bincount(np.array(tokens), minlength=vocab)
    assert (counts[expected == 0] == 0).all()
    # Chi-square, whose mean is the number of cells - 1; the rare ones together are one cell.
    rare = expected < 10
    found = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    found, wanted = found[wanted > 0], wanted[wanted > 0]
    free = len(found) - 1
    assert ((found - wanted) ** 2 / wanted).sum() < free + 4 * np.sqrt(2 * free)


def test_random_numbers_are_even_independent_and_below_one():
    rows = positions(40_000, Sampling(seed=3))
    numbers = np.array([row.uniforms() for row in rows])
    assert (numbers >= 0).all() and (numbers <= LAST).all()
    assert (numbers * 2**23 % 1 == 0).all(), "so a float32 holds them exactly"
    cells = np.histogram2d(*numbers.T, bins=8, range=[[0, 1], [0, 1]])[0]
    assert ((cells - 625) ** 2 / 625).sum() < 63 + 4 * np.sqrt(2 * 63)


@pytest.mark.parametrize("vocab", [64, 65, 1000, 1024, 50_257])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1e-3),
        Sampling(temperature=100),
        Sampling(top_p=0.3),
        Sampling(temperature=2, top_k=3),
        Sampling(temperature=50, min_p=0.4),
    ],
)
def test_an_excluded_token_is_never_drawn(vocab, sampling):
    logits = np.array(logits_of(1, seed=vocab, vocab=vocab))
    logits[:, ::3] = -np.inf
    logits[:, -1] = -np.inf
    logits = mx.array(logits)
    allowed = kept(logits, sampling)[0] & np.isfinite(np.array(logits[0]))
    rows = [Fixed(sampling, ends) for ends in ENDS]
    tokens = draw(mx.repeat(logits, len(rows), axis=0), rows).tolist()
    assert all(token < vocab and allowed[token] for token in tokens)


@pytest.mark.parametrize("only", [0, 5, 63, 64, 998, 999])
@pytest.mark.parametrize("temperature", [1e-3, 1, 1e4])
@pytest.mark.parametrize("value", [-3e38, -50.0, 0.0, 3e38])
def test_the_only_token_that_is_allowed_is_drawn(only, temperature, value):
    logits = mx.full((1, VOCAB), -np.inf)
    logits[0, only] = value
    for sampling in (
        Sampling(temperature),
        Sampling(temperature, 0.5),
        Sampling(temperature, 1, 9),
    ):
        rows = [Fixed(sampling, ends) for ends in ENDS]
        assert set(draw(mx.repeat(logits, len(rows), axis=0), rows).tolist()) == {only}


def test_where_nothing_is_allowed_or_nothing_is_a_number_a_token_comes_all_the_same():
    for value in (-np.inf, np.nan):
        rows = [Fixed(Sampling(top_p=0.5), ends) for ends in ENDS]
        tokens = draw(mx.full((len(rows), 65), value), rows).tolist()
        assert all(0 <= token < 65 for token in tokens)


def test_tokens_too_light_for_the_sums_are_not_drawn_for_lack_of_others():
    """Rounding may leave no place whose sum passes the number: then the heaviest is drawn."""
    weights = mx.zeros((1, 4, 64))
    weights[0, 1, 7] = 1.0
    weights[0, 3, 63] = 1e-38
    for ends in ENDS:
        assert draw_weighted(weights, [ends]).tolist() == [64 + 7]


def test_an_unlikely_token_keeps_its_share():
    """One number of 23 bits for the whole vocabulary would reach few tokens of such a tail."""
    weights = mx.zeros((1, 1024, 64))
    weights[0, 0, 0] = 1.0
    weights[0, :, 63] = 1e-9
    numbers = [(LAST, (n + 0.47) / 64) for n in range(64)]
    tokens = draw_weighted(mx.repeat(weights, 64, axis=0), numbers).tolist()
    assert tokens == [(16 * n + 7) * 64 + 63 for n in range(64)]


def test_filters_of_some_rows_leave_the_others_alone():
    logits = logits_of(4)
    kinds = [Sampling(), Sampling(0.7, 0.5), Sampling(1, 1, 3), Sampling(1.5)]
    for ends in ENDS:
        rows = [Fixed(kind, ends) for kind in kinds]
        together = draw(logits, rows).tolist()
        assert together == [draw(logits[i : i + 1], rows[i : i + 1]).item() for i in range(4)]
