"""A split that computes something else than the model does is found out, whatever the reason."""

from contextlib import nullcontext

import pytest

pytest.importorskip("mlx.core")

import mlx.core as mx
from mlx.utils import tree_flatten

from server.startup import split_proof
from server.startup.layer_chain import leave_out, replaced
from server.startup.piece_pace import at_once
from server.startup.split_proof import compare
from tests.models.architectures import build


def agree(act):
    """As of one rank."""
    try:
        act()
    except (ValueError, TypeError, AttributeError) as error:
        return str(error)
    return ""


def verdict(split, name="gemma3_text", cut=True, whole=None):
    def leave(chain, numbers):
        return replaced([(split.layers[n], leave_out(chain, n)) for n in numbers])

    return at_once(compare(split, whole or (lambda: build(name)), leave, (), cut, agree))


def half(model):
    model.set_dtype(mx.bfloat16)
    return model


def test_a_split_that_computes_the_same_passes():
    assert verdict(build("gemma3_text")) == ""


@pytest.mark.parametrize(
    ("layer", "projection"),
    [(0, "self_attn.o_proj"), (1, "self_attn.k_proj"), (3, "mlp.down_proj")],
)
def test_rows_in_another_order_are_noticed(layer, projection):
    split = build("gemma3_text")
    block, name = projection.split(".")
    linear = split.layers[layer][block][name]
    linear.weight = mx.roll(linear.weight, 1, axis=0)
    assert "of the largest apart from those of one rank alone" in verdict(split)


def test_a_bias_that_two_ranks_add_is_noticed():
    split = build("phi")
    bias = split.layers[2].mlp.fc2.bias
    split.layers[2].mlp.fc2.bias = 2 * bias
    assert "one rank alone" in verdict(split, "phi")


def test_what_is_not_a_number_is_noticed():
    split = build("gemma3_text")
    split.layers[0].mlp.down_proj.weight *= mx.nan
    assert "nan of the largest apart" in verdict(split)


def test_a_split_that_crashes_says_how():
    split = build("gemma3_text")
    split.layers[1].self_attn.n_heads = 3
    assert "reshape" in verdict(split)


def test_half_precision_hides_no_fault_and_comes_back():
    """A cut is compared in 32 bits: a small fault would be as large as rounding."""
    split = half(build("phi"))
    whole = lambda: half(build("phi"))  # noqa: E731
    assert verdict(split, whole=whole) == ""
    assert {str(a.dtype) for _, a in tree_flatten(split.parameters())} == {"mlx.core.bfloat16"}
    split.layers[1].mlp.fc2.bias *= 1.2
    assert "one rank alone" in verdict(split, whole=whole)


def test_of_a_large_model_a_layer_of_each_kind_is_computed(monkeypatch):
    """Windows and none in turn: two kinds."""
    monkeypatch.setattr(split_proof, "WHOLE_MOST", 0)
    called = []

    def count(own, *args, **named):
        called.append(1)
        return own(*args, **named)

    split = build("gemma3_text")
    with replaced([(layer.mlp, count) for layer in split.layers]):
        assert verdict(split) == ""
    assert len(called) == 2 * len(split_proof.TEXT)
    split.layers[1].self_attn.q_proj.weight *= -1
    assert "one rank alone" in verdict(split)


def test_a_large_model_whose_layers_are_no_chain_cannot_be_proven(monkeypatch):
    monkeypatch.setattr(split_proof, "WHOLE_MOST", 0)
    assert verdict(build("nanbeige"), "nanbeige") == ""  # as a whole, while every host can hold it
    monkeypatch.setattr(split_proof, "UNCHAINED_MOST", 0)
    why = verdict(build("nanbeige"), "nanbeige")
    assert why == (
        "it is too large to be proven as a whole, and its layers do not run one after another, "
        "once each"
    )


def test_in_a_pipeline_layers_are_compared_as_they_are():
    split = half(build("gemma3_text"))
    whole = lambda: half(build("gemma3_text"))  # noqa: E731
    assert at_once(compare(split, whole, lambda *_: nullcontext(), (), False, agree)) == ""
    split.layers[0].mlp.up_proj.weight *= -1
    said = at_once(compare(split, whole, lambda *_: nullcontext(), (), False, agree))
    assert "one rank alone" in said
