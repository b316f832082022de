"""A prompt between a prefix and a suffix, for models that were trained to fill in the middle.

Pure over a tokenizer; called on rank 0's HTTP threads. Such a model knows which of the two is which
by tokens of its own. They are put in as tokens: what a client writes cannot be split in another way
by them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Stands before a text that is tokenized as one that goes on, and is taken off: SentencePiece puts a
# space before a text's first word.
ANCHOR = "☺"
Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Form:
    """The tokens before prefix, suffix and middle, "" for none. suffix_first: the suffix comes
    before the prefix. goes_on: the suffix has no space before it that is not its own."""

    prefix: str
    suffix: str
    middle: str
    suffix_first: bool = False
    goes_on: bool = False


FORMS = (
    Form("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, CodeGemma, Granite 4
    Form("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite Code, SmolLM
    Form("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    Form("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek
    Form("▁<PRE>", "▁<SUF>", "▁<MID>", goes_on=True),  # Code Llama
    Form("<PRE>", "<SUF>", "<MID>"),  # Stable Code's and others' after it
    Form("[PREFIX]", "[SUFFIX]", "", suffix_first=True, goes_on=True),  # Codestral
)
# Beside the above: with what a middle ends, or a next file would begin.
ENDS = (
    "<|fim_pad|>", "<|file_sep|>", "<|repo_name|>", "<|file_separator|>",
    "<fim_pad>", "<fim-pad>", "<file_sep>", "<repo_name>",
    "▁<EOT>", "<EOT>", "[MIDDLE]",
)  # fmt: skip


class Infill:
    """Of one tokenizer. ids: of the tokens that it has. begin: with what it begins every text."""

    def __init__(self, form: Form, ids: dict[str, int], begin: list[int]) -> None:
        self._form = form
        self._ids = ids
        self._begin = begin

    def suffix(self, text: str, encode: Encode) -> "Suffix":
        """A suffix, tokenized once for however many prefixes."""
        return Suffix(self._form, self._ids, self._begin, self._encoded(text, encode))

    def _encoded(self, text: str, encode: Encode) -> list[int]:
        if self._form.goes_on:
            head, whole = encode(ANCHOR), encode(ANCHOR + text)
            if whole[: len(head)] == head:
                return whole[len(head) :]
        return encode(text)


class Suffix:
    """What stands after an answer. ends: ids that end the answer, beside the model's own."""

    def __init__(
        self, form: Form, ids: dict[str, int], begin: list[int], suffix: list[int]
    ) -> None:
        marks = (form.prefix, form.suffix, form.middle)
        self._prefix, self._suffix, self._middle = ([ids[mark]] if mark else [] for mark in marks)
        self._suffix += suffix
        self._first = form.suffix_first
        self._begin = begin
        self.ends = tuple(dict.fromkeys(ids[mark] for mark in (*marks, *ENDS) if mark in ids))

    def after(self, prefix: list[int]) -> list[int]:
        """The prompt that asks for what stands between the prefix and this."""
        first, second = [*self._prefix, *prefix], self._suffix
        if self._first:
            first, second = second, first
        return [*self._begin, *first, *second, *self._middle]


def infill_of(tokenizer: Any, vocab: int) -> Infill | None:
    """For a tokenizer that has all tokens of one form. vocab: size of the model's output."""
    known = tokenizer.get_vocab()
    ids = {
        token: known[token]
        for form in FORMS
        for token in (form.prefix, form.suffix, form.middle, *ENDS)
        if known.get(token, vocab) < vocab
    }
    for form in FORMS:
        if all(token in ids for token in (form.prefix, form.suffix, form.middle) if token):
            bos = getattr(tokenizer, "bos_token_id", None)
            started = list(tokenizer.encode("a", add_special_tokens=True))[:1]
            return Infill(form, ids, started if bos is not None and started == [bos] else [])
    return None
