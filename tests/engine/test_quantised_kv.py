"""Keys and values in fewer bits (KV_BITS): the text that mlx-lm's QuantizedKVCache gives a prompt
alone, whoever is computed beside it, and however it is cut, forked, cancelled or reused."""

import random
from unittest import mock

import mlx.core as mx
import pytest
from mlx_lm.models.base import quantized_scaled_dot_product_attention
from mlx_lm.models.cache import KVCache, QuantizedKVCache, make_prompt_cache

from server.engine import attention
from server.engine.quantised_kv import FEW, GROUP, attend_quantised
from server.protocol.row_lengths import STEP
from tests.models.served import CLOSE, desk_of, prompt, serve
from tests.support.desk import choices, ids_of, ticket
from tests.support.ticket_events import all_events

KINDS = ["llama, heads of 64", "gemma3_text, heads of 64", "qwen3_next, heads of 64"]
BITS = [(8, 0), (4, 50)]  # and the tokens from which on a row is quantised
APART = [("llama4, heads of 64", 8, 50), ("nemotron_h, heads of 64", 4, 0)]  # rows, and prompts


@pytest.fixture(scope="module", params=[(kind, *bits) for kind in KINDS for bits in BITS] + APART)
def shard(request):
    name, bits, start = request.param
    made = serve(name, kv_bits=bits, kv_bits_from=start)
    made.bits, made.start = bits, start
    return made


def by_mlx_lm(queries, keys, values, scale, mask, sinks=None):
    bits = 32 * keys[0].shape[-1] // (GROUP * keys[1].shape[-1])
    mine = queries * 1  # it changes them
    return quantized_scaled_dot_product_attention(mine, keys, values, scale, mask, GROUP, bits)


def alone(shard, text: list[int], places: int) -> list[mx.array]:
    """The logits after a text's last tokens, in mlx-lm's own caches and by its own attention."""
    caches, rows = make_prompt_cache(shard.model), []
    ends = sorted({0, shard.start, *range(len(text) - places + 1, len(text) + 1)})
    ends = [end for end in ends if end <= len(text)]
    with mock.patch.object(attention, "attend_quantised", by_mlx_lm):
        for start, end in zip(ends, ends[1:], strict=False):
            if start >= shard.start:
                caches = [
                    QuantizedKVCache(GROUP, shard.bits)
                    if type(one) is KVCache and one.empty()
                    else one.to_quantized(GROUP, shard.bits)
                    if type(one) is KVCache
                    else one
                    for one in caches
                ]
            rows.append(shard.model(mx.array([text[start:end]]), cache=caches)[0, -1])
            mx.eval(rows[-1], [layer.state for layer in caches])
    return rows[-places:]


def check(shard, one, ids: list[int]) -> None:
    """Each token of an answer is the likeliest at its place."""
    assert isinstance(ids, list) and len(ids) == one.max_tokens, f"{ids}"
    for place, row in enumerate(alone(shard, one.prompt + ids[:-1], len(ids))):
        behind = (mx.max(row) - row[ids[place]]).item()
        assert behind <= CLOSE, f"token {place} after {len(one.prompt)} is {behind:.3g} behind"


def test_a_model_that_bears_it_is_served_so(shard):
    ways = shard.last.ways
    assert ways.quantised.bits == shard.bits and ways.quantised.layers and ways.apart
    assert ways.precision.startswith(f"{shard.bits} bits")


def test_rows_in_any_company_get_what_mlx_lm_gives_each_alone(shard):
    """Some are long from the start, some get there as they decode, some come late, some leave."""
    lengths = (150, 5, 31, 48, 49, 1, 46, 90)
    asked = [ticket(prompt=prompt(n, length), max_tokens=12) for n, length in enumerate(lengths)]
    left = ticket(prompt=prompt(20, 60), max_tokens=40)
    late = {2: asked[4], 4: asked[5], 7: asked[6], 8: asked[7]}
    desk = desk_of(shard, slack=8)

    def act(turn: int) -> None:
        if turn in late:
            desk.line.admit([late[turn]])
        if turn == 5:
            desk.line.cancel(left)

    got = desk.run(*asked[:4], left, act=act)[:4]
    got += [ids_of(event for _, event in all_events(one)) for one in late.values()]
    for one, ids in zip(asked, got, strict=True):
        check(shard, one, ids)


