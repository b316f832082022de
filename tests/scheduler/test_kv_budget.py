"""What fits is what fits on every rank, however unequal they are."""

import random

import pytest

from server.protocol.row_lengths import STEP
from server.scheduler.kv_budget import KvBudget, RankMemory, shared_budget


def holds(ranks: list[RankMemory], rows: int, longest: int) -> bool:
    """Whether a batch fits, rank by rank."""
    longest = -(-longest // STEP) * STEP
    return all(rows * (rank.fixed + longest * rank.token) <= rank.budget for rank in ranks)


def test_equal_ranks_have_the_room_that_their_bytes_give():
    rank = RankMemory(budget=10**9, fixed=5000, token=1000)
    assert shared_budget([rank] * 4) == KvBudget(capacity=10**6, row_cost=5)


def test_what_is_said_to_fit_fits_on_every_rank():
    rng = random.Random(0)
    fits = 0
    for _ in range(500):
        ranks = [
            RankMemory(
                rng.choice([10**7, 10**9, 10**11]),
                rng.choice([0, 10**4, 10**6]),
                rng.choice([0, 1, 10**3, 10**5]),
            )
            for _ in range(rng.randint(1, 8))
        ]
        budget = shared_budget(ranks)
        rows, longest = rng.randint(2, 64), rng.randint(1, 10**5)
        if budget.holds([longest] * rows):
            fits += 1
            assert holds(ranks, rows, longest)
        if budget.reach:
            assert holds(ranks, 1, budget.reach)
    assert fits > 50


def test_a_rank_whose_layers_do_not_grow_takes_no_room_from_the_others():
    """The part of a pipeline that has only states: its bytes are no tokens of the others'."""
    grows = RankMemory(budget=10**10, fixed=0, token=10**5)
    states = RankMemory(budget=10**10, fixed=10**7, token=0)
    assert shared_budget([grows, states]) == KvBudget(capacity=10**5, row_cost=100)


@pytest.mark.parametrize("budget", [10**9, 10**12])
def test_a_model_of_states_alone_is_bounded_by_its_rows(budget):
    shared = shared_budget([RankMemory(budget, fixed=10**8, token=0)])
    assert shared.holds([10] * 9)
    assert not shared.holds([10] * (budget // 10**8 + 1))
    assert shared.capacity < 2**31


def test_without_room_for_a_rows_fixed_part_nothing_fits():
    assert shared_budget([RankMemory(10**6, fixed=10**6, token=1000)]).reach == 0
    assert shared_budget([RankMemory(0, 0, 1000), RankMemory(10**6, 0, 1000)]).reach == 0


def test_a_long_row_makes_short_ones_no_dearer():
    """Each cost as much as the longest."""
    budget, dense = KvBudget(10**6, row_cost=10), KvBudget(10**6, row_cost=10, apart=False)
    lengths = [30_000, *[200] * 7]
    assert budget.cost(lengths) == 8 * 10 + 30_208 + 7 * STEP
    assert dense.cost(lengths) == 8 * (10 + 30_208), "in mlx-lm's caches"
    assert budget.holds([90_000] * 10 + [5] * 200) and not dense.holds([90_000] * 10 + [5] * 200)


@pytest.mark.parametrize("seed", range(5))
def test_rows_cost_their_sum_at_least_and_one_rectangle_at_most(seed):
    rng = random.Random(seed)
    budget, lengths = KvBudget(10**9, row_cost=7), []
    for _ in range(40):
        lengths.append(int(rng.choice((50, 3000, 40_000)) * rng.random()) + 1)
        cost = budget.cost(lengths)
        assert cost >= sum(lengths) + 7 * len(lengths)
        assert cost <= KvBudget(10**9, row_cost=7, apart=False).cost(lengths)


def test_a_row_costs_its_fixed_part_beside_its_tokens():
    budget = KvBudget(capacity=4000, row_cost=100)
    assert budget.cost([300, 290]) == 2 * (100 + 512)
    assert budget.cost([]) == 0
    assert budget.reach == 3840
    assert budget.holds([budget.reach])


def test_fewer_bits_make_room_for_more_and_shorter_rows_cost_what_they_take():
    """KV_BITS from 1,000 tokens on: a token of a long row takes 272 bytes, of a short one 512."""
    rank, start = RankMemory(budget=10**7, fixed=0, token=272, whole=512), 1000
    budget = shared_budget([rank], start=start)
    assert budget.capacity == 10**7 // 272
    assert budget.reach == budget.capacity // STEP * STEP
    rng = random.Random(2)
    for _ in range(300):
        lengths = [rng.choice([rng.randint(1, 1500), rng.randint(1, 20_000)]) for _ in range(5)]
        needs = sum(max(n * rank.token, min(n, start) * rank.whole) for n in lengths)
        if budget.holds(lengths):
            assert needs <= rank.budget, lengths
    assert budget.cost([512]) == -(-512 * 512 // 272)
    assert budget.cost([1001]) == -(-1024 * 512 // 272), "what it takes just before"
    assert budget.cost([10_000, 512]) == budget.cost([10_000]) + budget.cost([512])


@pytest.mark.parametrize("tokens", [100, 600, 900, 2000, 40_000])
def test_a_lone_row_has_what_fits_before_and_after_it_is_in_fewer_bits(tokens):
    budget = shared_budget([RankMemory(272 * tokens, 0, token=272, whole=512)], start=1000)
    reach = budget.reach
    assert budget.cost([reach]) <= budget.capacity if reach else tokens < 600
    assert (
        not reach or budget.cost([reach + STEP]) > budget.capacity or reach < 1000 <= reach + STEP
    )
