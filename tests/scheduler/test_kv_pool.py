"""One memory for the caches of several models."""

from fractions import Fraction

from server.protocol.row_lengths import Precision
from server.scheduler.kv_budget import KvBudget
from server.scheduler.kv_pool import KvPool, KvShare, Need, RankPart, RankRoom


def need(weights: int, token: int = 10, context: int = 100) -> Need:
    return Need((RankPart(weights, 0, token), RankPart(weights, 0, token)), context)


FIRST = need(1000)


def pool(spent: float = 0.5, most: int | None = None) -> KvPool:
    made = KvPool([RankRoom(50_000, 100_000, spent), RankRoom(60_000, 100_000, spent)], FIRST, most)
    made.add(0, FIRST)
    return made


def test_alone_the_first_has_what_was_measured():
    assert pool().budget(0) == KvBudget(5000, 0, True)


def test_weights_of_another_take_memory_from_all_caches_until_it_goes():
    one = pool()
    one.add(1, need(20_000, token=20))
    assert (one.budget(0).capacity, one.budget(1).capacity) == (4000, 2000)
    one.remove(1)
    assert one.budget(0).capacity == 5000


def test_memory_that_the_operator_gave_to_caches_stays_theirs():
    one = pool(spent=0.0)
    one.add(1, need(20_000))
    assert one.budget(0).capacity == 5000
    assert "leave too little" in one.misfit(need(90_000))


def test_what_does_not_fit_is_told_and_fits_without_another():
    one = pool(most=30_000)
    one.add(1, need(20_000))
    assert "MODELS_GB" in one.misfit(need(15_000))
    assert one.misfit(need(15_000), without=[1]) == ""
    assert "rank 0" in one.misfit(need(40_000), without=[0, 1])


def test_the_peak_of_loading_counts_as_long_as_it_lasts():
    assert pool().misfit(need(50_000), peak=10_000) == ""
    assert "leave too little" in pool().misfit(need(50_000), peak=60_000)


def test_rows_of_one_model_leave_the_others_less_and_a_lone_row_always_fits():
    taken, alone = 0.0, True
    share = KvShare(lambda: KvBudget(1024), lambda: taken, lambda: 0.25, lambda: alone)
    assert share.capacity == 1024 and share.rest(256) == 512
    assert share.holds([5000]), "nothing else runs"
    taken, alone = 0.5, False
    assert share.capacity == 512
    assert share.holds([512]) and not share.holds([513]) and share.holds([])


def test_rows_too_short_for_fewer_bits_cost_what_they_do():
    def bits(start: int) -> Need:
        return Need((RankPart(1000, 0, 10, 25),) * 2, 10_000, start=start)

    one = pool()
    one.add(1, bits(1024))
    assert one.budget(0).precision == Precision()
    assert one.budget(1).precision == Precision(1024, Fraction(5, 2))
    assert bits(1024).least == [40_960] * 2, "a row of 4,096 tokens is long"
    assert bits(8192).least == [102_400] * 2
