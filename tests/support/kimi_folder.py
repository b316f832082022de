"""A small folder laid out as Kimi K2's: ranks of tiktoken, and Python that would read them."""

import base64
import json
from pathlib import Path

from tests.models.architectures import write
from tests.support.tiny_models import CHAT_TEMPLATE

WORDS = (
    "the quick brown fox jumps over 12345 don't we'll naïve Straße 日本語 漢字 テスト hello world "
    "the then them other 你好世界 emoji"
)
SPECIALS = ("[BOS]", "[EOS]", "<|im_end|>", "<|im_user|>", "<|tool_call_begin|>")
PATTERN = "|".join(
    [
        r"[\p{Han}]+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
CODE = """
import tiktoken
raise SystemExit("this code is run")


class {name}:
    pat_str = {pattern}
"""


def ranks() -> dict[bytes, int]:
    """Each byte, then beginnings of some words, so that a text has several ways to be merged."""
    tokens = [bytes([n]) for n in range(256)]
    for word in WORDS.split():
        for lead in ("", " "):
            data = (lead + word).encode()
            tokens += [data[:n] for n in range(2, len(data) + 1) if data[:n] not in tokens]
    return {token: rank for rank, token in enumerate(tokens)}


def special_ids() -> dict[str, int]:
    """By name; after the first two comes a place without a name, as in the published folder."""
    first = len(ranks())
    return {name: first + n + (n > 1) for n, name in enumerate(SPECIALS)}


def kimi_folder(folder: Path, pattern: str | None = None, name: str = "TikTokenTokenizer") -> Path:
    """pattern: how the code writes it, as Python. name: of the class in it."""
    # Cut within brackets, too, and joined again all the same.
    pattern = pattern or f'"|".join({PATTERN.split("|")!r})'
    write(folder, "kimi_k25")
    (folder / "tokenizer.json").unlink()
    lines = [b"%s %d" % (base64.b64encode(token), rank) for token, rank in ranks().items()]
    (folder / "tiktoken.model").write_bytes(b"\n".join(lines) + b"\n")
    (folder / "tokenization_kimi.py").write_text(CODE.format(name=name, pattern=pattern))
    config = {
        "tokenizer_class": name,
        "auto_map": {"AutoTokenizer": [f"tokenization_kimi.{name}", None]},
        "added_tokens_decoder": {
            str(number): {"content": token, "special": not token.startswith("<|tool")}
            for token, number in special_ids().items()
        },
        "bos_token": "[BOS]",
        "eos_token": "[EOS]",
        "model_max_length": 1024,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder
