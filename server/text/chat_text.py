"""A chat answer's tokens to content, reasoning and tool calls, as the model's family marks them.

Called on rank 0's HTTP threads, one ChatText for each choice. What it gives does not depend on
where tokens end: text waits while it may be the beginning of a marker, and from where a call may
begin until its format's reader (calls/) can say for certain what it is.

- Stop strings act on the content that the client sees, not on reasoning or calls.
- White space that only sets reasoning, content and calls apart is left out; between two texts it
  stays, calls or not.
- Reasoning comes before the content: where its marker is a single token, the same word later on
  is content, as in an answer that speaks about <think>.
- A call in a block of code is an example. One in a thought is part of it, if the thought ends and
  there is an answer after it; else it is meant.
- Text that looks like a call and is none (cut, malformed, of no tool) comes back as it was written,
  to where it stood. No exception comes of what a model writes.
"""

import logging
import re
from collections.abc import Sequence
from typing import Any

from server.protocol.pieces import CallPiece, Parts
from server.text.call_text import CallText
from server.text.calls.reader import READ_IN_VAIN, Finish, Found, More, NotACall, Scan
from server.text.calls.tools import Tools
from server.text.code_spans import CodeSpans
from server.text.marker_search import MarkerSearch
from server.text.markup import initial_state, markup_of
from server.text.stop_strings import StopStrings, StopWords

log = logging.getLogger(__name__)

NEWLINES = "\r\n"
HEADERS = ("<|", "to=", "assistant")  # how the header of a message may begin
RECIPIENT, FUNCTION = "to=", "to=functions."  # in a header; other recipients are no tools of ours
# What may be a call is read again when it has grown by so much.
GROWTH, GROWTH_CHARS = 4, 16


