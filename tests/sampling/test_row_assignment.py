"""Which rank chooses for which row, and that what the ranks add up is what one would choose."""

import io

import mlx.core as mx
import numpy as np
import pytest

from server.protocol.requests import Common, Sampling
from server.sampling.choosers import ChoosesForAll, Follows, Step
from server.sampling.random_state import RandomState
from server.sampling.row_assignment import assign, part, pick
from server.sampling.row_state import Row
from server.wire.mailbox import Header

VOCAB = 500

# What the rows of a mixed batch ask for.
KINDS = [
    Common(sampling=Sampling(temperature=0.8, seed=1)),
    Common(sampling=Sampling(temperature=0)),
    Common(sampling=Sampling(temperature=1, top_p=0.9, seed=2)),
    Common(sampling=Sampling(temperature=1.2, presence_penalty=1, seed=3)),
    Common(sampling=Sampling(temperature=1, top_k=20, seed=4)),
    Common(sampling=Sampling(temperature=0.5, min_p=0.02, seed=5)),
    Common(sampling=Sampling(temperature=1, seed=6), logprobs=1),
    Common(sampling=Sampling(temperature=2, top_p=0.7, top_k=9, seed=7)),
]


class Place:
    """A link, as far as a step asks who it is."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


class Ranks:
    """The steps of so many ranks on the same rows, their parts added up."""

    def __init__(self, size: int, commons: list[Common]) -> None:
        self.failed = []
        rows = {uid: Row(common, [1, 2], VOCAB) for uid, common in enumerate(commons)}
        leads = ChoosesForAll(
            rows.__getitem__,
            lambda: [0] * Header.SIZE,
            lambda row, error: self.failed.append((row, error)),
        )
        choosers = [leads, *[Follows() for _ in range(size - 1)]]
        self.steps = [Step(Place(rank, size), one) for rank, one in enumerate(choosers)]
        draws = {uid: row.draw(uid) for uid, row in rows.items()}
        self.rows = [[one.row(uid, draws[uid]) for uid in rows] for one in choosers]

    def parts(self, logits: mx.array) -> list[list[int]]:
        inputs = mx.zeros(len(logits), dtype=mx.int32)
        every = zip(self.steps, self.rows, strict=True)
        return [step.propose(logits, rows, inputs)[0].tolist() for step, rows in every]

    def propose(self, logits: mx.array) -> list[int]:
        return np.sum(self.parts(logits), axis=0).tolist()


def logits_of(step: int, rows: int = len(KINDS)) -> mx.array:
    return mx.random.normal((rows, VOCAB), key=mx.random.key(step)) * 3


def shared() -> RandomState:
    return RandomState(Sampling(), 0, shared=True)


@pytest.mark.parametrize(
    ("kinds", "ranks", "expected"),
    [
        ("ssss", 2, [0, 0, 1, 1]),
        ("sssss", 2, [0, 0, 0, 1, 1]),
        ("s", 4, [0]),
        ("ss", 4, [0, 2]),
        ("osos", 2, [0, 0, 0, 1]),
        ("soosso", 3, [0, 0, 0, 1, 2, 0]),
        ("ooo", 3, [0, 0, 0]),
        ("ssss", 1, [0, 0, 0, 0]),
        ("", 2, []),
    ],
)
def test_shared_rows_are_assigned_evenly_and_rank_0_has_the_others(kinds, ranks, expected):
    """s: shared; o: rank 0's own."""
    made = {"s": shared, "o": lambda: RandomState.told(None)}
    assert assign([made[kind]() for kind in kinds], ranks) == expected


@pytest.mark.parametrize("ranks", range(1, 6))
@pytest.mark.parametrize("rows", range(1, 12))
def test_no_rank_has_more_than_one_shared_row_more_than_another(rows, ranks):
    counts = np.bincount(assign([shared() for _ in range(rows)], ranks), minlength=ranks)
    assert counts.sum() == rows and counts.max() - counts.min() <= 1


def test_picked_rows_are_those_at_the_places():
    values = mx.arange(10)
    for places in ([0], [9], [2, 3, 4], list(range(10)), [0, 2], [1, 5, 9]):
        assert pick(values, places).tolist() == places


def test_a_part_has_zeros_for_the_rows_of_others():
    logits = mx.zeros((4, 8))
    assert part(mx.array([5, 6], dtype=mx.int32), [1, 3], logits).tolist() == [0, 5, 0, 6]
    assert part(None, [], logits).tolist() == [0, 0, 0, 0]
    assert part(None, [], logits).dtype == mx.int32


def test_a_rank_that_chooses_for_nobody_computes_the_logits_all_the_same():
    """Its collectives are on the way to them: the others would wait for it for ever."""
    for rows in ([RandomState.told(None)], [RandomState.told(None), shared()]):
        logits = mx.exp(mx.zeros((len(rows), 8)))
        mine = [i for i, row in enumerate(rows) if row.shared]
        tokens, extras = Follows().propose(logits, rows, mx.zeros(len(rows)), mine)
        graph = io.StringIO()
        mx.export_to_dot(graph, tokens)
        assert "Exp" in graph.getvalue() and not extras


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_ranks_that_share_the_rows_choose_what_one_would(ranks):
    alone, together = Ranks(1, KINDS), Ranks(ranks, KINDS)
    for step in range(8):
        assert together.propose(logits_of(step)) == alone.propose(logits_of(step))
    for rows in together.rows:
        assert [row.drawn for row in rows] == [8] * len(KINDS)
    assert not together.failed


def test_each_row_has_one_chooser():
    parts = np.array(Ranks(2, KINDS).parts(logits_of(1).at[:, 0].add(-1e9)))
    assert ((parts != 0).sum(axis=0) == 1).all(), "token 0 is excluded: 0 is nobody's choice"
    assert (parts[1] != 0).sum() == 2, "four rows are shared"


def test_rows_that_leave_and_join_change_who_draws_and_not_what_is_drawn():
    """A row's next token may be drawn by another rank than its last one: the positions agree."""
    alone, together = Ranks(1, KINDS), Ranks(3, KINDS)
    for step, present in enumerate([[0], [0, 2], [0, 2, 4, 5, 7], [2, 4, 5, 7], [7], [5, 7]]):
        logits, got = logits_of(step, len(present)), []
        for ranks in (alone, together):
            inputs = mx.zeros(len(present), dtype=mx.int32)
            every = zip(ranks.steps, ranks.rows, strict=True)
            parts = [
                one.propose(logits, [rows[i] for i in present], inputs)[0].tolist()
                for one, rows in every
            ]
            got.append(np.sum(parts, axis=0).tolist())
        assert got[0] == got[1]


def test_a_row_whose_sampling_fails_on_rank_0_changes_no_row_of_another_rank(monkeypatch):
    expected = Ranks(1, KINDS).propose(logits_of(0))

    def broken(self):
        raise ValueError("a broken sampler")

    monkeypatch.setattr(Row, "history", broken)
    ranks = Ranks(2, KINDS)
    tokens = ranks.propose(logits_of(0))
    assert [row for row, _ in ranks.failed] == [ranks.rows[0][3]]
    assert tokens[:3] + tokens[4:] == expected[:3] + expected[4:]
