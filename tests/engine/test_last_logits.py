"""Logits of chosen places of a chunk: the same as if all were computed, and no more than these."""

from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models import gemma2, gpt_neox, internlm2, llama
from mlx_lm.models.cache import make_prompt_cache

from server.engine.last_logits import HeadLayer, LastLogits, put_heads
from server.wire.link import Link

VOCAB = 96
TOKENS = mx.array([[5, 6, 7, 8], [9, 10, 11, 12], [1, 2, 3, 4]])
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCAB,
}


def small_llama(tied: bool) -> nn.Module:
    arguments = SIZES | {"model_type": "llama", "tie_word_embeddings": tied}
    return llama.Model(llama.ModelArgs.from_dict(arguments))


def small_gemma() -> nn.Module:
    """Its logits are changed after the projection."""
    more = {"model_type": "gemma2", "head_dim": 8, "query_pre_attn_scalar": 16}
    return gemma2.Model(gemma2.ModelArgs.from_dict(SIZES | more))


def small_internlm() -> nn.Module:
    """Its head has a name of its own, and so has the next one's."""
    more = {"model_type": "internlm2", "tie_word_embeddings": False}
    return internlm2.Model(internlm2.ModelArgs.from_dict(SIZES | more))


def small_neox() -> nn.Module:
    more = {"model_type": "gpt_neox", "max_position_embeddings": 64, "layer_norm_eps": 1e-5}
    more |= {"rotary_emb_base": 10000, "rotary_pct": 0.25}
    return gpt_neox.Model(gpt_neox.ModelArgs.from_dict(SIZES | more))


def quantized(model: nn.Module) -> nn.Module:
    nn.quantize(model, group_size=32, bits=8)
    return model


class Unusual(nn.Module):
    """A head that nobody finds."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = small_llama(tied=False).model
        self.to_words = nn.Linear(32, VOCAB)

    @property
    def layers(self) -> list:
        return self.trunk.layers

    def __call__(self, tokens: mx.array, cache=None) -> mx.array:
        # Not through the embedding, which is none of its head.
        return self.to_words(self.trunk(tokens, cache=cache))


class Twice(Unusual):
    """A layer inside that is called as heads are: what is taken out there is missing later."""

    def __init__(self) -> None:
        super().__init__()
        self.lm_head = nn.Linear(32, 32)

    def __call__(self, tokens: mx.array, cache=None) -> mx.array:
        return super().__call__(tokens, cache) + mx.sum(self.lm_head(self.trunk(tokens)))


FOUND = {
    "tied": lambda: small_llama(tied=True),
    "untied": lambda: small_llama(tied=False),
    "tied, quantized": lambda: quantized(small_llama(tied=True)),
    "untied, quantized": lambda: quantized(small_llama(tied=False)),
    "soft cap": small_gemma,
    "output": small_internlm,
    "embed_out": small_neox,
}
KINDS = FOUND | {"not found": Unusual, "not a head": Twice}


def link() -> Link:
    return Link(mx.distributed.init())


@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_of_places_are_what_they_are_among_all(kind):
    model = KINDS[kind]()
    every = model(TOKENS)
    last = LastLogits(model, put_heads(model))
    assert last.prove(link()) == (kind in FOUND)
    last.want([2, 0], [1, 3])
    last(TOKENS, make_prompt_cache(model))
    assert mx.allclose(last.take(), mx.stack([every[2, 1], every[0, 3]]), atol=1e-4)
    # Nothing of it is left for those who call the model as it is.
    assert mx.allclose(model(TOKENS), every, atol=1e-4)


def test_only_the_places_are_projected():
    model = small_llama(tied=False)
    (head,) = (h for h in put_heads(model) if isinstance(h.layer, nn.Linear))
    shapes, project = [], head.project
    head.project = lambda x: shapes.append(x.shape) or project(x)
    last = LastLogits(model, [head])
    last.prove(link())
    shapes.clear()
    last.want([1], [2])
    last(TOKENS, make_prompt_cache(model))
    assert shapes == [(1, 1, 32)]


def test_a_chunk_of_which_nothing_is_wanted_leaves_no_logits():
    model = small_llama(tied=True)
    last = LastLogits(model, put_heads(model))
    last.want([0], [0])
    last(TOKENS, make_prompt_cache(model))
    last.want([], [])
    last(TOKENS, make_prompt_cache(model))
    assert last.take() is None


def test_rank_0s_finding_counts_for_all():
    """Ranks that take different ways would wait for each other."""
    model = small_llama(tied=True)
    last = LastLogits(model, put_heads(model))
    asked = SimpleNamespace(share_ints=lambda values: [0], gather_bytes=lambda data: [data, b"1"])
    assert not last.prove(asked)
    last.want([1], [2])
    last(TOKENS, make_prompt_cache(model))
    assert last.take().shape == (1, VOCAB)


def test_a_head_keeps_the_type_that_models_ask_it_for():
    model = small_llama(tied=False)
    model.lm_head.set_dtype(mx.float16)
    put_heads(model)
    assert type(model.lm_head) is HeadLayer
    assert model.lm_head.weight.dtype == mx.float16


class Swapped(Unusual):
    """Its layers' axes are in another order where its head is, [T, B, H]."""

    def __init__(self) -> None:
        super().__init__()
        self.lm_head = nn.Linear(32, VOCAB)

    def __call__(self, tokens: mx.array, cache=None) -> mx.array:
        logits = self.lm_head(self.trunk(tokens, cache=cache).swapaxes(0, 1))
        return logits.swapaxes(0, 1)


