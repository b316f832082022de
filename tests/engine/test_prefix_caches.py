"""Which caches can be cut; and that of those which hold several in a layer any beginning can be
reused, and gives what there is without."""

import random
from types import SimpleNamespace

import mlx.core as mx
import pytest
from mlx_lm.models.cache import CacheList, KVCache, make_prompt_cache

from server.engine.last_logits import LastLogits, put_heads
from server.engine.prefix_store import REUSE_CUT, REUSE_WHOLE, PrefixStore, leaves, reuse_kind
from server.engine.rows_apart import Ways
from server.protocol.failures import Refused
from tests.models.architectures import build
from tests.support.desk import Desk, ticket
from tests.support.tiny_models import VOCAB

# Their layers have lists of plain caches: for attention, and for what chooses among its tokens.
LISTS = ("deepseek_v32", "glm_moe_dsa", "minimax_m3_vl", "longcat_flash")


def text(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(VOCAB), k=length)


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_plain_caches_can_be_cut(name):
    model = build(name)
    assert any(type(cache) is CacheList for cache in make_prompt_cache(model))
    assert reuse_kind(model) == REUSE_CUT


@pytest.mark.parametrize("name", ["qwen3_5", "falcon_h1", "gpt_oss", "longcat_flash_ngram"])
def test_lists_and_layers_with_anything_else_cannot(name):
    assert reuse_kind(build(name), Ways(rows_apart=True)) == REUSE_WHOLE


@pytest.mark.parametrize("ways", [Ways(prompts_apart=True), Ways(True, True)], ids=str)
@pytest.mark.parametrize("name", LISTS)
def test_any_beginning_is_reused_and_the_answers_stay(name, ways):
    model = build(name)
    last = LastLogits(model, put_heads(model))
    last.ways = ways
    shard = SimpleNamespace(model=model, last=last, vocab=VOCAB)
    desk, bare = Desk(shard, room=10**6), Desk(shard)
    prompt = text(1, 200)
    assert desk.run(ticket(prompt=prompt)) == bare.run(ticket(prompt=prompt))
    for common in (150, 37, 199):
        other = ticket(prompt=prompt[:common] + [0 if prompt[common] else 1] + text(2, 20))
        assert desk.run(other) == bare.run(ticket(prompt=other.prompt))
        assert other.cached == common


def test_a_cut_gives_the_memory_of_all_of_a_layers_caches_back():
    model = build("deepseek_v32")
    caches = make_prompt_cache(model)
    model(mx.array([text(1, 300)]), cache=caches)
    mx.eval([cache.state for cache in leaves(caches)])
    store, before = PrefixStore(), sum(cache.nbytes for cache in caches)
    store.put(1, caches, 300)
    with pytest.raises(Refused, match="300 tokens, not 301"):
        store.take(1, 301)
    store.cut(1, 40)
    store.compute()
    taken = store.take(1, 30)
    assert {cache.offset for cache in leaves(taken) if not cache.empty()} == {30}
    assert {cache.offset for cache in leaves(caches) if not cache.empty()} == {40}
    assert sum(cache.nbytes for cache in caches) < before / 4
    assert all(type(cache) is KVCache for cache in leaves(caches))
