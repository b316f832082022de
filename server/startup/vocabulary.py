"""Whether two tokenizers give every token the same number, and if not, what differs.

Pure; imports no mlx, so that a model is refused before a launch for what it would be refused for
by rank 0.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from server.protocol.tokenizer_code import TOKENIZER

SHOWN = 3  # tokens that differ


def difference(mine: Mapping[str, int], other: Mapping[str, int]) -> str:
    """In words; nothing where they are alike."""
    if mine == other:
        return ""
    here, there = ({number: token for token, number in of.items()} for of in (mine, other))
    numbers = [n for n in sorted({*here, *there}) if here.get(n) != there.get(n)]
    shown = [
        f"{n} is {_named(here.get(n))} and not {_named(there.get(n))}" for n in numbers[:SHOWN]
    ]
    return f"{len(numbers)} token ids differ: {', '.join(shown)}"


def read_vocabulary(folder: Path) -> dict[str, int] | None:
    """Of a folder's tokenizer.json; None where that does not tell it: it is not there, or keeps its
    tokens otherwise. Raises OSError, ValueError."""
    path = folder / TOKENIZER
    if not path.is_file():
        return None
    told = json.loads(path.read_text("utf-8"))
    vocab = told.get("model", {}).get("vocab")
    if not isinstance(vocab, dict):
        return None
    return {**vocab, **{one["content"]: one["id"] for one in told.get("added_tokens", ())}}


def _named(token: str | None) -> str:
    return "none" if token is None else repr(token)
