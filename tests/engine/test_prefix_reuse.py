"""Prefixes that the ranks keep: less is computed, and the answers are the same."""

import random
from types import SimpleNamespace

import mlx.core as mx
import pytest
from mlx.utils import tree_map

from server.engine.last_logits import LastLogits, put_heads
from server.engine.prefix_store import REUSE_CUT, REUSE_WHOLE, reuse_kind
from server.wire.messages import Submit
from tests.support.desk import Desk, choices, ids_of, ticket
from tests.support.small_models import KINDS, VOCAB, small_llama, small_mamba

ROOM = 10**6


@pytest.fixture(scope="module", params=KINDS)
def shard(request):
    model = KINDS[request.param]()
    key = mx.random.key(7)
    # Large enough weights that the best token stands out, whatever the rounding.
    model.update(
        tree_map(
            lambda w: mx.random.normal(w.shape, key=key) * 0.4 if w.ndim > 1 else w,
            model.parameters(),
        )
    )
    mx.eval(model.parameters())
    return SimpleNamespace(model=model, last=LastLogits(model, put_heads(model)), vocab=VOCAB)


def desk_for(shard, **options) -> Desk:
    return Desk(shard, **{"cuttable": reuse_kind(shard.model) == REUSE_CUT} | options)


def text(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(VOCAB), k=length)


SYSTEM = text(0, 150)


def test_what_each_kind_of_cache_allows():
    assert reuse_kind(small_llama()) == REUSE_CUT
    assert reuse_kind(KINDS["sliding"]()) == REUSE_WHOLE
    assert reuse_kind(small_mamba()) == REUSE_WHOLE


def test_a_conversation_computes_only_what_is_new(shard):
    desk, bare = desk_for(shard, room=ROOM), desk_for(shard)
    prompt = SYSTEM + text(1, 100)
    for turn in range(4):
        before, one = desk.computed, ticket(prompt=prompt, max_tokens=20)
        (answer,) = desk.run(one)
        assert [answer] == bare.run(ticket(prompt=prompt, max_tokens=20)), f"turn {turn}"
        if turn:
            # All but the turn's own tokens, and the last of the answer, whose cache may be unused.
            assert one.cached >= len(prompt) - 32
            assert desk.computed - before <= 32
        assert one.cached + desk.computed - before == len(prompt)
        prompt = prompt + answer + text(10 + turn, 30)


def test_a_shared_beginning_is_computed_once_it_is_known_to_be_shared(shard):
    desk, bare = desk_for(shard, room=ROOM), desk_for(shard)
    cached = []  # at most the shared part: two texts may begin alike by chance
    for seed in range(1, 5):
        one = ticket(prompt=SYSTEM + text(seed, 40))
        assert desk.run(one) == bare.run(ticket(prompt=SYSTEM + text(seed, 40)))
        cached.append(min(one.cached, len(SYSTEM)))
    cuttable = reuse_kind(shard.model) == REUSE_CUT
    # Where caches can't be cut, the second prompt shows where they part, and it is kept there.
    assert cached == [0, len(SYSTEM) if cuttable else 0, len(SYSTEM), len(SYSTEM)]


def test_concurrent_requests_reuse_the_same_entry(shard):
    desk, bare = desk_for(shard, room=ROOM, max_batch=6), desk_for(shard, max_batch=6)
    for seed in (1, 2):
        desk.run(ticket(prompt=SYSTEM + text(seed, 40)))
    some = [SYSTEM + text(seed, 10 + seed) for seed in range(3, 9)]
    tickets = [ticket(prompt=p, max_tokens=12, temperature=0.9, seed=5) for p in some]
    expected = [bare.run(ticket(prompt=p, max_tokens=12, temperature=0.9, seed=5)) for p in some]
    assert [[ids] for ids in desk.run(*tickets)] == expected
    assert all(one.cached == len(SYSTEM) for one in tickets)


