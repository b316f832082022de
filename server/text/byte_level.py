"""Byte-level tokens to text, and the bytes of any token.

Made once for a tokenizer; then read by rank 0's HTTP threads, for each answer by a copy.
"""

from collections.abc import Callable
from typing import Any

SPACE = "\u2581".encode()
PADDING = b"!"  # of an id beyond the vocabulary, as mlx-lm has it
UNFINISHED = "\ufffd"  # ends a text whose last character may go on


class ByteLevelDetokenizer:
    """Stands in for mlx-lm's BPEStreamingDetokenizer, and gives text at the same tokens.

    That one takes the letter of byte 0 for none, so that a NUL came out as U+0100; and it reads the
    letters of added tokens, which are plain text, as bytes.
    """

    def __init__(self, tokenizer: Any) -> None:
        from mlx_lm.tokenizer_utils import _byte_decoder

        letters, added = _byte_decoder(), set(tokenizer.get_added_vocab().values())
        pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        self.bytes = [
            _read(piece or "", {} if token in added else letters)
            for token, piece in enumerate(pieces)
        ]
        self.reset()

    def reset(self) -> None:
        self.text, self.tokens = "", []
        self._held, self._told = b"", 0

    @property
    def last_segment(self) -> str:
        """The text since this was last asked."""
        told, self._told = self._told, len(self.text)
        return self.text[told:]

    def add_token(self, token: int) -> None:
        self.tokens.append(token)
        data = self.bytes[token] if token < len(self.bytes) else PADDING
        self._held += data
        text = self._held.decode("utf-8", "replace")
        if data != b" " and not text.endswith(UNFINISHED):
            self._tell(text)

    def finalize(self) -> None:
        self._tell(self._held.decode("utf-8", "replace"))

    def _tell(self, text: str) -> None:
        """Without a space at the very start."""
        self.text += text if self.text else text.removeprefix(" ")
        self._held = b""


def _read(piece: str, letters: dict[str, int]) -> bytes:
    data = bytearray()
    for letter in piece:
        data += bytes([letters[letter]]) if letter in letters else letter.encode("utf-8", "replace")
    return bytes(data)


def _made(tokenizer: Any) -> Any:
    return getattr(tokenizer, "detokenizer", None)  # none of what is not mlx-lm's wrapper


def mend(tokenizer: Any) -> None:
    """Has mlx-lm's wrapper of a byte-level tokenizer give out our detokenizers."""
    from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer

    if isinstance(_made(tokenizer), BPEStreamingDetokenizer):
        # The wrapper takes a class only where it is made, which is in mlx-lm.
        tokenizer._detokenizer = ByteLevelDetokenizer(tokenizer)


def bytes_reader(tokenizer: Any) -> Callable[[int], bytes]:
    """What tells the bytes that a token adds to the text: a part of a character, maybe. tokenizer:
    a mended wrapper."""
    from mlx_lm.tokenizer_utils import SPMStreamingDetokenizer

    detokenizer, known = _made(tokenizer), []
    if isinstance(detokenizer, ByteLevelDetokenizer):
        known = detokenizer.bytes
    elif isinstance(detokenizer, SPMStreamingDetokenizer):
        known = [data.replace(SPACE, b" ") for data in detokenizer.tokenmap]

    def read(token: int) -> bytes:
        if token < len(known):
            return known[token]
        return tokenizer.decode([token]).encode("utf-8", "replace")

    return read
