"""The sizes of small models: common ones, and what an architecture calls otherwise.

Windows are shorter than the tests' prompts, and every kind of layer that an architecture has
is among its four.
"""

from typing import Any

from tests.support.tiny_models import VOCAB

LAYERS, WINDOW, CONTEXT = 4, 16, 1024

COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "layer_norm_eps": 1e-5,
    "layer_norm_epsilon": 1e-5,
    "layernorm_epsilon": 1e-5,
    "norm_eps": 1e-5,
    "post_norm_eps": 1e-5,
    "max_position_embeddings": CONTEXT,
    "n_positions": CONTEXT,
    "n_ctx": CONTEXT,
    "model_max_length": CONTEXT,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "use_bias": False,
    "use_conv_bias": True,
    "conv_bias": False,
    "use_qk_norm": True,
    "qk_norm": True,
    "post_norm": False,
    "use_qkv_bias": False,
    "partial_rotary_factor": 0.5,
    "sliding_window": WINDOW,
    "sliding_window_size": WINDOW,
    "window_size": WINDOW,
    "attention_window_size": WINDOW,
    # Of a window of 16, and of all, in turn.
    "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
    "sliding_window_pattern": 2,
    # Mixtures of experts.
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_top_k": 2,
    "moe_k": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "num_shared_expert": 1,
    "moe_num_shared_experts": 1,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "expert_ffn_hidden_size": 32,
    "ffn_hidden_size": 128,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "mlp_only_layers": [],
    "decoder_sparse_step": 1,
    "moe_layer_freq": 1,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    # Attention over a latent.
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "index_head_dim": 16,
    "index_n_heads": 4,
    "index_topk": 8,
    # States of recurrent and convolutional layers.
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,  # the kernels' least
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "layer_group_size": 2,
    "group_norm_size": 2,
    "conv_kernel": 4,
    "conv_L_cache": 3,
    "state_size": 16,
    "ssm_state_size": 16,
    "n_groups": 1,
    "time_step_rank": 8,
    "time_step_limit": [0.001, 10.0],
    # Factors.
    "logits_scaling": 1.0,
    "attention_multiplier": 0.25,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
}  # fmt: skip

_YARN = {"rope_theta": 10000.0, "rope_type": "yarn", "type": "yarn", "factor": 2.0,
         "original_max_position_embeddings": 512, "mscale": 1.0, "mscale_all_dim": 1.0}  # fmt: skip
_ROPES = {
    kind: {"rope_theta": 10000.0, "rope_type": "default", "partial_rotary_factor": 1.0}
    for kind in ("sliding_attention", "full_attention")
}
_LLAMA_4 = _YARN | {"llama_4_scaling_beta": 0.1}
_LINEAR = ["linear_attention", "full_attention"] * 2
_NO_WINDOW = ["full_attention"] * LAYERS
_KDA = {"kda_layers": [1, 3], "full_attn_layers": [2, 4], "num_heads": 4, "head_dim": 32,
        "short_conv_kernel_size": 4, "gate_low_rank_dim": 8}  # fmt: skip
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_d_conv": 4,
          "mamba_n_groups": 1, "mamba_conv_bias": True, "mamba_proj_bias": False, "mamba_d_ssm": 64,
          "mamba_expand": 1, "mamba_num_heads": 4, "mamba_head_dim": 16}  # fmt: skip
_GPT = {"n_embd": 64, "n_head": 4, "n_layer": LAYERS, "n_inner": 128, "n_kv_heads": 2,
        "rotary_dim": 8, "block_size": CONTEXT}  # fmt: skip
_LONGCAT = {"zero_expert_num": 1, "zero_expert_type": "identity", "num_layers": LAYERS,
            "attention_method": "MLA", "mla_scale_q_lora": True, "mla_scale_kv_lora": True,
            "ngram_vocab_size_ratio": 3}  # fmt: skip
_LFM = {"layer_types": ["conv", "full_attention"] * 2, "full_attn_idxs": [1, 3], "block_dim": 64,
        "block_multiple_of": 16, "block_ffn_dim_multiplier": 1.0, "block_ff_dim": 128,
        "block_auto_adjust_ff_dim": False, "use_expert_bias": True}  # fmt: skip
_PER_LAYER = {"num_kv_shared_layers": 2, "vocab_size_per_layer_input": VOCAB,
              "hidden_size_per_layer_input": 16, "global_head_dim": 32,
              "rope_parameters": None}  # fmt: skip

