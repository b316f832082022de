"""What is split by names and shapes, and what stays whole as something about it is not known."""

import pytest

from server.startup.split_plan import plan_layer, plan_split
from server.startup.weights_index import Weight

SIZES = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "hidden_size": 64}
ATTENTION = {
    "self_attn.q_proj.weight": (64, 64),
    "self_attn.k_proj.weight": (32, 64),
    "self_attn.v_proj.weight": (32, 64),
    "self_attn.o_proj.weight": (64, 64),
}
MLP = {
    "mlp.gate_proj.weight": (128, 64),
    "mlp.up_proj.weight": (128, 64),
    "mlp.down_proj.weight": (64, 128),
}
EXPERTS = {
    "mlp.gate.weight": (4, 64),
    "mlp.switch_mlp.gate_proj.weight": (4, 32, 64),
    "mlp.switch_mlp.up_proj.weight": (4, 32, 64),
    "mlp.switch_mlp.down_proj.weight": (4, 64, 32),
    "mlp.shared_experts.gate_proj.weight": (32, 64),
    "mlp.shared_experts.up_proj.weight": (32, 64),
    "mlp.shared_experts.down_proj.weight": (64, 32),
}


def weights(shapes):
    return {name: Weight(shape, 4) for name, shape in shapes.items()}


def plan(shapes, ranks=2, **sizes):
    return plan_layer(weights(shapes), {**SIZES, **sizes}, ranks)


def paths(shapes, ranks=2, **sizes):
    return [block.path for block in plan(shapes, ranks, **sizes).blocks]


def test_attention_and_feed_forward_blocks_are_split():
    attention, mlp = plan(ATTENTION | MLP).blocks
    assert attention.heads == (4, 2) and attention.columns == "o_proj"
    assert {name for name, _ in attention.rows} == {"q_proj", "k_proj", "v_proj"}
    assert mlp.columns == "down_proj" and not mlp.experts


def test_what_does_not_divide_stays_whole_and_says_why():
    assert plan(ATTENTION | MLP, ranks=4).whole == {
        "self_attn": "2 KV heads do not divide by 4 ranks"
    }
    assert paths(ATTENTION | MLP, ranks=4) == ["mlp"]
    assert plan(ATTENTION | MLP, ranks=3).blocks == ()


def test_quantisation_groups_are_never_cut():
    quantised = {
        "mlp.gate_proj.weight": (192, 8), "mlp.gate_proj.scales": (192, 1),
        "mlp.up_proj.weight": (192, 8), "mlp.up_proj.scales": (192, 1),
        "mlp.down_proj.weight": (64, 24), "mlp.down_proj.scales": (64, 3),
    }  # fmt: skip
    why = plan(quantised).whole["mlp"]
    assert why == "3 quantisation groups of down_proj do not divide by 2 ranks"
    assert paths(quantised, ranks=3) == ["mlp"]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"self_attn.q_norm.weight": (64,)}, "q_norm is one over all heads"),
        ({"self_attn.k_norm.weight": (32,)}, "k_norm is one over all heads"),
        ({"self_attn.mystery.weight": (64, 64)}, "mystery is not known"),
        ({"self_attn.conv.conv.weight": (64, 3)}, "self_attn.conv is not known"),
    ],
)
def test_attention_with_anything_unknown_stays_whole(more, why):
    assert plan(ATTENTION | more).whole == {"self_attn": why}


@pytest.mark.parametrize(
    "more",
    [
        {"self_attn.q_norm.weight": (16,), "self_attn.k_norm.weight": (16,)},
        {"self_attn.sinks": (4,)},  # one a head
        {"self_attn.g_proj.weight": (4, 64)},  # a gate a head
        {"self_attn.gate_proj.weight": (64, 64)},  # or a number
        {"self_attn.q_norm.weight": (4, 16), "self_attn.k_norm.weight": (2, 16)},
        {"self_attn.rotary_emb.inv_freq": (8,)},
    ],
)
def test_norms_of_a_head_sinks_and_gates_do_not_stand_in_the_way(more):
    assert paths(ATTENTION | more) == ["self_attn"]


