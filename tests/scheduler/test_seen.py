"""The loads of several models as one, also when some have gone."""

from server.observe.views import DiskUse, DraftUse, Load, PrefixUse
from server.scheduler.seen import past_of, since, together


def a_load(n: int) -> Load:
    disk = DiskUse(n, n, 100, n, n, n, n, n)
    return Load(n, 7, n, n, PrefixUse(n, n, n, n, n, disk), DraftUse(n, n, n), slot_free_s=n)


def test_what_is_there_is_of_those_that_are_and_counts_are_of_all():
    one = together([a_load(1), a_load(2)], [past_of(a_load(4))], held=5)
    assert (one.running, one.waiting, one.paused, one.kv_used, one.slot_free_s) == (3, 2, 3, 3, 1)
    assert one.drafts == DraftUse(7, 7, 7)
    assert one.prefixes == PrefixUse(3, 3, 7, 7, 7, DiskUse(3, 3, 100, 7, 7, 7, 7, 7))


def test_a_count_goes_on_when_its_model_goes_and_comes_again():
    past = past_of(a_load(2))
    assert together([], [past], held=3) == Load(
        waiting=3, prefixes=past.prefixes, drafts=DraftUse(2, 2, 2)
    )
    past = past_of(since(a_load(1), past))
    assert past.drafts.right == 3 and past.prefixes.hit_tokens == past.prefixes.disk.hit_tokens == 3
    assert past.prefixes.entries == past.prefixes.disk.bytes == past.running == past.kv_used == 0


def test_without_any_model_there_is_nothing():
    assert together([], held=2) == Load(waiting=2)
