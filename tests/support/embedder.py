"""A tiny model of the kind that is made for embeddings, and what it should give, by numpy alone."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.models import qwen3
from tokenizers import Tokenizer, processors

from scripts.lib.model.random_model import write_random_weights
from tests.support.tiny_models import SPECIALS, VOCAB, write_byte_tokenizer

END = 256 + SPECIALS.index("<|endoftext|>")
SIZES = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": VOCAB,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_size": 64,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "eos_token_id": END,
}
PATH = "sentence_transformers.models."
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": PATH + "Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": PATH + "Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": PATH + "Normalize"},
]
POOLING = {"pooling_mode_cls_token": False, "pooling_mode_lasttoken": True}


def tiny_embedder(path: Path, seed: int = 7, **sizes) -> Path:
    """Writes it as sentence-transformers does: the trunk alone, and a tokenizer that ends each text
    with a token of its own."""
    args = SIZES | sizes
    model = qwen3.Model(qwen3.ModelArgs.from_dict(args))
    weights = write_random_weights(path, model, seed)
    for file in path.glob("model*"):
        file.unlink()
    trunk = {k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")}
    mx.save_safetensors(str(path / "model.safetensors"), trunk, metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(args))
    (path / "modules.json").write_text(json.dumps(MODULES))
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps(POOLING))
    write_byte_tokenizer(path, VOCAB, args["max_position_embeddings"])
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", END)]
    )
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def plain_hidden(folder: Path, ids: list[int]) -> np.ndarray:
    """The last token's hidden state, [H], of one text alone, in float64."""
    args = json.loads((folder / "config.json").read_text())
    named = mx.load(str(folder / "model.safetensors")).items()
    w = {name: np.array(array).astype(np.float64) for name, array in named}
    heads, kv, size = (
        args["num_attention_heads"], args["num_key_value_heads"], args["head_dim"],
    )  # fmt: skip

    def norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        mean = np.mean(x * x, axis=-1, keepdims=True)
        return x / np.sqrt(mean + args["rms_norm_eps"]) * scale

    def turn(x: np.ndarray) -> np.ndarray:
        half = size // 2
        speed = args["rope_theta"] ** (-np.arange(half) / half)
        angle = np.arange(len(ids))[:, None, None] * speed
        a, b = x[..., :half], x[..., half:]
        c, s = np.cos(angle), np.sin(angle)
        return np.concatenate([a * c - b * s, a * s + b * c], axis=-1)

    h = w["embed_tokens.weight"][ids]
    shut = np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
    for n in range(args["num_hidden_layers"]):

        def of(name: str, n: int = n) -> np.ndarray:
            return w[f"layers.{n}.{name}.weight"]

        x = norm(h, of("input_layernorm"))
        q = (x @ of("self_attn.q_proj").T).reshape(len(ids), heads, size)
        k = (x @ of("self_attn.k_proj").T).reshape(len(ids), kv, size)
        v = (x @ of("self_attn.v_proj").T).reshape(len(ids), kv, size)
        q = turn(norm(q, of("self_attn.q_norm")))
        k = turn(norm(k, of("self_attn.k_norm")))
        k, v = np.repeat(k, heads // kv, axis=1), np.repeat(v, heads // kv, axis=1)
        scores = np.einsum("qhd,khd->hqk", q, k) * size**-0.5 + shut
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        h = (
            h
            + np.einsum("hqk,khd->qhd", scores, v).reshape(len(ids), -1) @ of("self_attn.o_proj").T
        )
        x = norm(h, of("post_attention_layernorm"))
        gate, up = x @ of("mlp.gate_proj").T, x @ of("mlp.up_proj").T
        h = h + (gate / (1 + np.exp(-gate)) * up) @ of("mlp.down_proj").T
    return norm(h, w["norm.weight"])[-1]


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)