def test_choices_and_scored_prompts_get_it_too(shard):
    two = choices(2, prompt=prompt(3, 70), max_tokens=7)
    scored = ticket(prompt=prompt(4, 65), max_tokens=7, common={"logprobs": 2}, score_prompt=True)
    *answers, its = desk_of(shard).run(two, scored)
    for ids in answers:
        check(shard, two, ids)
    check(shard, scored, its)


def test_what_goes_on_from_a_kept_prefix_gets_what_it_gets_without(shard):
    """Also from one that is cut, one that is shorter than what is quantised, and a longer one's
    beginning that is."""
    system = prompt(5, 40)
    desk = desk_of(shard)
    first = [ticket(prompt=system + prompt(n, n), max_tokens=9) for n in (6, 80)]
    for one, ids in zip(first, desk.run(*first), strict=True):
        check(shard, one, ids)
    long = first[1].prompt
    later = [ticket(prompt=p, max_tokens=9) for p in (
        [*long, 9, 8, 7], [*long[:100], 5, 4], [*system, 3, 2], [*system[:20], 7], [*long[:52], 6]
    )]  # fmt: skip
    for one, ids in zip(later, desk.run(*later), strict=True):
        check(shard, one, ids)
    assert later[0].cached >= 100


@pytest.mark.parametrize("room", [0, 10**6], ids=["anew", "from what is kept of it"])
def test_a_row_that_was_paused_goes_on_as_it_was(shard, room):
    """Those that came last are paused when the first outgrow the memory; some of them have become
    long enough by then, others become so as they are computed again."""
    lengths = (246, 250, 30, 44, 47)
    asked = [ticket(prompt=prompt(40 + n, n), max_tokens=14) for n in lengths]
    desk = desk_of(shard, capacity=len(lengths) * STEP, room=room)
    desk.scheduler._reserve = lambda one: one.length  # as if answers were short
    for one, ids in zip(asked, desk.run(*asked), strict=True):
        check(shard, one, ids)
    assert desk.scheduler._status.record.pauses


def test_what_is_kept_takes_no_more_than_quantised_keys(shard):
    desk = desk_of(shard)
    desk.run(ticket(prompt=prompt(7, 90), max_tokens=9))
    kept = [c for caches in desk.engine.prefixes._entries.values() for c in caches]
    assert not any(type(cache) is KVCache and cache.offset > shard.start for cache in kept)
    whole = [cache for cache in kept if type(cache) is QuantizedKVCache]
    assert whole and all(cache.keys[0].shape[2] == cache.offset for cache in whole)


@pytest.mark.parametrize("tokens", [1, FEW, FEW + 1])
@pytest.mark.parametrize("heads", [2, 8])
@pytest.mark.parametrize("bits", [8, 4])
def test_attention_is_mlx_lms(tokens, heads, bits):
    mx.random.seed(1)
    queries = mx.random.normal((3, heads, tokens, 64))
    keys, values = (mx.quantize(mx.random.normal((3, 2, 90, 64)), GROUP, bits) for _ in "kv")
    seen = mx.random.normal((3, 1, tokens, 90)) > -1
    for mask in (None, "causal", seen, mx.where(seen, 0.0, -2.0)):
        right = by_mlx_lm(queries, keys, values, 0.125, mask)
        got = attend_quantised(queries, keys, values, 0.125, mask)
        assert mx.allclose(got, right, atol=1e-5).item()


@pytest.mark.parametrize(
    "name, why",
    [
        ("llama", "64"),
        ("gpt_oss, heads of 64", "sinks"),
        ("deepseek_v3", "latent"),
        ("mamba2", "no layer"),
    ],
)
def test_a_model_that_does_not_bear_it_keeps_whole_ones_and_says_why(name, why, caplog):
    shard = serve(name, kv_bits=8)
    ways = shard.last.ways
    assert ways.quantised is None and why in ways.unfit and why in ways.precision
    assert any("KV_BITS" in line and why in line for line in caplog.messages)
    one = ticket(prompt=random.Random(1).choices(range(3, 250), k=20), max_tokens=5)
    assert len(desk_of(shard).run(one)[0]) == 5
