"""Convert a small llama GGUF with its tokenizer to an MLX model folder that shards.

Called by demo_model.py, in one process and on no cluster. It reads one file and
writes one folder; it never touches the network and never leaves an old file in place.

Two formats: `float32` (fast on a CPU, where low precision is slow) and `4bit` (the
GGUF's own quantised weights, copied and not rounded a second time).
"""

import json
from pathlib import Path

import mlx.core as mx
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm

GROUP_SIZE = 32  # weights that share a scale; GGUF's Q4_1 and Q8_0 blocks
CONTROL_TOKEN = 3  # tokenizer.ggml.token_type of a special token

# GGUF name of a tensor -> name in mlx-lm's llama.
OUTER_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert(gguf: Path, folder: Path, form: str, kv_heads: int | None = None) -> None:
    """Write `folder` (which must exist) from `gguf`.

    `form` is "float32" or "4bit". `kv_heads` pads the attention with heads that add
    nothing until it has that many KV heads; None keeps the heads of the file.
    Raises ValueError when the file holds something else than a llama with a
    byte-level BPE tokenizer.
    """
    weights, metadata = mx.load(str(gguf), return_metadata=True)
    metadata = {key: _plain(value) for key, value in metadata.items()}
    for key, known in (("general.architecture", "llama"), ("tokenizer.ggml.model", "gpt2")):
        if metadata.get(key) != known:
            raise ValueError(f"{gguf.name}: {key} is {metadata.get(key)!r}, not {known!r}")

    real_kv_heads = metadata["llama.attention.head_count_kv"]
    padding = Padding(
        heads=metadata["llama.attention.head_count"],
        kv_heads=real_kv_heads,
        wanted_kv_heads=kv_heads or real_kv_heads,
        head_size=metadata["llama.rope.dimension_count"],
    )
    config = build_config(metadata, padding)
    tensors = convert_tensors(weights, padding, form)
    if form == "4bit":
        config["quantization"] = quantization = _quantization_of(tensors)
        config["quantization_config"] = quantization
    config["torch_dtype"] = str(tensors["model.norm.weight"].dtype).removeprefix("mlx.core.")

    write_weights(tensors, folder)
    write_tokenizer(metadata, folder)
    _write_json(folder / "generation_config.json", _token_ids(metadata))
    _write_json(folder / "config.json", config)


class Padding:
    """How many heads a model has, and how many it gets so that they divide evenly.

    A KV head of zeros, with zero query heads and zero columns in the output
    projection for them, attends to everything with value 0 and adds exactly 0.
    """

    def __init__(self, heads: int, kv_heads: int, wanted_kv_heads: int, head_size: int):
        queries_per_kv = heads // kv_heads
        self.heads, self.kv_heads, self.head_size = heads, kv_heads, head_size
        self.padded_kv_heads = wanted_kv_heads
        self.padded_heads = wanted_kv_heads * queries_per_kv

    def apply(self, name: str, part: mx.array, values_per_item: int) -> mx.array:
        """Reorder and pad one array of a layer's tensor.

        `part` is the weight, the scales or the biases of the tensor `name`, with
        `values_per_item` weights in each of its columns (8 packed in a word, 32 a scale).
        """
        if name in ("attn_q", "attn_k"):
            heads = self.heads if name == "attn_q" else self.kv_heads
            part = _halves_from_pairs(part, heads)
        if name in ("attn_q", "attn_k", "attn_v"):
            wanted = self.padded_heads if name == "attn_q" else self.padded_kv_heads
            return mx.pad(part, [(0, wanted * self.head_size - part.shape[0]), (0, 0)])
        if name == "attn_output":
            columns = self.padded_heads * self.head_size // values_per_item
            return mx.pad(part, [(0, 0), (0, columns - part.shape[1])])
        return part


