"""An answer as a row of blocks, in the order the model made them: reasoning, text, tool calls.

The Responses and the Messages API both tell an answer so; each says the steps in its own words.
Whitespace alone opens no block: models put line feeds around their thinking and between their
calls, and a message or a thought of nothing but these would puzzle the clients.
"""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

from server.protocol.pieces import CallPiece, Parts


@dataclass
class Block:
    """kind: "reasoning", "text" or "call". text: what it holds so far; a call's is JSON.

    key is unique, for ids that a stream and its whole must share. call counts the answer's calls;
    id and name are theirs alone. status: "in_progress", "completed" or "incomplete" (cut short).
    """

    kind: str
    index: int
    call: int | None = None
    id: str | None = None
    name: str | None = None
    text: str = ""
    status: str = "in_progress"
    key: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True)
class Step:
    """What has just happened to a block. act: "open", "grow" (by text) or "close"."""

    act: str
    block: Block
    text: str = ""


class Blocks:
    """All blocks of one answer. The steps are to be told as they are yielded."""

    def __init__(self) -> None:
        self.all: list[Block] = []
        self._open: Block | None = None
        self._held: dict[str, str] = {}  # by kind: whitespace that may yet begin a block

    def add(self, parts: Parts) -> Iterator[Step]:
        """The steps of some parts of the answer."""
        if parts.reasoning:
            yield from self._add_text("reasoning", parts.reasoning)
        if parts.text:
            yield from self._add_text("text", parts.text)
        for call in parts.calls:
            yield from self._add_call(call)

    def end(self, *, cut: bool) -> Iterator[Step]:
        """Closes what is open. An answer of nothing has one text block: clients look for it."""
        if not self.all:
            text = self._held.get("text", "")
            yield from self._begin(Block("text", 0))
            if text:
                yield self._grow(text)
        yield from self._close("incomplete" if cut else "completed")

    def _add_text(self, kind: str, text: str) -> Iterator[Step]:
        if self._open is None or self._open.kind != kind:
            text = self._held.pop(kind, "") + text
            if text.isspace():
                self._held[kind] = text
                return
            yield from self._begin(Block(kind, len(self.all)))
        yield self._grow(text)

    def _add_call(self, call: CallPiece) -> Iterator[Step]:
        if self._open is None or self._open.call != call.index:
            block = Block("call", len(self.all), call=call.index, id=call.id, name=call.name)
            yield from self._begin(block)
        if call.arguments:
            yield self._grow(call.arguments)

    def _begin(self, block: Block) -> Iterator[Step]:
        yield from self._close("completed")
        self._held.clear()
        self.all.append(block)
        self._open = block
        yield Step("open", block)

    def _grow(self, text: str) -> Step:
        block = self.all[-1]
        block.text += text
        return Step("grow", block, text)

    def _close(self, status: str) -> Iterator[Step]:
        if self._open is not None:
            block, self._open = self._open, None
            block.status = status
            yield Step("close", block)
