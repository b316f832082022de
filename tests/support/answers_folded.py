"""Run a TextOut over tokens and fold what it gives, as a client would."""

from dataclasses import dataclass
from typing import Any

from server.protocol.pieces import Parts
from tests.support.sweeps import sample


@dataclass(frozen=True)
class Folded:
    """A whole answer. calls: (name, arguments as JSON text)."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    finish: str = "stop"


def parts_of(out: Any, tokens, reason: str = "stop") -> tuple[list[Parts], str]:
    """What each token gave, then what finish() gave; and the finish reason."""
    parts = []
    for token in tokens:
        parts.append(out.add(token))
        if out.stopped is not None:
            break
    last, finish = out.finish(reason)
    return [*parts, last], finish


def fold(out: Any, tokens, reason: str = "stop") -> Folded:
    """The whole answer. Checks on the way that the pieces of calls are in order."""
    parts, finish = parts_of(out, tokens, reason)
    whole = sum(parts, Parts())
    calls: list[list[str]] = []
    ids = set()
    for piece in whole.calls:
        if piece.id is not None:
            assert piece.index == len(calls) and piece.name and piece.id not in ids
            ids.add(piece.id)
            calls.append([piece.name, ""])
        else:
            assert piece.index == len(calls) - 1 and piece.name is None and piece.arguments
        calls[piece.index][1] += piece.arguments
    return Folded(whole.text, whole.reasoning, tuple((n, a) for n, a in calls), finish)


class Cut:
    """A tokenizer whose tokens are the texts it is given, token n being the nth of them.

    All but its detokenizer is the real tokenizer's.
    """

    def __init__(self, tokenizer: Any, texts: list[str]) -> None:
        self._tokenizer = tokenizer
        self._texts = texts

    @property
    def detokenizer(self) -> "_Texts":
        return _Texts(self._texts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


class _Texts:
    def __init__(self, texts: list[str]) -> None:
        self._texts = texts
        self.last_segment = ""

    def add_token(self, token: int) -> None:
        self.last_segment = self._texts[token]

    def finalize(self) -> None:
        self.last_segment = ""


def cuts(text: str):
    """The text in two pieces, at every position, of which a sample is tried; then one character at
    a time."""
    for at in sample(range(1, len(text)), 3):
        yield [text[:at], text[at:]]
    yield list(text)
    yield [text[at : at + 3] for at in range(0, len(text), 3)]
