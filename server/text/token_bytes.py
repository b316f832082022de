"""How much text a token can stand for, from the vocabulary. Asked once, when the model is loaded.

A text of more bytes than context x this many cannot fit, which is known without tokenizing it. The
bound must never be too low, or prompts that fit would be refused. What it allows for:

- byte-level vocabularies write each byte as a letter of its own, others a space as U+2581;
- normalizers that write a character with fewer bytes: at most four times fewer (letters of
  mathematics to ASCII under NFKC); NFC changes almost no ASCII, so blanks count as they are;
- a special token's own text, as clients may write it out.

What it does not allow for: tokenizers that drop text (white space beside a special token that
strips it, runs of unknown characters that become one token). Of these, text beyond the bound is
refused though its tokens might fit: megabytes that the model would not see.
"""

import json
from typing import Any

SPACE = "\u2581"
SHRINKS = 4
CANONICAL = {"NFC", "NFD"}
# The ASCII characters into which NFC turns others (the kelvin sign, the Greek question mark).
NOT_ONLY_ASCII = b"K;`"


def bytes_per_token(tokenizer: Any) -> int:
    """UTF-8 bytes of text that one token can stand for, at most. tokenizer: a Hugging Face
    tokenizer or mlx-lm's wrapper of one."""
    from mlx_lm.tokenizer_utils import _byte_decoder

    letters, weights = _byte_decoder(), _weights(_normalizers(tokenizer))
    longest = 1
    for piece in tokenizer.get_vocab():
        if all(letter in letters for letter in piece):
            data = bytes(letters[letter] for letter in piece)
        else:
            data = piece.replace(SPACE, " ").encode("utf-8", "replace")
        longest = max(longest, sum(data.translate(weights)))
    return longest


def _weights(normalizers: set[str]) -> bytes:
    """For each byte of a token how many bytes of text it can stand for."""
    if not normalizers:
        return bytes([1] * 256)
    if not normalizers <= CANONICAL:
        return bytes([SHRINKS] * 256)
    return bytes(1 if byte < 128 and byte not in NOT_ONLY_ASCII else SHRINKS for byte in range(256))


def _normalizers(tokenizer: Any) -> set[str]:
    """The kinds, as tokenizer.json names them, of those that may write less than they read."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {"unknown"}
    if backend.normalizer is None:
        return set()
    return set(_shrinking(json.loads(backend.normalizer.__getstate__())))


def _shrinking(normalizer: dict[str, Any]) -> list[str]:
    kind = normalizer["type"]
    if kind == "Sequence":
        return [found for inner in normalizer["normalizers"] for found in _shrinking(inner)]
    if kind in ("Prepend", "ByteLevel"):
        return []
    if kind == "Replace":
        old, new = normalizer["pattern"].get("String"), normalizer["content"]
        return [] if old and len(new.encode()) >= len(old.encode()) else [kind]
    return [kind]
