"""Which prefixes are found, kept and given up. Pure bookkeeping: no model, no ranks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.scheduler.prefix_index import Plan, PrefixIndex
from server.wire.messages import LEAST_KEPT


def text(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 50_000, length).tolist()


SYSTEM = text(0, 100)


def indexed(*texts: list[int], room: int = 10**6, cuttable: bool = True) -> PrefixIndex:
    index = PrefixIndex(room, cuttable)
    for number, tokens in enumerate(texts, 1):
        index.plan(tokens)
        index.add(number, tokens)
    return index


def test_nothing_is_kept_or_counted_without_room():
    index = PrefixIndex(0, cuttable=True)
    assert index.plan(text(1, 500)) == Plan()
    assert (index.hit_tokens, index.miss_tokens, index.used) == (0, 0, 0)


def test_the_longest_shared_prefix_is_found_by_token():
    index = indexed(SYSTEM + text(1, 50), SYSTEM + text(2, 400))
    plan = index.plan(SYSTEM + text(2, 400)[:70] + text(3, 30))
    assert (plan.entry, plan.length) == (2, 170)
    assert index.hit_tokens == len(SYSTEM) + 170, "the second had found the first's beginning"
    assert index.miss_tokens == 150 + 400 + 30


def test_one_token_is_always_left_to_compute():
    index = indexed(text(1, 80))
    assert index.plan(text(1, 80)).length == 79
    assert index.plan(text(1, 60)).length == 59


def test_a_short_common_beginning_is_no_hit():
    index = indexed(text(1, 200))
    few = LEAST_KEPT - 1
    assert index.plan(text(1, 200)[:few] + text(2, 100)).length == 0
    assert index.plan(text(1, 200)[: few + 1] + text(2, 100)).length == few + 1


def test_a_short_system_prompt_is_shared():
    """A model's default one has some 20 tokens with its marks, and was computed every time."""
    system = text(0, 20)
    index = indexed(system + text(1, 40))
    assert index.plan(system + text(2, 40)).length == len(system)


def test_a_conversation_replaces_its_earlier_turns():
    turn = SYSTEM + text(1, 100)
    index = indexed(turn, turn + text(2, 100))
    assert len(index) == 1 and index.used == 300
    assert index.make_room(10**6).drop == (1,)
    assert index.make_room(10**6).drop == (), "told once"
    assert index.evicted_tokens == 0, "nothing is lost by it"


def test_the_prompt_is_kept_early_only_if_much_of_it_is_new():
    index = PrefixIndex(10**6, cuttable=True)
    assert [at for at, _ in index.plan(text(1, 1000)).keep] == [1000]
    assert index.plan(text(2, 200)).keep == ()
    index.add(9, text(1, 1000))
    assert index.plan(text(1, 1000) + text(3, 100)).keep == ()
    numbers = [n for p in range(2, 6) for _, n in index.plan(text(p, 400)).keep]
    assert len(set(numbers)) == 4, "every entry has a number of its own"


def test_a_prompt_larger_than_the_room_is_not_kept():
    plan = PrefixIndex(100, cuttable=True).plan(text(1, 300))
    assert plan.keep == () and plan.store == 0


def test_the_least_recently_used_goes_first():
    index = indexed(text(1, 100), text(2, 100), text(3, 100))
    index.plan(text(1, 100) + [5])
    room = index.make_room(200)
    assert room.drop == (2,) and not room.cut
    assert index.evicted_tokens == 100
    assert index.make_room(200).drop == ()


def test_a_system_prompt_outlives_the_turns_that_began_with_it():
    index = indexed(SYSTEM + text(1, 300), text(9, 100))
    for seed in range(2, 5):
        assert index.plan(SYSTEM + text(seed, 20)).length == len(SYSTEM)
    room = index.make_room(200)
    assert room.cut == ((1, len(SYSTEM)),) and room.drop == ()
    assert index.used == 200
    assert index.plan(SYSTEM + text(7, 20)).length == len(SYSTEM)
    assert index.make_room(150).drop == (2,), "which was used less recently than the system prompt"
    assert index.plan(SYSTEM + text(8, 20)).length == len(SYSTEM)


def test_a_cut_entry_that_is_dropped_in_the_same_breath_is_only_dropped():
    index = indexed(SYSTEM + text(1, 300))
    index.plan(SYSTEM + text(2, 20))
    room = index.make_room(0)
    assert room.drop == (1,) and room.cut == ()
    assert index.evicted_tokens == 400


