"""Where in a conversation's prompt another prompt is likely to part from it.

For models whose caches cannot be cut: a prompt can only go on from where a cache was kept, so
rank 0 has to know such places before the prompt is computed. They are found by having the template
write what may come next, and comparing: it knows what of an old turn it drops. On rank 0's HTTP
threads.

A place is a number of this prompt's own tokens, so a wrong one costs memory and is never a wrong
token. Texts are compared first. Tokens are compared from the last special token before the
difference on, where tokenizers start afresh, so that a long conversation is not tokenized again.
"""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from server.protocol.errors import bad_request
from server.protocol.requests import NOWHERE, ChatRequest, Places
from server.text.plainer_turns import INSTRUCTS

Turns = list[dict[str, Any]]

SAID = ("x", "y")  # of which one does not begin as what a message says
TOKENIZED_MOST = 256 * 2**10  # characters, to find one place
LOOKED_BACK = 4096  # characters, at first; then twice as many

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Probe:
    """A conversation that has its beginning in common with the one that is asked for. shared: what
    they have in common is nobody's own: instructions and tools."""

    turns: Turns
    shared: bool = False


def probes(turns: Turns) -> Iterator[Probe]:
    """What may come after, or instead of, a conversation."""
    first = 0
    while first < len(turns) and turns[first]["role"] in INSTRUCTS:
        first += 1
    instructions, last = turns[:first], turns[-1]
    if first and (steady := _without_last_line(instructions[-1])) is not None:
        # It may be the date.
        yield Probe([*instructions[:-1], steady, _user(turns)], shared=True)
    yield Probe([*instructions, _user(turns)], shared=True)
    if last["role"] == "user" and len(turns) > first + 1:
        yield Probe([*turns[:-1], {**last, "content": _other(last)}])
    said = {"role": "assistant", "content": SAID[0]}
    answered = turns if last["role"] == "assistant" else [*turns, said]
    # Many templates drop what was thought as soon as the user speaks again, but not before.
    yield Probe([*answered, {"role": "user", "content": SAID[0]}])
    yield Probe(answered)


class PlaceFinder:
    """Finds tokens that prompts have in common. encode: text to ids, without special tokens of its
    own; specials: texts that are one token wherever they stand. wanted: False to find none."""

    def __init__(
        self, encode: Callable[[str], list[int]], specials: Sequence[str], wanted: bool = True
    ) -> None:
        self._encode, self._wanted = encode, wanted
        longest_first = sorted(filter(None, specials), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def find(
        self,
        request: ChatRequest,
        ids: Sequence[int],
        render: Callable[[ChatRequest, bool], str],
        look: Callable[[], object],
    ) -> Places:
        """Those of a conversation, of which ids are the tokens. render: what the template makes of
        one, with the model's turn opened or not; look is called between."""
        if not self._wanted:
            return NOWHERE
        shared, own, text = {0}, set(), render(request, True)
        for probe in probes(request.messages):
            look()
            other = replace(request, messages=probe.turns, continues=False)
            try:
                place = self.common(text, ids, render(other, False))
            except Exception as error:  # templates raise whatever they like
                log.debug("a place is not found: %s", error)
                continue
            (shared if probe.shared else own).add(place)
        return Places(tuple(sorted((shared | own) - {0, len(ids)})), max(shared))

    def instructions(
        self,
        request: ChatRequest,
        tokenize: Callable[[ChatRequest], list[int]],
        render: Callable[[ChatRequest, bool], str],
    ) -> list[int]:
        """Token ids of what all conversations begin with that have this one's instructions, and one
        token more. Raises ApiError 400 where there is nothing like that."""
        asked, other = (
            replace(request, messages=[*request.messages, {"role": "user", "content": said}])
            for said in SAID
        )
        ids = tokenize(asked)
        shared = self.common(render(asked, True), ids, render(other, True))
        if not shared:
            raise bad_request("The model's chat template shows no instructions.", request.source)
        return ids[: shared + 1]

    def common(self, text: str, ids: Sequence[int], other: str) -> int:
        """How many of ids, the tokens of text, other begins with, too. 0 where that cannot be
        known for little."""
        alike = common_length(text, other)
        start = self._last_special(text, alike)
        at = self._tokens_before(text, ids, start)
        if at is None:
            return 0
        # What comes later cannot change what both have: it is cut at a special token or at the end.
        end = self._special.search(other, alike)
        tail = other[start : end.end() if end else len(other)]
        if len(tail) > TOKENIZED_MOST:
            return 0
        return at + common_length(ids[at:], self._encode(tail))

    def _last_special(self, text: str, end: int) -> int:
        """Where the last special token before end begins; 0 if there is none."""
        size = LOOKED_BACK
        while True:
            begin = max(0, end - size)
            starts = [found.start() for found in self._special.finditer(text, begin, end)]
            if starts or not begin:
                return starts[-1] if starts else 0
            size *= 2

    def _tokens_before(self, text: str, ids: Sequence[int], start: int) -> int | None:
        """How many tokens text[:start] has, if ids has them there; else None."""
        if not start:
            return 0
        head, tail = text[:start], text[start:]
        if min(len(head), len(tail)) > TOKENIZED_MOST:
            return None
        if len(tail) < len(head):
            found = self._encode(tail)
            at = len(ids) - len(found)
            return at if at >= 0 and list(ids[at:]) == found else None
        found = self._encode(head)
        return len(found) if list(ids[: len(found)]) == found else None


def finder_of(tokenizer: Any, wanted: bool) -> PlaceFinder:
    """tokenizer: an mlx_lm TokenizerWrapper."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    encode = partial(tokenizer.encode, add_special_tokens=False)
    # Others may be runs of blanks, of which a part is not where a tokenizer starts afresh.
    return PlaceFinder(encode, [str(one) for one in added.values() if one.special], wanted)


def common_length(a: Sequence, b: Sequence) -> int:
    """How many items two sequences have in common at their beginnings."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _user(turns: Turns) -> dict[str, Any]:
    """A user's turn that is not how this conversation's first begins."""
    first = next((turn for turn in turns if turn["role"] == "user"), None)
    return {"role": "user", "content": _other(first)}


def _other(turn: dict[str, Any] | None) -> str:
    """A text that begins otherwise than the turn's."""
    content = turn.get("content") if turn else None
    said = content.lstrip() if isinstance(content, str) else ""
    return SAID[said.startswith(SAID[0])]


def _without_last_line(turn: dict[str, Any]) -> dict[str, Any] | None:
    """Instructions of several lines with another last one; None for others."""
    content = turn.get("content")
    if not isinstance(content, str):
        return None
    before, line, last = content.rstrip().rpartition("\n")
    if not before.strip():
        return None
    return {**turn, "content": before + line + _other({"content": last})}
