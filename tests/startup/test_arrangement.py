"""How a model is split over ranks: which kinds are possible, which is taken, how layers are dealt.

Sizes are those of published models; of weights only names and shapes count.
"""

import pytest

from server.startup.arrangement import KINDS, Arrangement, arrangements, choose
from server.startup.deal import deal, deal_runs
from server.startup.mlx_lm_source import find_architecture, mlx_lm_folder
from server.startup.unfit import UNFIT
from server.startup.weights_index import Weight, by_layer, read_weights, total, weights_of_header
from tests.support.tiny_models import tiny_llama

PACKAGE = mlx_lm_folder()
GB = 10**9

GLM_AIR = {  # GLM-4.5-Air at 4 bits
    "model_type": "glm4_moe", "num_attention_heads": 96, "num_key_value_heads": 8, "head_dim": 128,
    "hidden_size": 4096, "intermediate_size": 10944, "moe_intermediate_size": 1408,
    "n_routed_experts": 128, "first_k_dense_replace": 1, "num_hidden_layers": 46,
    "quantization": {"group_size": 64, "bits": 4},
}  # fmt: skip
GPT_OSS_120B = {
    "model_type": "gpt_oss", "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64,
    "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 36,
    "num_local_experts": 128, "quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
}  # fmt: skip
QWEN3_NEXT = {
    "model_type": "qwen3_next", "num_attention_heads": 16, "num_key_value_heads": 2,
    "head_dim": 256, "hidden_size": 2048, "moe_intermediate_size": 512, "num_hidden_layers": 48,
    "linear_num_value_heads": 32, "linear_num_key_heads": 16,
}  # fmt: skip
SEED_OSS = {
    "model_type": "seed_oss", "num_attention_heads": 80, "num_key_value_heads": 8, "head_dim": 128,
    "hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64,
}  # fmt: skip


