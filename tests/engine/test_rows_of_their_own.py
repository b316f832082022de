"""Rows of unlike length: what they get in mlx-lm's caches they get on shelves, on every kind of
cache; and a short one beside a long one takes and reads no more than is its own."""

import pytest
from mlx_lm.models.cache import KVCache

from server.engine import attention
from server.engine.batch_caches import BatchCaches
from server.engine.prefix_store import REUSE_CUT, reuse_kind
from server.engine.shelved_kv import ShelvedKV
from tests.models.company import differences, play, rectangle
from tests.models.served import desk_of, serve
from tests.support.desk import Desk, shapes_of, ticket

# A model of each kind of cache: full, full with experts, sinks and windows, windows, states beside
# full ones, states alone, latents, latents with a choice of what to look at, latents beside states,
# layers that share keys, states that see padding.
KINDS = [
    "llama", "mixtral", "gpt_oss", "gemma3_text", "qwen3_next", "mamba2", "deepseek_v3",
    "deepseek_v32", "kimi_linear", "gemma3n", "nemotron_h",
]  # fmt: skip
QUANTISED = [
    ("llama, heads of 64", 8, 0), ("gemma3_text, heads of 64", 8, 70),
    ("qwen3_next, heads of 64", 4, 70), ("nemotron_h, heads of 64", 8, 70),
]  # fmt: skip
SEEDS = {1: {"slack": 5}, 4: {}}


def check_the_same(shard) -> None:
    seen = []
    for seed, options in SEEDS.items():
        right = play(rectangle(shard), seed)
        seen += right, play(shard, seed, right.plan, **options)
        assert not list(differences(*seen[-2:]))
    assert all(played.pauses for played in seen)
    if reuse_kind(shard.model, shard.last.ways) == REUSE_CUT:
        assert any(played.reused for played in seen)


@pytest.mark.sweep(6)
@pytest.mark.parametrize("name", KINDS)
def test_shelves_give_the_text_that_one_rectangle_gives(name):
    shard = serve(name)
    assert shard.last.ways.shelves
    check_the_same(shard)


@pytest.mark.sweep(6)
@pytest.mark.parametrize("name, bits, start", QUANTISED)
def test_shelves_of_fewer_bits_give_the_text_that_rows_apart_give(name, bits, start):
    shard = serve(name, kv_bits=bits, kv_bits_from=start)
    assert shard.last.ways.shelves and shard.last.ways.quantised
    check_the_same(shard)


@pytest.mark.sweep(6)
@pytest.mark.parametrize(
    "name",
    [
        "gemma3_text", "qwen3_next, heads of 64",
        *(pytest.param(one, marks=pytest.mark.thorough) for one in KINDS if one != "gemma3_text"),
    ],
)  # fmt: skip
def test_what_is_drafted_changes_no_text(name):
    """Rows come, leave, are paused and go on while some have drafts; those of windows and states
    only as long as they are alone."""
    shard = serve(name, kv_bits=8, kv_bits_from=70) if "," in name else serve(name)
    drafted = 0
    for seed in (1, 4):
        right = play(shard, seed)
        for batch in (1, 6):
            got = play(shard, seed, right.plan, right, max_batch=batch)
            assert not list(differences(right, got))
            drafted += got.drafted
    assert drafted > 20


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
    shapes = shapes_of(shard, monkeypatch)
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