class ChatText:
    """A pieces.TextOut. See the module's docstring.

    tokenizer: an mlx_lm TokenizerWrapper. hidden: token ids that are no text, as those that end
    the answer. prompt_ids tell whether the prompt has opened the thinking. tools: OpenAI function
    tools. parse_calls: else calls are plain text. parallel: else only the first call counts.
    json_calls: a grammar decides, which has most families write calls as JSON.
    continues: the beginning of the content, if it is part of the prompt.
    """

    def __init__(
        self,
        tokenizer: Any,
        stop: StopWords | tuple[str, ...] = (),
        hidden: frozenset[int] | set[int] = frozenset(),
        prompt_ids: Sequence[int] = (),
        tools: Sequence[dict[str, Any]] = (),
        parse_calls: bool = True,
        parallel: bool = True,
        json_calls: bool = False,
        continues: str | None = None,
    ) -> None:
        self.stopped: str | None = None
        self.reasoning_tokens = 0
        markup = markup_of(tokenizer)
        self._calls = CallText(parallel, markup.short_ids)
        if json_calls:
            markup = markup.with_json_calls()
        self._markup = markup if parse_calls else markup.without_calls()
        self._detokenizer = tokenizer.detokenizer
        self._hidden = hidden
        self._in = self._origin = initial_state(tokenizer, self._markup, prompt_ids)
        self._searches: dict[tuple[str, bool], tuple[MarkerSearch, dict[str, str]]] = {}
        self._text = ""  # what is not told yet, in a call from its opening marker on
        self._more: list[str] = []  # what comes after it, while a call is read
        self._next_size = 0  # when to read the call again
        self._vain = 0  # characters that were read for a call and were none
        self._marker = ""  # what opened the call that is being read
        self._stop = StopStrings(stop)
        self._tools = Tools(list(tools))
        self._code = CodeSpans()
        self._header = ""  # text outside of any message
        self._space = ""  # white space that is content only if content follows
        self._strip = self._markup.has_thinking  # newlines that come next are layout
        self._begun = False  # there is content, or a call
        self._said = False  # there is content
        self._ends_in_text = False  # and no call after it
        self._reasoned = False
        self._called_in_thought = False
        self._reasoning_space = ""  # as _space; it is left out at both ends
        self._reasoning_strip = True
        self._parts = Parts()
        if continues is not None:
            self._in = self._origin = "normal"
            self._begun = self._said = bool(continues.strip())
            self._strip = self._strip and not self._begun
            self._code.add(continues)

    def add(self, token: int) -> Parts:
        """What this token makes certain."""
        if token in self._hidden or self.stopped is not None:
            return Parts()
        before = self._in
        self._detokenizer.add_token(token)
        self._read(self._detokenizer.last_segment)
        # The markers' own tokens are not reasoning.
        self.reasoning_tokens += before == self._in == "reasoning"
        return self._take()

    def finish(self, reason: str) -> tuple[Parts, str]:
        """What was held back, and "tool_calls" for "stop" if there are any."""
        if self.stopped is None:
            self._detokenizer.finalize()
            self._read(self._detokenizer.last_segment, "length" if reason == "length" else "stop")
        if self.stopped is None:
            self._content_ends()
            if self._ends_in_text or not self._calls.count:
                self._tell(text=self._space)
        if self.stopped is not None:
            reason = "stop"
        return self._take(), "tool_calls" if self._calls.count and reason == "stop" else reason

    def _read(self, text: str, finish: Finish | None = None) -> None:
        self._more.append(text)
        # Not joined for every token: a call may be long.
        if self._in == "tool" and finish is None:
            self._next_size -= len(text)
            if self._next_size > 0:
                return
        self._text += "".join(self._more)
        self._more.clear()
        while self.stopped is None:
            if not (self._read_call(finish) if self._in == "tool" else self._read_text(finish)):
                break

    def _read_text(self, finish: Finish | None) -> bool:
        """Tells text up to a marker and goes where that leads; False if there is none."""
        if self._begins_bare():
            return True
        search, targets = self._search()
        found = search.search(self._text)
        held = 0 if finish else search.held(self._text)
        end = found.start() if found else len(self._text) - held
        state = self._in
        text, self._text = self._text[:end], self._text[end:]
        self._plain(text)
        if self._in != state:
            return True
        if found is None or self.stopped is not None:
            return False
        if found[0] not in self._search()[1]:
            return True  # not a marker any more, after this text
        self._marker = found[0]
        if targets[self._marker] == "tool":
            self._origin, self._in, self._next_size = state, "tool", 0
        else:
            self._text = self._text[len(self._marker) :]
            self._go(targets[self._marker])
        return True

    def _begins_bare(self) -> bool:
        """Whether a call without any marker may begin the answer here."""
        rest = self._text.lstrip()
        if self._begun or self._in != "normal" or rest[:1] not in self._markup.bare:
            return False
        self._content(self._text[: len(self._text) - len(rest)])
        self._text, self._marker = rest, rest[0]
        self._origin, self._in, self._next_size = "normal", "tool", 0
        return True

    def _search(self) -> tuple[MarkerSearch, dict[str, str]]:
        key = (self._in, self._begun)
        if key not in self._searches:
            targets = self._markup.markers(*key)
            if self._called_in_thought and self._in == "normal":
                targets[self._markup.think_end] = "normal"
            self._searches[key] = (MarkerSearch(targets), targets)
        return self._searches[key]

    def _go(self, state: str) -> None:
        left, self._in = self._in, state
        if left == "normal" and state != "normal":
            self._content_ends()
        elif left == "reasoning":
            self._strip = True
        if state == "reasoning":
            self._reasoning_space = "\n" if self._reasoned else ""
            self._reasoning_strip = True

    def _plain(self, text: str) -> None:
        """Text of the state."""
        if self._in == "reasoning":
            self._reasoning(text)
        elif self._in == "header":
            self._outside(text)
        else:
            self._content(text)

    # Calls.

    def _read_call(self, finish: Finish | None) -> bool:
        """Finds out what the text from a marker of calls on is; False if there must be more."""
        if self._origin == "normal":
            end = self._code.quoted_until(self._text, finish is not None)
        else:
            end = self._thought_until()
        if end > 0:
            return self._give_back(end)
        found, scan = None, Scan(self._text, finish)
        try:
            if self._vain > READ_IN_VAIN:
                raise NotACall("too much was read in vain")
            # A call in a thought is told at the end, as the thought may go on.
            if not end:
                found = self._markup.reader.read(scan, self._tools)
        except More:
            end = -1
        except Exception as error:
            # Other errors may quote the answer.
            why = str(error) if isinstance(error, NotACall) else type(error).__name__
            log.info("no tool call: %s", why)
            self._vain += scan.reached + scan.vain
            return self._give_back(len(self._marker))
        if finish is None and (end < 0 or self._origin == "reasoning"):
            self._next_size = max(GROWTH_CHARS, len(self._text) // GROWTH)
            return False
        if found is None:
            return self._give_back(len(self._marker))
        self._vain += scan.vain
        self._text = self._text[found.end :]
        self._called(found)
        return True

    def _thought_until(self) -> int:
        """Where the thought ends that the call is in, if an answer comes after it; else 0."""
        end = self._markup.think_end if self._origin == "reasoning" else None
        found = re.search(rf"{re.escape(end)}\s*\S", self._text) if end else None
        return found.start() if found else 0

    def _give_back(self, size: int) -> bool:
        """So much of what was taken for a call is text where it stood."""
        text, self._text = self._text[:size], self._text[size:]
        self._in = self._origin
        if self._origin == "header":
            if text == RECIPIENT and not (text + self._text).startswith(FUNCTION):
                self._header += text
                return True
            self._in = "normal"
        self._plain(text)
        return True

    def _called(self, found: Found) -> None:
        if self._origin == "normal":
            self._content_ends()
            if self.stopped is not None:
                return
        self._in = self._origin
        if self._origin == "reasoning":
            self._in, self._called_in_thought = "normal", True
            self._searches.clear()
        self._tell(calls=self._calls.tell(found.calls))
        self._begun, self._ends_in_text = True, False
        if not self._said:
            self._strip, self._space = True, ""

    # Text.

    def _outside(self, text: str) -> None:
        """A header, which is dropped; or an answer without any, as under a grammar."""
        self._header += text
        start = self._header.lstrip()
        headed = any(word.startswith(start) or start.startswith(word) for word in HEADERS)
        if not (headed or self._begun or self._reasoned):
            self._in = "normal"
            self._text, self._header = self._header + self._text, ""

    def _reasoning(self, text: str) -> None:
        if self._reasoning_strip:
            text = text.lstrip()
            self._reasoning_strip = not text
        kept = text.rstrip()
        if kept:
            self._tell(reasoning=self._reasoning_space + kept)
            self._reasoned, self._reasoning_space = True, text[len(kept) :]
        else:
            self._reasoning_space += text

    def _content(self, text: str) -> None:
        if self._strip:
            text = text.lstrip(NEWLINES)
            self._strip = not text
        if not text:
            return
        self._begun = self._begun or not text.isspace()
        self._code.add(text)
        self._shown(self._stop.add(text))
        self.stopped = self._stop.stopped
        if self.stopped is not None:
            self._tell(text=self._space)
            self._space = ""

    def _content_ends(self) -> None:
        self._shown(self._stop.flush())

    def _shown(self, text: str) -> None:
        """Content that no stop string can cut any more. White space waits: where only calls come
        after it, it is layout."""
        text = self._space + text
        kept = text.rstrip() if self._markup.reader is not None else text
        self._space = text[len(kept) :]
        self._said = self._said or bool(kept)
        self._ends_in_text = self._ends_in_text or bool(kept)
        self._tell(text=kept)

    def _tell(self, text: str = "", reasoning: str = "", calls: tuple[CallPiece, ...] = ()) -> None:
        self._parts += Parts(text, reasoning, calls)

    def _take(self) -> Parts:
        parts, self._parts = self._parts, Parts()
        return parts
