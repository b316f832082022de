"""What the KV cache would take before anything is loaded, against the model itself."""

import pytest

from scripts.lib.model.kv_estimate import Unknown, build, rank_rows
from server.engine.kv_memory import RowBytes, row_bytes
from server.startup.arrangement import (
    GENERIC_PIPELINE,
    GENERIC_TENSOR,
    PIPELINE,
    TENSOR,
    WHOLE,
    Arrangement,
)
from tests.models import architectures

# Sizes as published, less what the cache does not depend on.
K2 = {
    "model_type": "kimi_k2", "vocab_size": 163840, "hidden_size": 7168, "num_hidden_layers": 61,
    "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_attention_heads": 64,
    "num_key_value_heads": 64, "n_shared_experts": 1, "n_routed_experts": 384,
    "routed_scaling_factor": 2.8, "kv_lora_rank": 512, "q_lora_rank": 1536,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128, "n_group": 1,
    "topk_group": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 1,
    "max_position_embeddings": 131072, "rope_theta": 50000.0,
}  # fmt: skip
LLAMA_70B = {
    "model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80, "vocab_size": 128256,
    "intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip
GPT_OSS = {
    "model_type": "gpt_oss", "hidden_size": 2880, "num_hidden_layers": 36, "vocab_size": 201088,
    "intermediate_size": 2880, "num_attention_heads": 64, "num_key_value_heads": 8,
    "head_dim": 64, "sliding_window": 128, "num_local_experts": 128, "num_experts_per_tok": 4,
    "rope_theta": 150000, "rms_norm_eps": 1e-5, "rope_scaling": None,
    "layer_types": ["sliding_attention", "full_attention"] * 18,
}  # fmt: skip


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "nemotron_h", "deepseek_v32", "llama4"])
def test_it_is_what_the_server_measures(name):
    config = architectures.config_of(name) | {"torch_dtype": "float32"}
    estimate = rank_rows(config, name, 1, Arrangement(WHOLE))
    assert estimate == [row_bytes(architectures.build(name))]


def test_a_latent_is_whole_on_every_rank_and_heads_are_divided():
    latent = 61 * (512 + 64) * 2
    for ranks in (1, 4, 8):
        how = Arrangement(TENSOR if ranks > 1 else WHOLE)
        assert rank_rows(K2, "deepseek_v3", ranks, how) == [RowBytes(0, latent)] * ranks
        heads = 80 * 2 * 8 * 128 * 2 // ranks
        assert rank_rows(LLAMA_70B, "llama", ranks, how) == [RowBytes(0, heads)] * ranks


def test_windows_are_the_fixed_part():
    (row,) = rank_rows(GPT_OSS, "gpt_oss", 1, Arrangement(WHOLE))
    a_layer = 2 * 8 * 64 * 2
    assert row == RowBytes(fixed=18 * 128 * a_layer, token=18 * a_layer)


def test_a_pipeline_has_the_caches_of_its_layers():
    how = Arrangement(GENERIC_PIPELINE, layers=(30, 6))
    a_layer = 2 * 8 * 64 * 2
    # Rank 1 has the first six: three of each kind.
    assert rank_rows(GPT_OSS, "gpt_oss", 2, how) == [
        RowBytes(15 * 128 * a_layer, 15 * a_layer),
        RowBytes(3 * 128 * a_layer, 3 * a_layer),
    ]
    whole = rank_rows(K2, "deepseek_v3", 2, Arrangement(PIPELINE, layers=(31, 30)))
    assert [row.token for row in whole] == [31 * 1152, 30 * 1152]


def test_a_generic_split_divides_heads_too():
    config = architectures.config_of("gemma3_text") | {"torch_dtype": "float32"}
    (whole,) = rank_rows(config, "gemma3_text", 1, Arrangement(WHOLE))
    parts = rank_rows(config, "gemma3_text", 2, Arrangement(GENERIC_TENSOR))
    assert parts == [RowBytes(whole.fixed // 2, whole.token // 2)] * 2


def test_a_config_that_makes_no_model_says_why():
    with pytest.raises(Unknown, match="hidden_size"):
        rank_rows({"model_type": "llama"}, "llama", 1, Arrangement(WHOLE))


def test_numbers_are_as_wide_as_the_config_says():
    narrow = build(LLAMA_70B, "llama").parameters()["model"]["norm"]["weight"]
    wide = build(LLAMA_70B | {"dtype": "float32"}, "llama").parameters()["model"]["norm"]["weight"]
    assert (narrow.itemsize, wide.itemsize) == (2, 4)


@pytest.mark.parametrize(
    ("how", "parts"),
    [(Arrangement(WHOLE), [1.0]), (Arrangement(PIPELINE, layers=(30, 50)), [0.375, 0.625])],
)
def test_keys_and_values_in_fewer_bits_leave_more_context(how, parts):
    """KV_BITS; 8 bits and a scale and a bias for 64 values are 8.5 of 16."""
    whole = rank_rows(LLAMA_70B, "llama", len(parts), how)
    fewer = rank_rows(LLAMA_70B, "llama", len(parts), how, 8)
    assert [row.whole for row in fewer] == [row.token for row in whole]
    assert [row.token * 16 for row in fewer] == [row.token * 17 / 2 for row in whole]
    assert [row.token for row in whole] == [sum(r.token for r in whole) * part for part in parts]


def test_what_does_not_bear_fewer_bits_is_reckoned_as_it_is():
    how = Arrangement(WHOLE)
    assert rank_rows(GPT_OSS, "gpt_oss", 1, how, 8) == rank_rows(GPT_OSS, "gpt_oss", 1, how)