def test_projections_in_one_are_cut_each_by_itself():
    (block,) = plan(
        {"self_attn.qkv_proj.weight": (128, 64), "self_attn.o_proj.weight": (64, 64)}
    ).blocks
    assert block.rows == (("qkv_proj", (64, 96)),)
    (mlp,) = plan({"mlp.gate_up_proj.weight": (256, 64), "mlp.down_proj.weight": (64, 128)}).blocks
    assert mlp.rows == (("gate_up_proj", (128,)),)


def test_shapes_go_before_what_the_config_says():
    """Layers of other numbers of KV heads, and configs that name none."""
    few = ATTENTION | {"self_attn.k_proj.weight": (16, 64), "self_attn.v_proj.weight": (16, 64)}
    assert plan(few).whole == {"self_attn": "1 KV heads do not divide by 2 ranks"}
    (block,) = plan({"attn.c_attn.weight": (192, 64), "attn.c_proj.weight": (64, 64)}).blocks
    assert block.heads == (4, 4)


def test_experts_are_added_up_once_with_those_beside_them():
    assert {block.partial_at for block in plan(EXPERTS).blocks} == {"mlp"}
    # What comes after the experts would see a part of the sum only.
    unknown = EXPERTS | {"mlp.post_norm.weight": (64,)}
    assert {block.partial_at for block in plan(unknown).blocks} == {
        "mlp.switch_mlp", "mlp.shared_experts",
    }  # fmt: skip
    # One of them stays whole: then it is on every rank.
    odd = EXPERTS | {
        "mlp.shared_experts.gate_proj.weight": (33, 64),
        "mlp.shared_experts.up_proj.weight": (33, 64),
        "mlp.shared_experts.down_proj.weight": (64, 33),
    }
    assert [block.partial_at for block in plan(odd).blocks] == ["mlp.switch_mlp"]


def test_other_layouts_of_weights_are_no_crash():
    """As of folders that mlx-lm converts while it loads them."""
    packed = {
        name.replace("weight", leaf): shape
        for name, shape in (ATTENTION | MLP).items()
        for leaf in ("weight_packed", "weight_scale")
    }
    assert plan(packed).blocks == ()
    assert plan(ATTENTION | {"self_attn.q_proj.weight": ()}).whole == {
        "self_attn": "the shapes of its weights are not known"
    }
    scaled = {name.replace("weight", "weight_scale_inv"): (1, 1) for name in ATTENTION}
    assert paths(ATTENTION | scaled) == ["self_attn"]


def test_latent_attention_is_split_by_the_heads_made_of_it():
    (block,) = plan(
        {
            "self_attn.q_a_proj.weight": (16, 64),
            "self_attn.q_a_layernorm.weight": (16,),
            "self_attn.q_b_proj.weight": (96, 16),
            "self_attn.kv_a_proj_with_mqa.weight": (24, 64),
            "self_attn.kv_a_layernorm.weight": (16,),
            "self_attn.embed_q.weight": (4, 16, 16),
            "self_attn.unembed_out.weight": (4, 16, 16),
            "self_attn.o_proj.weight": (64, 64),
        },
        ranks=4,
    ).blocks
    assert block.rows == (("q_b_proj", ()),) and block.heads == (4, 0)
    assert set(block.first) == {"embed_q", "unembed_out"}


def test_a_model_of_which_little_can_be_split_is_not():
    def layers(shapes):
        return weights({f"model.layers.{n}.{k}": s for n in (0, 1) for k, s in shapes.items()})

    assert plan_split(layers(ATTENTION | MLP), SIZES, 2).reasons == ()
    (reason,) = plan_split(layers(MLP | {"mixer.a": (9,), "mixer.b": (9,)}), SIZES, 3).reasons
    assert reason.startswith("0 % of its layers can be split by names; mlp: 128 numbers of")
    assert plan_split({}, SIZES, 2).reasons == ("the names of its weights are not known",)