# What an architecture calls by other names, or wants to have in another shape.
OWN: dict[str, dict[str, Any]] = {
    "afm7": {"hidden_dim": 64, "num_layers": LAYERS, "num_kv_reuse_layers": 2, "num_heads": 4,
             "num_kv_heads": 2},
    "baichuan_m1": {"sliding_window_layers": [0, 2], "conv_window": 2},
    "bailing_moe_v3": {"short_conv_kernel_size": 4, "linear_key_head_dim": 32, "head_dim": 32},
    "dbrx": {"d_model": 64, "n_heads": 4, "n_layers": LAYERS,
             "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
             "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2}},
    "deepseek_v2": {"rope_scaling": _YARN},
    "deepseek_v41": {"compress_ratios": (0, 4, 16, 4), "o_groups": 2, "o_lora_rank": 16,
                     "hc_mult": 2, "head_dim": 16, "scoring_func": "sqrtsoftplus"},
    "exaone": {"num_layers": LAYERS},
    "exaone4": {"rope_scaling": None, "sliding_window_pattern": "LG"},
    "exaone_moe": {"is_moe_layer": [False, True, True, True]},
    "falcon_h1": _MAMBA,
    "gear": {"layer_types": ["conv_mixer", "full_attention", "sliding_attention",
                             "full_attention"]},
    "gemma3n": _PER_LAYER | {
        "rope_local_base_freq": 10000.0, "final_logit_softcapping": 30.0, "altup_num_inputs": 2,
        "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0], "altup_coef_clip": 120.0,
        "altup_correct_scale": True, "altup_active_idx": 0, "laurel_rank": 8},
    "gemma4": _PER_LAYER,
    "gemma4_text": _PER_LAYER,
    "glm4_moe": {"rope_scaling": None},
    "gpt2": _GPT,
    "gpt_bigcode": _GPT,
    "gpt_neox": {"rotary_emb_base": 10000, "rotary_pct": 0.25},
    "gptj": _GPT,
    "granitemoehybrid": _MAMBA | {"layer_types": ["mamba", "attention"] * 2},
    "hunyuan": {"use_mixed_mlp_moe": True, "use_cla": True, "cla_share_factor": 2,
                "rope_scaling": {"alpha": 1.0, "factor": 1.0, "type": "dynamic"}},
    "iquestloopcoder": {"loop_window_size": WINDOW},
    "jamba": _MAMBA | {"attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 1,
                       "expert_layer_period": 2},
    "kimi_k3": {"linear_attn_config": _KDA, "num_experts_per_token": 2, "attn_res_block_size": 2,
                "mla_use_output_gate": True, "activation_situ_beta": 1.0,
                "activation_situ_linear_beta": 1.0},
    "kimi_linear": {"linear_attn_config": _KDA, "num_experts_per_token": 2},
    "laguna": {"rope_parameters": _ROPES},
    "lfm2": _LFM,
    "lfm2-vl": _LFM,
    "lfm2_moe": _LFM,
    "lille-130m": _GPT,
    "llama4": {"num_experts_per_tok": 1, "attention_chunk_size": WINDOW,
               "interleave_moe_layer_step": 2, "intermediate_size_mlp": 128, "rope_scaling": None},
    "llama4_text": {"intermediate_size_mlp": 128, "no_rope_layers": [1, 1, 1, 0]},
    "longcat_flash": _LONGCAT,
    "longcat_flash_ngram": _LONGCAT,
    "mamba2": {"num_heads": 4},
    "mellum": {"rope_parameters": _ROPES},
    "mimo_v2_flash": {"hybrid_layer_pattern": [1, 0, 1, 0], "moe_layer_freq": [0, 1, 1, 1],
                      "add_swa_attention_sink_bias": True, "add_full_attention_sink_bias": False,
                      "swa_rope_theta": 10000.0, "swa_num_attention_heads": 4,
                      "swa_num_key_value_heads": 2, "swa_head_dim": 16, "swa_v_head_dim": 16},
    "minicpm": {"dim_model_base": 64, "scale_depth": 1.4, "scale_emb": 1.0},
    "minicpm3": {"dim_model_base": 64, "scale_depth": 1.4, "scale_emb": 1.0, "rope_scaling": {}},
    "minimax": {"rotary_dim": 8},
    "minimax_m3_vl": {"moe_layer_freq": [0, 1, 1, 1], "dense_intermediate_size": 128,
                      "layer_types": None, "index_block_size": 4, "index_topk_blocks": 2,
                      "sparse_attention_freq": [0, 1, 0, 1]},
    "ministral3": {"rope_parameters": _LLAMA_4},
    "mistral3": {"rope_parameters": _LLAMA_4},
    "mistral4": {"rope_parameters": _LLAMA_4},
    "muse_spark": {"layer_rope_theta": [10000.0, 0, 10000.0, 0], "final_logit_softcapping": 30.0,
                   "output_multiplier": 1.0, "moe_hidden_size": 64, "num_shared_experts": 0},
    "nanbeige": {"num_loops": 2},
    "nemotron": {"hidden_act": "relu2"},
    "nemotron-nas": {"block_configs": [
        {"attention": attention, "ffn": ffn} for attention, ffn in (
            ({"n_heads_in_group": 2}, {"ffn_mult": 1.5}), ({"no_op": True}, {"ffn_mult": 1.5}),
            ({"replace_with_linear": True}, {"no_op": True}),
            ({"n_heads_in_group": 4}, {"replace_with_linear": True}))]},
    "nemotron_h": _MAMBA | {"layer_types": None, "hybrid_override_pattern": list("M*-M*E")},
    "olmo_hybrid": {"layer_types": _LINEAR, "linear_allow_neg_eigval": True},
    "openelm": {"num_transformer_layers": LAYERS, "model_dim": 64, "ffn_dim_divisor": 16,
                "num_query_heads": [4] * LAYERS, "num_kv_heads": [2] * LAYERS,
                "ffn_multipliers": [1.0] * LAYERS},
    # It writes to logits at places that only its own vocabulary has.
    "phi3small": {"vocab_size": 100352, "dense_attention_every_n_layers": 2,
                  "ff_intermediate_size": 128, "num_key_value_heads": 2, "gegelu_limit": 20.0,
                  "blocksparse_block_size": 32},
    "phixtral": {"num_vocab": VOCAB, "model_dim": 64, "num_heads": 4, "num_layers": LAYERS,
                 "rotary_dim": 8},
    "plamo": {"num_attention_heads": 8},
    "plamo2": _MAMBA | {"hidden_size_per_head": 16, "full_attention_idx": [1]},
    "prism_hadamard_qwen35": {"full_attention_interval": 2, "intermediate_size": 512,
                              "num_experts": 0},
    "qwen": {"kv_channels": 16, "max_position_embeddings": CONTEXT},
    "qwen3_5": {"full_attention_interval": 2},
    "qwen3_5_moe": {"full_attention_interval": 2},
    "qwen3_next": {"full_attention_interval": 2},
    "recurrent_gemma": {"conv1d_width": 4, "logits_soft_cap": 30.0, "lru_width": 64,
                        "block_types": ["recurrent", "attention"]},
    "rwkv7": {"a_low_rank_dim": 8, "v_low_rank_dim": 8, "gate_low_rank_dim": 8,
              "decay_low_rank_dim": 8},
    "spark2_5": {"rope_parameters": _ROPES},
    "step3p5": {"num_attention_groups": 2, "share_expert_dim": 32, "moe_layers_enum": "1,2,3"},
}  # fmt: skip

# Those whose config is that of their text part, with something around it.
IN_TEXT_CONFIG: dict[str, dict[str, Any]] = dict.fromkeys(
    ("gemma3", "gemma3n", "gemma4", "kimi_k25", "kimi_k3", "kimi_vl", "lfm2-vl", "llama4",
     "minimax_m3_vl", "mistral3", "muse_spark", "pixtral", "prism_hadamard_qwen35", "qwen2_vl",
     "qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe"),
    {},
) | {
    "prism_hadamard_qwen35": {
        "schema_version": 1, "tensor_namespace": "mlx-lm-text", "gdn_activation_layout": "grouped",
        "quantization": {"bits": 2, "group_size": 128, "mode": "affine"},
        "modules": [{"path": "model.layers.1.mlp.down_proj", "embedding": False,
                     "dtype": "float16", "block": 512}]},
}  # fmt: skip

# More of one architecture: its name, and what is other in its config.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    # As the published one: wrong only in contexts of more than 2048 tokens.
    "minimax_m3_vl, blocks of 128": (
        "minimax_m3_vl",
        {"index_block_size": 128, "index_topk_blocks": 16},
    ),
    "plamo3, a window longer than prompts": ("plamo3", {"window_size": 512, "sliding_window": 512}),
    "deepseek_v41, tokens compressed by layers of its own": (
        "deepseek_v41",
        {
            "kv_source_layer_ids": (1, 2),
            "index_source_layer_ids": (1, 2),
            "index_head_dim": 32,
            "compress_ratios": (0, 4, 4, 4),
        },
    ),
    # Of 64 values a head, so that they can be quantised.
    "llama, heads of 64": ("llama", {"head_dim": 64}),
    "gemma3_text, heads of 64": ("gemma3_text", {"head_dim": 64}),
    "qwen3, heads of 64": ("qwen3", {"head_dim": 64}),
    "qwen3_next, heads of 64": ("qwen3_next", {"head_dim": 64}),
    "gpt_oss, heads of 64": ("gpt_oss", {"head_dim": 64}),
    "llama4, heads of 64": ("llama4", {"head_dim": 64}),
    "nemotron_h, heads of 64": ("nemotron_h", {"head_dim": 64}),
    "gemma3_text, a window of 512": ("gemma3_text", {"sliding_window": 512}),
}