def test_entries_stay_within_their_own_part():
    index = PrefixIndex(250, cuttable=True)
    for number in range(1, 6):
        index.plan(text(number, 100))
        index.add(number, text(number, 100))
    assert index.make_room(10**9).drop == (1, 2, 3)
    assert index.used == 200


def test_caches_that_cannot_be_cut_serve_only_whole():
    index = indexed(SYSTEM + text(1, 50), cuttable=False)
    assert index.plan(SYSTEM + text(2, 50)).length == 0
    assert index.plan(SYSTEM + text(1, 50) + text(2, 9)).length == 150
    assert index.plan(SYSTEM + text(1, 50)).length == 0, "no token would be left to compute"


def test_where_caches_cannot_be_cut_the_parting_is_kept_as_an_entry():
    index = indexed(SYSTEM + text(1, 50), cuttable=False)
    second = SYSTEM + text(2, 300)
    plan = index.plan(second)
    assert [at for at, _ in plan.keep] == [len(SYSTEM), len(second) - 1]
    for at, number in plan.keep:
        index.add(number + 100, second[:at])
    assert index.plan(SYSTEM + text(3, 50)).length == len(SYSTEM)
    assert index.plan(second + text(4, 9)).length == len(second) - 1


def test_entries_cost_their_states_beside_their_tokens():
    index = PrefixIndex(1000, cuttable=False, entry_cost=400)
    for number in (1, 2, 3):
        index.plan(text(number, 50))
        index.add(number, text(number, 50))
    assert index.used == 3 * 450
    assert index.make_room(10**9).drop == (1,)


@pytest.mark.parametrize("cuttable", [True, False])
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 90), st.integers(0, 700)),
        max_size=40,
    )
)
def test_what_the_index_promises_the_ranks_have(cuttable, requests):
    """Plays the ranks: an entry that a plan names is there, with the tokens it is said to have."""
    index, held = PrefixIndex(500, cuttable), {}
    for system, middle, length, limit in requests:
        prompt = [system] * 60 + [10 + middle] * 40 + text(length, length)
        plan = index.plan(prompt)
        if plan.length:
            assert held[plan.entry][: plan.length] == prompt[: plan.length]
            assert cuttable or len(held[plan.entry]) == plan.length
            assert plan.length < len(prompt)
        for at, number in plan.keep:
            assert plan.length < at < len(prompt) + cuttable
            held[number] = prompt[:at]
            index.add(number, held[number])
        if plan.store:
            held[plan.store] = prompt + text(99, 5)
            index.add(plan.store, held[plan.store])
        room = index.make_room(limit)
        for number, cut in room.cut:
            held[number] = held[number][:cut]
        for number in room.drop:
            del held[number]
        assert index.used == sum(map(len, held.values())) <= min(500, limit)


def test_to_give_up_thousands_takes_no_search_for_each(monkeypatch):
    """It took a second and a half, for which all ranks stood."""
    looked = 0

    class Counted(dict):
        def __iter__(self):
            for key in super().__iter__():
                nonlocal looked
                looked += 1
                yield key

        def items(self):
            return ((key, self[key]) for key in self)

    count = 1000
    index = indexed(*[text(n, 20) for n in range(count)])
    index._entries = Counted(index._entries)
    assert len(index.make_room(0).drop) == count
    assert len(index) == index.used == 0
    assert looked <= 3 * count


def test_the_order_in_which_prefixes_go_is_by_use_also_after_a_cut():
    index = indexed(SYSTEM + text(1, 400), text(2, 300))
    index.plan(SYSTEM + text(3, 40))
    index.plan(text(2, 300) + [1])
    room = index.make_room(420)
    assert room.cut == ((1, len(SYSTEM)),) and room.drop == ()
    # What others began with was used before the second entry was.
    assert index.make_room(350).drop == (1,)


def test_an_entry_that_is_given_up_is_found_no_more_and_dropped_with_the_next():
    index = indexed(SYSTEM + text(1, 50), text(2, 50))
    for _ in range(2):
        index.give_up(1)
    assert index.plan(SYSTEM + text(1, 50)).length == 0
    assert index.make_room(10**6).drop == (1,)
    assert index.make_room(10**6).drop == () and index.used == 50
