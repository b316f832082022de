"""Rows of unlike length: what they get in mlx-lm's caches they get on shelves, on every kind of
cache; and a short one beside a long one takes and reads no more than is its own."""

import copy
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
from mlx_lm.models.cache import KVCache

from server.engine import attention
from server.engine.batch_caches import BatchCaches
from server.engine.shelved_kv import ShelvedKV
from tests.models.served import desk_of, serve
from tests.support.desk import Desk, choices, ids_of, ticket
from tests.support.ticket_events import all_events

# A model of each kind of cache: full, sinks and windows, windows, states, latents, mixtures.
KINDS = [
    "llama", "gpt_oss", "gemma3_text", "qwen3_next", "deepseek_v3", "deepseek_v32", "kimi_linear",
    "gemma3n",
]  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def shard(request):
    return serve(request.param)


def in_one_rectangle(shard) -> SimpleNamespace:
    last = copy.copy(shard.last)
    last.ways = replace(last.ways, shelves=False, by_shelf=False)
    return SimpleNamespace(model=shard.model, last=last, vocab=shard.vocab)


def answers(shard, seed: int, **options) -> list[list[int]]:
    """Of prompts of all lengths, some of which come later, leave early, or go on from others."""
    rng = random.Random(seed)
    desk = Desk(shard, max_batch=6, room=10**6, cuttable=False, **options)

    def asked(length: int, begin=()) -> list[int]:
        return [*begin, *rng.choices(range(3, 250), k=length)]

    begin = asked(60)
    first = [ticket(prompt=asked(n), max_tokens=rng.randint(3, 12)) for n in (150, 5, 31)]
    left = ticket(prompt=asked(40), max_tokens=50)
    forked = choices(2, prompt=asked(80), max_tokens=9, temperature=0.7, seed=5)
    late = [ticket(prompt=asked(n, begin), max_tokens=8) for n in (3, 90, 1)]
    late += [ticket(prompt=asked(n), max_tokens=15) for n in (1, 6, 2, 220)]

    def act(turn: int) -> None:
        if turn in range(3, 3 + 3 * len(late), 3):
            desk.line.admit([late[turn // 3 - 1]])
        if turn == 9:
            desk.line.cancel(left)

    got = desk.run(*first, left, forked, act=act)
    return [*got[:3], *got[4:], *(ids_of(e for _, e in all_events(one)) for one in late)]


@pytest.mark.parametrize("slack", [0, 5, 256])
def test_shelves_give_the_text_that_one_rectangle_gives(shard, slack):
    assert shard.last.ways.shelves
    right = answers(in_one_rectangle(shard), slack)
    assert all(right) and answers(shard, slack, slack=slack) == right


def test_a_long_row_makes_short_ones_no_larger(monkeypatch):
    """Seven rows of 20 tokens beside one of 1500 were seven of 1500."""
    shard = serve("llama")
    seen: list[int] = []
    step = BatchCaches.step

    def noted(self, *arguments):
        result = step(self, *arguments)
        seen.append(sum(layer.nbytes for layer in self.layers))
        return result

    monkeypatch.setattr(BatchCaches, "step", noted)
    long, short = ([9] * 1500, 6), ([7] * 20, 6)
    taken = []
    for asked in ([long], [short] * 7, [long, *[short] * 7]):
        seen.clear()
        Desk(shard, max_batch=8).run(*(ticket(prompt=p, max_tokens=n) for p, n in asked))
        taken.append(max(seen))
    assert taken[2] <= 1.1 * (taken[0] + taken[1])


def test_a_row_that_leaves_or_comes_copies_no_other(monkeypatch):
    """Every newcomer and every leaver copied every cache."""
    shard = serve("llama")
    moved: list[list[str]] = []
    move = ShelvedKV.move

    def noted(self, moves, newcomers):
        moved.append([type(one).__name__ for one in moves])
        move(self, moves, newcomers)

    desk = Desk(shard, max_batch=8)
    rows = [ticket(prompt=[5 + n] * 30, max_tokens=40) for n in range(8)]
    newcomer = ticket(prompt=[4] * 31, max_tokens=4)

    def act(turn: int) -> None:
        if turn == 9:
            monkeypatch.setattr(ShelvedKV, "move", noted)
            desk.line.cancel(rows[3])
        if turn == 12:
            desk.line.admit([newcomer])
        if turn == 15:
            monkeypatch.setattr(ShelvedKV, "move", move)

    desk.run(*rows, act=act)
    moved = [one for one in moved if one]
    assert moved and all(one == ["Put"] for one in moved)


def test_the_calls_of_a_step_are_as_many_as_there_are_shelves(monkeypatch):
    shard = serve("llama")
    shapes: list[tuple[int, int]] = []
    stock = attention.scaled_dot_product_attention

    def spy(queries, keys, *rest):
        shapes.append((queries.shape[0], keys.shape[2]))
        return stock(queries, keys, *rest)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", spy)
    prompts = [[9] * 900, *[[7] * 20] * 3]
    Desk(shard).run(*(ticket(prompt=p, max_tokens=5) for p in prompts))
    steps = {(rows, keys) for rows, keys in shapes if rows == 3}
    assert steps and all(keys < 40 for _, keys in steps), "short rows read short caches"


def test_latent_prompts_share_a_pass_only_where_they_have_come_about_as_far(monkeypatch):
    """In it their keys are one array: a long text that is continued would make short ones as long
    as itself."""
    shard = serve("deepseek_v3")
    shapes: list[tuple[int, int]] = []
    call = type(shard.model).__call__

    def spy(self, inputs, cache=None, **rest):
        shapes.append(inputs.shape)
        return call(self, inputs, cache=cache, **rest)

    monkeypatch.setattr(type(shard.model), "__call__", spy)
    desk = Desk(shard, room=10**6, cuttable=False)
    text = [n % 200 + 3 for n in range(900)]
    desk.run(ticket(prompt=text, max_tokens=3))
    alone = [Desk(shard).run(ticket(prompt=p))[0] for p in ([5] * 20, [6] * 20)]
    shapes.clear()
    got = desk.run(ticket(prompt=[*text, 7, 8, 9]), *(ticket(prompt=[n] * 20) for n in (5, 6)))
    assert got[1:] == alone
    assert {shape for shape in shapes if shape[1] > 1} == {(1, 3), (1, 19)}
    shapes.clear()
    assert Desk(shard).run(*(ticket(prompt=[n] * 20) for n in (5, 6))) == alone
    assert (2, 20) in shapes


def test_what_is_kept_of_a_prompt_or_an_answer_holds_its_tokens_and_no_room_for_more():
    """Caches grow by 256 tokens: many short prefixes would take several times what is reckoned."""
    desk = desk_of(serve("llama"))
    begin = [n % 200 + 3 for n in range(70)]
    desk.run(ticket(prompt=[*begin, 7, 8], max_tokens=9))
    desk.run(ticket(prompt=[*begin, 9], max_tokens=9), ticket(prompt=[*begin, 4, 4], max_tokens=3))
    entries, lengths = desk.engine.prefixes._entries, desk.engine.prefixes.lengths()
    assert len(lengths) >= 2
    for number, caches in entries.items():
        sizes = {cache.keys.shape[2] for cache in caches if type(cache) is KVCache}
        assert sizes == {lengths[number]}