def linear(rows: int, columns: int, bits: int = 16, group: int = 64) -> dict[str, Weight]:
    if bits == 16:
        return {"weight": Weight((rows, columns), 2 * rows * columns)}
    packed, groups = (rows, columns * bits // 32), (rows, columns // group)
    return {
        "weight": Weight(packed, 4 * packed[0] * packed[1]),
        "scales": Weight(groups, 2 * groups[0] * groups[1]),
    }


def layer_of(config: dict) -> dict[str, Weight]:
    """A layer as mlx-lm has it: attention by heads, and experts or a feed-forward block."""
    quantization = config.get("quantization") or {}
    bits, group = quantization.get("bits", 16), quantization.get("group_size", 64)
    hidden, size = config["hidden_size"], config["head_dim"]
    heads, kv_heads = (config[f"num_{kind}_heads"] for kind in ("attention", "key_value"))
    shapes = {
        "self_attn.q_proj": (heads * size, hidden),
        "self_attn.k_proj": (kv_heads * size, hidden),
        "self_attn.v_proj": (kv_heads * size, hidden),
        "self_attn.o_proj": (hidden, heads * size),
    }
    experts = config.get("n_routed_experts") or config.get("num_local_experts") or 0
    width = config.get("moe_intermediate_size") or config["intermediate_size"]
    block = "mlp.switch_mlp" if experts else "mlp"
    shapes |= {
        f"{block}.gate_proj": (width, hidden),
        f"{block}.up_proj": (width, hidden),
        f"{block}.down_proj": (hidden, width),
    }
    found = {"input_layernorm.weight": Weight((hidden,), 2 * hidden)}
    for name, shape in shapes.items():
        for leaf, weight in linear(*shape, bits, group).items():
            if experts and name.startswith("mlp"):
                weight = Weight((experts, *weight.shape), experts * weight.nbytes)
            found[f"{name}.{leaf}"] = weight
    return found


def weights_of(config: dict) -> dict[str, Weight]:
    found = {"model.embed_tokens.weight": Weight((150_000, 4096), GB)}
    for number in range(config["num_hidden_layers"]):
        found |= {f"model.layers.{number}.{k}": w for k, w in layer_of(config).items()}
    return found


def arrange(config, ranks, memories=(), parallel="auto", weights=None):
    weights = weights_of(config) if weights is None else weights
    architecture = find_architecture(config, PACKAGE)
    return arrangements(config, weights, ranks, memories, architecture, parallel)


def taken(config, ranks, memories=(), **more):
    one = choose(arrange(config, ranks, memories, **more))
    return str(one) if one else None


@pytest.mark.parametrize(
    ("config", "ranks", "expected"),
    [
        (GLM_AIR, 1, "one rank"),
        # Its only dense layer has 171 quantisation groups, and stays whole.
        (GLM_AIR, 2, "generic tensor"),
        ({**GLM_AIR, "quantization": None}, 2, "tensor"),
        (GLM_AIR, 4, "pipeline"),  # its experts have 22
        (GPT_OSS_120B, 2, "tensor"),
        (GPT_OSS_120B, 4, "generic pipeline"),
        (SEED_OSS, 2, "generic tensor"),
        (SEED_OSS, 8, "generic tensor"),
        (SEED_OSS, 3, "generic tensor"),  # its heads stay whole, which is a fifth of it
        (SEED_OSS, 7, "generic pipeline"),
    ],
)
def test_auto_takes_the_first_kind_that_is_possible(config, ranks, expected):
    one = choose(arrange(config, ranks))
    assert one.kind == expected
    if "pipeline" in expected:
        assert max(one.layers) - min(one.layers) <= 1
        assert sum(one.layers) == config["num_hidden_layers"]


def test_without_weights_it_goes_by_the_config():
    """As of a repository of which nobody has more than that: a pipeline, for want of names."""
    assert taken(QWEN3_NEXT, 2, weights={}) == "pipeline of 24, 24 layers"
    assert taken(SEED_OSS, 2, weights={}).startswith("generic pipeline")


def test_each_kind_says_why_it_is_impossible():
    found = {one.kind: one.reasons for one in arrange(GPT_OSS_120B, 4)}
    assert "quantisation groups" in found["tensor"][0]
    assert (
        "90 quantisation groups of down_proj do not divide by 4 ranks" in found["generic tensor"][0]
    )
    assert found["pipeline"] == ("mlx-lm's gpt_oss cannot be split into a pipeline",)
    assert found["generic pipeline"] == ()
    (reason,) = arrange({**SEED_OSS, "num_hidden_layers": 2}, 3, parallel="pipeline")[1].reasons
    assert reason == "2 layers are too few for a pipeline of 3 ranks"


def test_parallel_leaves_only_its_own_kinds():
    kinds = [one.kind for one in arrange(SEED_OSS, 2, parallel="pipeline")]
    assert kinds == ["pipeline", "generic pipeline"]
    assert taken(SEED_OSS, 2, parallel="pipeline") == "generic pipeline of 32, 32 layers"
    assert taken({**SEED_OSS, "model_type": "dbrx"}, 7, parallel="pipeline") is None


def test_known_misfits_are_refused_by_name():
    found = arrange({**SEED_OSS, "model_type": "exaone"}, 2)
    assert "all heads together" in found[1].reasons[0]
    assert choose(found).kind == "generic pipeline"


def test_a_small_rank_gets_fewer_layers_where_an_even_share_is_too_much():
    """A Mac of 512 GB and one of 128 GB, and a model of 400."""
    config = {**GLM_AIR, "quantization": None}
    weights = weights_of(config)
    scale = 400 * GB / total(weights)
    weights = {name: Weight(w.shape, int(w.nbytes * scale)) for name, w in weights.items()}
    memories = [400 * GB, 96 * GB]
    tensor, *_ = found = arrange(config, 2, memories, weights=weights)
    assert tensor.possible and "rank 1 would hold" in tensor.tight
    one = choose(found)
    assert one.kind == "pipeline" and not one.tight
    assert sum(one.layers) == 46 and one.layers[0] > 3 * one.layers[1]
    assert all(share < memory for share, memory in zip(one.shares, memories, strict=True))
    # Where it fits nowhere, the best kind is tried all the same: what is free shows there.
    assert choose(arrange(config, 2, [GB, GB], weights=weights)).kind == "tensor"


def test_the_fullest_rank_is_as_little_full_as_can_be():
    assert deal([10] * 12, 0, [100, 100, 100]) == (4, 4, 4)
    assert deal([10] * 10, 0, [80, 20]) == (8, 2)
    assert deal([10] * 10, 20, [100, 40]) == (8, 2)  # what all ranks hold comes off before
    assert deal([10] * 5, 0, [1000, 1]) == (4, 1)  # one layer at least
    assert deal([40, 1, 1, 1, 1], 0, [50, 50]) == (4, 1)  # the last rank has the first layers
    assert deal([10] * 4, 0, [None, None]) == (2, 2)
    assert deal([10] * 9, 0, [60, None]) in {(4, 5), (5, 4)}  # unknown: as small as the smallest


def test_layers_that_share_stay_together():
    runs = [range(0, 1), range(1, 2), range(2, 7), range(7, 8)]
    assert deal_runs(runs, [10] * 8, 0, [None, None]) in {(6, 2), (1, 7)}
    assert deal_runs(runs, [10] * 8, 0, [None] * 4) == (1, 5, 1, 1)


def test_weights_are_read_from_the_headers(tmp_path):
    folder = tiny_llama(tmp_path / "model")
    weights = read_weights(folder)
    layers, others = by_layer(weights)
    assert len(layers) == 2 and "self_attn.q_proj.weight" in layers[0]
    assert set(others) == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    size = (folder / "model.safetensors").stat().st_size
    assert 0 < size - total(weights) < 10_000
    with pytest.raises(ValueError, match="no header"):
        weights_of_header({"a": {"shape": [1]}})


def test_it_says_what_it_is():
    assert str(Arrangement("pipeline", layers=(3, 5))) == "pipeline of 3, 5 layers"
    assert str(Arrangement("generic tensor")) == "generic tensor"


def test_known_misfits_are_architectures_and_kinds_that_there_are():
    """A name that a new mlx-lm no longer has would be dead weight."""
    assert {kind for kinds in UNFIT.values() for kind in kinds} <= {*KINDS["auto"]}
    assert all(find_architecture({"model_type": name}, PACKAGE) for name in UNFIT)