def _halves_from_pairs(rows: mx.array, heads: int) -> mx.array:
    """Put each head's rows in the order of mlx-lm's rotary embedding.

    GGUF interleaves the two rows that rotate together; here the first of all pairs
    come first, then the second of all.
    """
    row_count, columns = rows.shape
    by_pair = rows.reshape(heads, row_count // heads // 2, 2, columns)
    return by_pair.swapaxes(1, 2).reshape(row_count, columns)


def convert_tensors(
    weights: dict[str, mx.array], padding: Padding, form: str
) -> dict[str, mx.array]:
    """Rename, reorder, pad and (float32) dequantise all tensors of a GGUF.

    Empties `weights` as it goes, so that a model is not held twice.
    """
    tensors = {}
    modules = sorted({key.rpartition(".")[0] for key in weights})
    # disable=None: a bar only on a terminal.
    for module in tqdm(modules, desc="Converting", unit="tensor", leave=False, disable=None):
        parts = {
            kind: weights.pop(f"{module}.{kind}")
            for kind in ("weight", "scales", "biases")
            if f"{module}.{kind}" in weights
        }
        layer_tensor = module.split(".")[2] if module.startswith("blk.") else None
        if layer_tensor:
            target = f"model.layers.{module.split('.')[1]}.{LAYER_TENSORS[layer_tensor]}"
        else:
            target = OUTER_TENSORS[module]
        if "scales" in parts and form == "float32":
            parts = {"weight": _dequantize(**parts)}
        for kind, part in parts.items():
            if layer_tensor and part.ndim == 2:
                part = padding.apply(layer_tensor, part, _values_per_item(kind, parts))
            if part.dtype != mx.uint32:
                # One floating type throughout: mixed ones promote every activation.
                part = part.astype(mx.float32 if form == "float32" else mx.float16)
            tensors[f"{target}.{kind}"] = part
        mx.eval([tensors[f"{target}.{kind}"] for kind in parts])
    return tensors


def _bits(weight: mx.array, scales: mx.array) -> int:
    return weight.shape[-1] * 32 // (scales.shape[-1] * GROUP_SIZE)


def _values_per_item(kind: str, parts: dict[str, mx.array]) -> int:
    if "scales" not in parts:
        return 1
    return 32 // _bits(parts["weight"], parts["scales"]) if kind == "weight" else GROUP_SIZE


def _dequantize(weight: mx.array, scales: mx.array, biases: mx.array) -> mx.array:
    return mx.dequantize(
        weight,
        # Wider before, not after: the products are then exact instead of rounded to half.
        scales.astype(mx.float32),
        biases.astype(mx.float32),
        group_size=GROUP_SIZE,
        bits=_bits(weight, scales),
    )


def _quantization_of(tensors: dict[str, mx.array]) -> dict:
    """The `quantization` entry of config.json: 4 bits, and the layers that have others."""
    quantization = {"group_size": GROUP_SIZE, "bits": 4, "mode": "affine"}
    for key, weight in tensors.items():
        module, _, kind = key.rpartition(".")
        if kind == "weight" and f"{module}.scales" in tensors:
            bits = _bits(weight, tensors[f"{module}.scales"])
            if bits != 4:
                quantization[module] = {"group_size": GROUP_SIZE, "bits": bits}
    return quantization


def build_config(metadata: dict, padding: Padding) -> dict:
    """config.json of the model, as mlx-lm and transformers read it, less the number format."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": metadata["llama.embedding_length"],
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": padding.padded_heads,
        "num_key_value_heads": padding.padded_kv_heads,
        # Said outright: hidden_size / heads is no longer the head's size once padded.
        "head_dim": padding.head_size,
        "max_position_embeddings": metadata["llama.context_length"],
        "vocab_size": metadata["llama.vocab_size"],
        # A float32 of the file read as a double has a tail of noise: 9.999999747e-06.
        "rms_norm_eps": float(f"{metadata['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": metadata["llama.rope.freq_base"],
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        **_token_ids(metadata),
    }


def write_weights(tensors: dict[str, mx.array], folder: Path) -> None:
    """Write the tensors to one safetensors file, and the index that sharded loading wants."""
    file = "model.safetensors"
    mx.save_safetensors(str(folder / file), tensors, metadata={"format": "mlx"})
    index = {
        "metadata": {"total_size": sum(part.nbytes for part in tensors.values())},
        "weight_map": dict.fromkeys(sorted(tensors), file),
    }
    _write_json(folder / f"{file}.index.json", index)


def write_tokenizer(metadata: dict, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json from the GGUF's metadata."""
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # The model was trained on single digits: "2024" is four tokens.
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = metadata["tokenizer.ggml.token_type"]
    specials = [t for t, kind in zip(tokens, types, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in specials]
    )
    tokenizer.save(str(folder / "tokenizer.json"))

    ids = _token_ids(metadata)
    config = {
        # Reads tokenizer.json as it is; a class named for a model would rebuild it.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[ids["bos_token_id"]],
        "eos_token": tokens[ids["eos_token_id"]],
        "pad_token": tokens[ids["pad_token_id"]],
        "unk_token": tokens[metadata["tokenizer.ggml.unknown_token_id"]],
        "model_max_length": metadata["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": metadata["tokenizer.chat_template"],
    }
    _write_json(folder / "tokenizer_config.json", config)


def _token_ids(metadata: dict) -> dict[str, int]:
    return {
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
    }


def _plain(value):
    """A metadata value as Python's own type (numbers come as arrays)."""
    return value.tolist() if isinstance(value, mx.array) else value


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