def test_choices_of_one_prompt_reuse_it(shard):
    desk, bare = desk_for(shard, room=ROOM, max_batch=6), desk_for(shard, max_batch=6)
    prompt = SYSTEM + text(1, 150)
    fields = {"prompt": prompt, "max_tokens": 10, "temperature": 1.0, "seed": 3}
    expected = bare.run(choices(3, **fields))
    assert desk.run(choices(3, **fields)) == expected
    again = choices(3, **fields)
    assert desk.run(again) == expected
    # Where caches can't be cut, the prompt's own entry ends before its last token.
    assert again.cached == len(prompt) - 1


def test_log_probabilities_of_a_prompt_are_never_skipped(shard):
    desk = desk_for(shard, room=ROOM)
    fields = {"prompt": SYSTEM, "max_tokens": 2, "common": {"logprobs": 1}, "score_prompt": True}
    first, second = (desk.events(ticket(**fields))[0] for _ in range(2))
    assert first == second


def test_a_client_that_leaves_costs_nothing_that_is_kept(shard):
    desk, bare = desk_for(shard, room=ROOM), desk_for(shard)
    prompt = SYSTEM + text(1, 300)
    for turn in range(12):
        gone = ticket(prompt=prompt, max_tokens=1000)

        def leave(now: int, gone=gone, turn=turn) -> None:
            if now == turn:
                desk.line.cancel(gone)

        desk.events(gone, act=leave)
    # Somebody got as far as the end of the prompt, which is kept then.
    last = ticket(prompt=prompt)
    assert desk.run(last) == bare.run(ticket(prompt=prompt))
    assert last.cached == len(prompt) - 1


def test_kept_prefixes_give_way_to_running_requests(shard):
    desk, bare = desk_for(shard, room=1500, capacity=2048), desk_for(shard)
    for seed in range(1, 5):
        desk.run(ticket(prompt=text(seed, 300)))
    assert 0 < len(desk.engine.prefixes) <= 4
    before = len(desk.engine.prefixes)
    some = [ticket(prompt=text(seed, 400), max_tokens=50) for seed in range(5, 9)]
    expected = [bare.run(ticket(prompt=t.prompt, max_tokens=50))[0] for t in some]
    assert desk.run(*some) == expected
    prefixes = desk.scheduler._prefixes
    assert prefixes.evicted_tokens > 0
    assert before and prefixes.used <= 2048


def test_every_rank_holds_what_the_index_says(shard):
    """Random traffic: prefixes shared and not, leavers, little room."""
    rng = random.Random(5)
    desk, bare = desk_for(shard, room=900, capacity=4096), desk_for(shard)
    for turn in range(12):
        prompts = [
            SYSTEM[: rng.choice([40, 150])] + text(rng.randrange(4), rng.randrange(1, 120))
            for _ in range(3)
        ]
        tickets = [ticket(prompt=p, max_tokens=rng.randrange(1, 30)) for p in prompts]
        leaver = rng.randrange(6)

        def leave(now: int, tickets=tickets, leaver=leaver) -> None:
            if leaver < 3 and now == leaver:
                desk.line.cancel(tickets[leaver])

        events = desk.events(*tickets, act=leave)
        for place, (one, seen) in enumerate(zip(tickets, events, strict=True)):
            if place != leaver:
                alone = bare.run(ticket(prompt=one.prompt, max_tokens=one.max_tokens))
                assert [ids_of(seen)] == alone, f"turn {turn}"
    held, index = desk.engine.prefixes._entries, desk.scheduler._prefixes._entries
    assert set(held) == set(index) | set(desk.scheduler._prefixes._redundant)
    for number, entry in index.items():
        sizes = {cache.size() for cache in held[number] if type(cache).__name__ == "KVCache"}
        assert sizes <= {len(entry.tokens)}


# A prompt under way, whose client leaves.

LONG = 40  # chunks of the desk's


def leave_at(desk, turns: int, *gone):
    """What lets clients leave in a turn."""

    def act(now: int) -> None:
        if now == turns:
            for one in gone:
                desk.line.cancel(one)

    return act


