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
    """Of one tokenizer. ends: ids that end a middle, beside the model's own end tokens."""

    def __init__(self, form: Form, ids: dict[str, int], begin: list[int]) -> None:
        self._form = form
        self._marks = {
            name: [ids[token]] if token else []
            for name in ("prefix", "suffix", "middle")
            for token in [getattr(form, name)]
        }
        self._begin = begin
        markers = (form.prefix, form.suffix, form.middle, *ENDS)
        self.ends = tuple(dict.fromkeys(ids[token] for token in markers if token in ids))

    def suffix(self, text: str, encode: Encode) -> list[int]:
        """Token ids of the suffix."""
        if self._form.goes_on:
            head, whole = encode(ANCHOR), encode(ANCHOR + text)
            if whole[: len(head)] == head:
                return whole[len(head) :]
        return encode(text)

    def join(self, prefix: list[int], suffix: list[int]) -> list[int]:
        """The prompt."""
        first, second = [*self._marks["prefix"], *prefix], [*self._marks["suffix"], *suffix]
        if self._form.suffix_first:
            first, second = second, first
        return [*self._begin, *first, *second, *self._marks["middle"]]


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