class Alike(Unusual):
    """Half of its tokens have one embedding, and its head takes places in their own order."""

    def __init__(self, alike) -> None:
        super().__init__()
        self.lm_head = nn.Linear(32, VOCAB)
        self._alike = alike

    def __call__(self, tokens: mx.array, cache=None) -> mx.array:
        return self.lm_head(self.trunk(mx.where(self._alike(tokens), 7, tokens), cache=cache))


def test_axes_that_are_swapped_where_the_head_is_are_noticed():
    model = Swapped()
    assert not LastLogits(model, put_heads(model)).prove(link())


def turn_places(last: LastLogits) -> None:
    want = last.want
    last.want = lambda rows, positions: want(rows[::-1], positions[::-1])


@pytest.mark.parametrize("alike", [lambda t: t < 0, lambda t: t % 2 == 1, lambda t: t < 20])
def test_places_that_are_taken_for_one_another_are_noticed_whatever_embeddings_are_alike(alike):
    model = Alike(alike)
    last = LastLogits(model, put_heads(model))
    assert last.prove(link())
    turn_places(last)
    assert not last.prove(link())


def test_where_no_tokens_differ_nothing_is_proven():
    model = Alike(lambda tokens: tokens >= 0)
    assert not LastLogits(model, put_heads(model)).prove(link())


def test_a_model_that_bears_one_row_alone_computes_all_logits():
    class BearsOneRow(Swapped):
        def __call__(self, tokens, cache=None):
            if len(tokens) > 1:
                raise ValueError("masks of one row")
            return self.lm_head(self.trunk(tokens, cache=cache))

    model = BearsOneRow()
    last = LastLogits(model, put_heads(model))
    assert not last.prove(link())
    last.want([0], [2])
    last(TOKENS[:1], make_prompt_cache(model))
    assert mx.allclose(last.take(), model(TOKENS[:1])[0, 2:3], atol=1e-4)


def test_heads_take_nothing_out_after_a_chunk_that_failed():
    """The next step's logits would be those of the chunk's places."""
    model = small_llama(tied=False)
    last = LastLogits(model, put_heads(model))
    assert last.prove(link())
    last.want([0, 1], [3, 3])
    with pytest.raises(IndexError):
        last(TOKENS, [])
    assert model(TOKENS).shape == (3, 4, VOCAB)
