"""Smaller models than tiny_models', straight from mlx-lm's classes: one of each kind of cache."""

from mlx_lm.models import llama, mamba2

VOCAB = 64


def small_llama(layers=2, **more):
    return llama.Model(
        llama.ModelArgs(
            model_type="llama",
            hidden_size=32,
            num_hidden_layers=layers,
            intermediate_size=64,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=1e-5,
            vocab_size=VOCAB,
            **more,
        )
    )


def small_mamba(layers=2):
    return mamba2.Model(
        mamba2.ModelArgs(
            model_type="mamba2",
            num_heads=4,
            head_dim=16,
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=64,
            state_size=16,
            num_hidden_layers=layers,
            layer_norm_epsilon=1e-5,
            conv_kernel=4,
            n_groups=1,
            use_bias=False,
            use_conv_bias=True,
            tie_word_embeddings=True,
            time_step_limit=(0.001, 10.0),
            time_step_rank="auto",
        )
    )


KINDS = {
    "attention": small_llama,
    "sliding": lambda layers=2: small_llama(
        layer_types=["sliding_attention", "full_attention"], sliding_window=24
    ),
    "state": small_mamba,
}

# With heads of 64 values, so that keys and values can be quantised.
QUANTISABLE = {
    "attention": lambda layers=2: small_llama(layers, head_dim=64),
    "sliding": lambda layers=2: small_llama(
        layers,
        head_dim=64,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=24,
    ),
}
