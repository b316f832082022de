"""Write tiny random models, with real tokenizers, that load in a tenth of a second.

For tests that need ranks but no sense: the weights are random, the same on every run
and machine for the same arguments. Greedy decoding gives printable ASCII and never an
end-of-text, so a test gets as many tokens as it asks for.
"""

import json
from pathlib import Path

import mlx.core as mx
from mlx_lm.models import llama, qwen2
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from scripts.lib.model.random_model import write_random_weights

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Of the first two spare ones, which tests make <think> and </think>.
THINK, END = 256 + len(SPECIALS), 257 + len(SPECIALS)
VOCAB = 264  # 256 bytes, the specials above, and spare ones
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_llama(
    path: Path,
    vocab: int = VOCAB,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 4,
    hidden: int = 64,
    context: int = 512,
    seed: int = 0,
) -> Path:
    """Write a llama (tensor parallelism over any count that divides the heads) to `path`."""
    args = _sizes("llama", vocab, layers, heads, kv_heads, hidden, context)
    return _write(path, llama.Model(llama.ModelArgs.from_dict(args)), args, seed)


def tiny_pipeline(
    path: Path,
    vocab: int = VOCAB,
    layers: int = 4,
    heads: int = 4,
    kv_heads: int = 4,
    hidden: int = 64,
    context: int = 512,
    seed: int = 0,
) -> Path:
    """Write a qwen2, which can be split into a pipeline (and by tensor), to `path`.

    In several weight files, as a pipeline's ranks choose theirs by the index.
    """
    args = _sizes("qwen2", vocab, layers, heads, kv_heads, hidden, context)
    model = qwen2.Model(qwen2.ModelArgs.from_dict(args))
    return _write(path, model, args, seed, files=layers)


def _sizes(
    model_type: str, vocab: int, layers: int, heads: int, kv_heads: int, hidden: int, context: int
) -> dict:
    if vocab < 256 + len(SPECIALS):
        raise ValueError(f"vocab is {vocab}: at least {256 + len(SPECIALS)}")
    return {
        "model_type": model_type,
        "vocab_size": vocab,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 256 + SPECIALS.index("<|im_start|>"),
        "eos_token_id": 256 + SPECIALS.index("<|im_end|>"),
    }


def _write(path: Path, model, args: dict, seed: int, files: int = 1) -> Path:
    weights = write_random_weights(path, model, seed, _only_ascii)
    if files > 1:
        _split_weights(path, weights, files)
    (path / "config.json").write_text(json.dumps(args, indent=2))
    write_byte_tokenizer(path, args["vocab_size"], args["max_position_embeddings"])
    return path


def _only_ascii(head: mx.array) -> mx.array:
    """Ids 32 to 126 are the bytes of printable ASCII; the rest gets a plain 0."""
    rows = mx.arange(head.shape[0])
    return head * ((rows >= 32) & (rows < 127))[:, None]


def _split_weights(path: Path, weights: dict, files: int) -> None:
    """Spread the weights over several files, in the order of their names."""
    (path / "model.safetensors").unlink()
    names = sorted(weights)
    weight_map = {}
    for number in range(files):
        file = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        own = names[number * len(names) // files : (number + 1) * len(names) // files]
        mx.save_safetensors(str(path / file), {name: weights[name] for name in own})
        weight_map |= dict.fromkeys(own, file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def write_byte_tokenizer(path: Path, vocab: int = VOCAB, context: int = 512) -> None:
    """Write a byte-level BPE tokenizer without merges: token n is byte n, then specials.

    It has exactly `vocab` tokens, so every id that a model can give has a text.
    """
    letters = _letters_of_bytes()
    specials = [*SPECIALS, *(f"<|spare_{n}|>" for n in range(vocab - 256 - len(SPECIALS)))]
    tokens = [*letters, *specials]
    tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    tokenizer.save(str(path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def _letters_of_bytes() -> list[str]:
    """The visible character that byte-level BPE writes for each byte, 0 to 255."""
    # Printable bytes stand for themselves; the others follow in order from U+0100.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + n) for n, byte in enumerate(others)}
    assert set(letters.values()) == set(ByteLevel.alphabet())
    return [letters[byte] for byte in range(256)]
