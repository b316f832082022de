"""Layers as a chain, found out by watching a pass; ones that are left out still count tokens."""

from types import SimpleNamespace

import pytest

pytest.importorskip("mlx.core")

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from server.startup.layer_chain import Unfit, follow, leave_out, replaced
from tests.models.architectures import build


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "nemotron_h", "qwen3_next", "gpt_oss"])
def test_layers_of_most_models_are_a_chain(name):
    model = build(name)
    chain = follow(model)
    assert len(chain.calls) == len(model.layers)
    assert [len(run) for run in chain.runs()] == [1] * len(model.layers)
    assert chain.axis == 1


def test_layers_that_share_keys_stay_together():
    """Those of hunyuan in pairs; gemma 4's last ones use the keys of the first."""
    assert follow(build("hunyuan")).runs() == [range(0, 2), range(2, 4)]
    assert follow(build("gemma4_text")).runs() == [range(0, 4)]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nanbeige", "once each"),
        ("talkie", "not all that the next one takes"),
        ("gptj", "do not take and give a hidden state"),
        ("dbrx", "looks at numbers"),
    ],
)
def test_what_is_no_chain_says_why(name, why):
    with pytest.raises(Unfit, match=why):
        follow(build(name))


@pytest.mark.parametrize("name", ["gemma3_text", "qwen3_next", "deepseek_v32"])
def test_a_layer_that_is_left_out_counts_tokens_and_hands_on_what_it_got(name):
    model = build(name)
    chain = follow(model)
    whole, without = make_prompt_cache(model), make_prompt_cache(model)
    tokens = mx.array([[5, 6, 7, 8]])
    model(tokens, cache=whole)
    given: list[mx.array] = []

    def watch(own, hidden, *args, **named):
        given.append(hidden)
        return own(hidden, *args, **named)

    left_out = [(model.layers[n], leave_out(chain, n)) for n in (1, 2)]
    with replaced([(model.layers[0], keep_result(given)), *left_out, (model.layers[3], watch)]):
        model(tokens, cache=without)
    assert given[0] is given[1]
    for one, other in zip(whole, without, strict=True):
        assert getattr(one, "offset", None) == getattr(other, "offset", None)
        assert one.empty() == other.empty()
    assert sum(cache.nbytes for cache in without[1:3]) < sum(cache.nbytes for cache in whole[1:3])
    # And it is itself again.
    assert mx.array_equal(model(tokens), build(name)(tokens))


def keep_result(found):
    def call(own, *args, **named):
        found.append(own(*args, **named))
        return found[-1]

    return call


def test_the_same_layer_twice_is_no_chain():
    model = build("llama")
    twice = SimpleNamespace(layers=[model.layers[0]] * 2)
    with pytest.raises(Unfit, match="the same"):
        follow(twice)