@pytest.mark.parametrize("count", [1, 3], ids=["one choice", "three"])
def test_who_leaves_in_the_midst_of_a_prompt_and_asks_again_goes_on_from_there(shard, count):
    desk, bare = desk_for(shard, room=ROOM), desk_for(shard)
    prompt = text(1, LONG * 64)
    gone = choices(count, prompt=prompt, max_tokens=1000)
    every = [gone, *gone.followers]
    desk.events(gone, act=leave_at(desk, LONG * 4 // 5, *every))
    before, again = desk.computed, ticket(prompt=prompt)
    assert desk.run(again) == bare.run(ticket(prompt=prompt))
    assert desk.computed - before == len(prompt) - again.cached <= len(prompt) // 4
    # And whoever goes on with it otherwise, wherever caches can be cut.
    assert desk.run(ticket(prompt=prompt + text(2, 9))) == bare.run(
        ticket(prompt=prompt + text(2, 9))
    )


def test_a_choice_that_leaves_takes_nothing_of_the_prompt_from_the_others(shard):
    desk, bare = desk_for(shard, room=ROOM), desk_for(shard)
    prompt = text(1, 12 * 64)
    first = choices(3, prompt=prompt, max_tokens=5)
    answers = desk.run(first, act=leave_at(desk, 4, first))
    expected = bare.run(choices(3, prompt=prompt, max_tokens=5))
    assert answers[1:] == expected[1:]
    assert desk.computed <= len(prompt) + 3 * 5


def test_who_leaves_again_and_again_has_it_in_the_end(shard):
    """A client that waits for 300 s never saw the end of a prompt that takes longer."""
    desk, bare = desk_for(shard, room=ROOM), desk_for(shard)
    prompt = text(1, LONG * 64)
    for turn in range(5):
        gone = ticket(prompt=prompt)
        desk.events(gone, act=leave_at(desk, LONG // 5 + 1, gone))
        assert gone.cached >= turn * LONG // 5 * 64
    last = ticket(prompt=prompt)
    assert desk.run(last) == bare.run(ticket(prompt=prompt))
    assert last.cached == len(prompt) - 1
    index = desk.scheduler._prefixes
    assert index.hit_tokens + index.miss_tokens == 6 * len(prompt)


@pytest.mark.parametrize("at", [3, 9, 20])
def test_who_leaves_in_an_answer_and_goes_on_from_there_computes_none_of_it_again(shard, at):
    desk, bare = desk_for(shard, room=ROOM), desk_for(shard)
    gone = ticket(prompt=text(1, 100), max_tokens=50)
    bystander = ticket(prompt=text(2, 90), max_tokens=60)
    events, others = desk.events(gone, bystander, act=leave_at(desk, at, gone))
    assert [ids_of(others)] == bare.run(ticket(prompt=text(2, 90), max_tokens=60))
    prompt = text(1, 100) + ids_of(events)[:-1] + text(3, 20)
    asks = ticket(prompt=prompt)
    assert desk.run(asks) == bare.run(ticket(prompt=prompt))
    if reuse_kind(shard.model) == REUSE_CUT:
        assert asks.cached >= len(prompt) - 20 - 1
    assert asks.cached >= 99


def test_nothing_is_kept_of_a_prompt_of_which_nothing_was_computed(shard):
    desk = desk_for(shard, room=ROOM)
    engine, prompt = desk.engine, text(1, 300)
    desk.run(ticket(prompt=prompt))
    held = len(engine.prefixes)
    (entry, length), *_ = sorted(engine.prefixes.lengths().items())
    more = [*desk.scheduler._prefixes._entries[entry].tokens.tolist(), *text(2, 100)]
    engine.submit(Submit(10**6, more, 5, reuse=(entry, length)))
    engine.submit(Submit(10**6 + 1, text(3, 100), 5))
    for uid in (10**6, 10**6 + 1, 10**6 + 2):
        assert engine.cancel(uid, keep=10**6) == []
    assert len(engine.prefixes) == held and not engine.busy
