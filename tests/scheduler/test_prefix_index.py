"""Which prefixes are found, kept and given up. Pure bookkeeping: no model, no ranks."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.protocol.requests import Places
from server.protocol.row_lengths import Precision
from server.scheduler import prefix_index
from server.scheduler.prefix_index import EVERYBODY, LONG, Plan, PrefixIndex
from server.scheduler.prefix_worth import BONUS
from server.wire.messages import LEAST_KEPT


def text(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 50_000, length).tolist()


SYSTEM = text(0, 100)


def indexed(
    *texts: list[int], room: int = 10**6, cuttable: bool = True, **more: Precision
) -> PrefixIndex:
    index = PrefixIndex(room, cuttable, **more)
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
        plan = index.plan(prompt, Places((60, 100), 60))
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


# Where caches cannot be cut.


def keep(index: PrefixIndex, prompt: list[int], answer: int = 0, **plan) -> Plan:
    """Plays the ranks for one prompt."""
    found = index.plan(prompt, **plan)
    for at, number in found.keep:
        index.add(number, prompt[:at])
    if answer:
        index.add(found.store, prompt + text(len(prompt), answer))
    return found


def places(plan: Plan) -> list[int]:
    return [at for at, _ in plan.keep]


def test_places_are_kept_where_caches_cannot_be_cut():
    prompt = text(1, 300)
    at = Places((5, 40, 200, 298), 40)
    assert places(keep(PrefixIndex(10**6, cuttable=False), prompt, places=at)) == [
        40,
        200,
        298,
        299,
    ]
    assert places(keep(PrefixIndex(10**6, cuttable=True), prompt, places=at)) == [300]


def test_what_is_reused_is_not_kept_again():
    index = PrefixIndex(10**6, cuttable=False)
    prompt = text(1, 300)
    keep(index, prompt, places=Places((40, 200), 40))
    plan = keep(index, prompt[:250] + text(2, 50), places=Places((40, 200), 40))
    assert plan.length == 200 and places(plan) == [250, 299]
    assert keep(index, prompt, places=Places((40, 200))) == Plan(3, 299, (), plan.store + 1)


def test_a_parting_just_behind_what_is_reused_is_not_kept():
    index = PrefixIndex(10**6, cuttable=False)
    prompt = text(1, 300)
    keep(index, prompt, 20)
    again = prompt + text(2, 1) + text(3, 40)
    assert places(keep(index, again)) == [len(again) - 1]


def test_a_long_prompt_is_kept_in_its_midst_while_there_is_room_to_spare():
    long = text(1, 5 * LONG)
    assert places(keep(PrefixIndex(10**6, cuttable=False), long)) == [
        LONG, 2 * LONG, 3 * LONG, 4 * LONG, 5 * LONG - 1
    ]  # fmt: skip
    longer = text(2, 50 * LONG)
    assert len(places(keep(PrefixIndex(10**7, cuttable=False), longer))) <= 5
    index = PrefixIndex(12 * LONG, cuttable=False)
    assert places(keep(index, long)) == [5 * LONG - 1]
    index = PrefixIndex(10**6, cuttable=False)
    keep(index, long)
    other = long[: 2 * LONG + 100] + text(3, 500)
    assert keep(index, other).length == 2 * LONG


def test_places_that_have_no_room_together_are_thinned_out():
    index = PrefixIndex(1000, cuttable=False)
    plan = index.plan(text(1, 400), Places((100, 390), 100))
    assert places(plan) == [100, 390], "and 400 for its answer"


def test_the_step_before_goes_before_what_the_next_turn_begins_with():
    """A conversation in room for hardly more than one of its entries must not fall behind."""
    index = PrefixIndex(2600, cuttable=False)
    talk = text(0, 1000)
    for turn in range(1, 8):
        at = len(talk) - 2
        plan = keep(index, talk, 20, places=Places((at,)))
        index.make_room(10**9)
        assert turn == 1 or len(talk) - plan.length <= 2 * 50 + 2, f"turn {turn}"
        talk = talk[:at] + text(turn, 50)


def test_a_system_prompt_stays_while_conversations_go_on_from_it():
    index = PrefixIndex(3000, cuttable=False)
    for n in range(2 * BONUS):
        prompt = SYSTEM + text(n % 3 + 1, 100 + n)
        keep(index, prompt, 20, places=Places((len(SYSTEM), len(prompt) - 2), len(SYSTEM)))
        index.make_room(10**9)
    assert index.evicted_tokens
    assert keep(index, SYSTEM + text(9, 50)).length == len(SYSTEM)


def test_what_others_went_on_from_and_nobody_uses_any_more_goes_in_the_end():
    index = PrefixIndex(3000, cuttable=False)
    keep(index, SYSTEM + text(1, 50), places=Places((len(SYSTEM),), len(SYSTEM)))
    for n in range(3 * BONUS):
        keep(index, text(100 + n, 200), 20)
        index.make_room(10**9)
    assert index.plan(SYSTEM + text(2, 50)).length == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 60)), max_size=30))
def test_what_an_entry_saves_is_counted_from_the_next_shorter_one(requests):
    index = PrefixIndex(10**6, cuttable=False)
    for n, (system, middle, length) in enumerate(requests):
        prompt = [system] * 40 + [10 + middle] * 30 + text(length, length)
        keep(index, prompt, 5, places=Places((40, 70)))
        if n % 4 == 3:
            index.make_room(index.used - 100)
        for number, entry in index._entries.items():
            ancestors = [
                len(other.tokens)
                for other in index._entries.values()
                if len(other.tokens) < len(entry.tokens)
                and (entry.tokens[: len(other.tokens)] == other.tokens).all()
            ]
            saved = len(entry.tokens) - max(ancestors, default=0)
            assert index._lineage.saved(number) == saved


# Where caches can be cut.


def test_a_part_of_what_is_kept_already_is_given_back():
    index = indexed(text(1, 300))
    number = index.promise("", part=True)
    index.add(number, text(1, 300)[:200])
    assert index.make_room(10**9).drop == (number,) and index.used == 300
    assert index.plan(text(1, 300) + [1]).length == 300


# Owners.


@pytest.mark.parametrize("cuttable", [True, False])
def test_an_owner_finds_its_own_prefixes_and_everybodys(cuttable):
    index = PrefixIndex(10**6, cuttable)
    hers, his, all_of_us = (SYSTEM + text(n, 300) for n in range(1, 4))
    for prompt, owner in ((hers, "ann"), (his, "bob"), (all_of_us, EVERYBODY)):
        keep(index, prompt, places=Places((len(SYSTEM),)), owner=owner)

    def found(prompt: list[int], owner: str) -> int:
        return index.plan([*prompt[:-1], 1, 2], owner=owner).length

    assert found(hers, "ann") == found(his, "bob") == len(hers) - 1
    assert found(hers, "bob") == found(his, "ann") == found(his, "") == len(SYSTEM), "everybody's"
    assert found(all_of_us, "ann") == found(all_of_us, "") == len(hers) - 1


def test_the_same_prefix_is_kept_for_each_owner():
    index = PrefixIndex(10**6, cuttable=True)
    for owner in ("ann", "bob"):
        assert keep(index, text(1, 300), owner=owner).length == 0
        assert index.plan(text(1, 300), owner=owner).length == 299
    assert index.used == 600


def test_a_part_belongs_to_who_has_left():
    index = PrefixIndex(10**6, cuttable=True)
    index.add(index.promise("ann", part=True), text(1, 300))
    assert index.plan(text(1, 400), owner="bob").length == 0
    assert index.plan(text(1, 400), owner="ann").length == 300


def test_owners_leave_nothing_behind():
    index = PrefixIndex(1000, cuttable=True)
    for n in range(50):
        keep(index, text(n, 300), owner=f"key {n}")
        index.make_room(10**9)
    assert len(index._trees) <= 4 and index.used <= 1000


def test_numbers_that_never_come_back_are_forgotten(monkeypatch):
    monkeypatch.setattr(prefix_index, "MOST_PROMISED", 10)
    index = PrefixIndex(10**6, cuttable=True)
    plans = [index.plan(text(n, 300), owner="ann") for n in range(50)]
    assert len(index._promised) == 10
    index.add(plans[0].store, text(0, 320))
    assert index.plan(text(0, 330), owner="ann").length == 0, "whose it was is not known any more"


FROM_200 = Precision(200, Fraction(2))


def test_a_long_text_in_fewer_bits_serves_no_shorter_beginning():
    """The row that goes on from it would see other numbers than it computes by itself."""
    long = SYSTEM + text(1, 300)
    index = indexed(long, precision=FROM_200)
    assert index.plan(SYSTEM + text(2, 50)).length == 0
    assert index.plan(long[:199]).length == index.plan(long[:200]).length == 0
    assert index.held(long[:200]) == 0 and index.held(long[:201]) == 200
    assert index.plan(long[:201]).length == 200
    assert index.plan(long + text(3, 9)).length == 400


def test_short_and_long_texts_that_begin_alike_are_both_kept():
    short, long = SYSTEM + text(2, 50), SYSTEM + text(2, 50) + text(3, 300)
    index = indexed(short, long, precision=FROM_200)
    assert len(index) == 2 and index.used == 2 * 150 + 450
    assert index.plan(SYSTEM + text(4, 60)).length == 100
    assert index.plan([*long, 1]).length == 450
    index = indexed(long, short, precision=FROM_200)
    assert len(index) == 2


def test_a_long_text_is_not_cut_to_a_beginning_that_is_short():
    long = SYSTEM + text(1, 300)
    index = indexed(long, precision=FROM_200)
    index.plan(SYSTEM + text(2, 50))
    room = index.make_room(399)
    assert room.drop == (1,) and not room.cut
    index = indexed(long, precision=FROM_200)
    index.plan(long[:250] + text(2, 50))
    assert index.make_room(399).cut == ((1, 250),)
