"""A chat answer's tokens to content, reasoning and tool calls, as the model's family marks them.

Called on rank 0's HTTP threads, one ChatText for each choice. What it gives does not depend on
where tokens end: every character passes the same two machines in turn, mlx-lm's for the family's
markers, then one for the request's stop strings.

- Stop strings act on the content that the client sees, not on reasoning or calls.
- Newlines that only set reasoning, content and calls apart are left out.
- Reasoning comes before the content: where its marker is a single token, the same word later on
  is content, as in an answer that speaks about <think>.
- Text that looks like a call and is none (cut, malformed) comes back as it was written, to where
  it stood. No exception comes of what a model writes.
"""

from collections.abc import Sequence
from typing import Any

from server.protocol.pieces import CallPiece, Parts
from server.text.call_text import CallText
from server.text.markup import initial_state, markup_of
from server.text.stop_strings import StopStrings, StopWords

NEWLINES = "\r\n"
HEADERS = ("<|", "to=", "assistant")  # how the header of a message may begin


class ChatText:
    """A pieces.TextOut. See the module's docstring.

    tokenizer: an mlx_lm TokenizerWrapper. hidden: token ids that are no text, as those that end
    the answer. prompt_ids tell whether the prompt has opened the thinking. tools: OpenAI function
    tools. parse_calls: else calls are plain text. parallel: else only the first call counts.
    live: see CallText.
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
        live: bool = False,
    ) -> None:
        from mlx_lm.generate import make_text_state_machine

        self.stopped: str | None = None
        self.reasoning_tokens = 0
        markup = markup_of(tokenizer)
        self._markup = markup if parse_calls else markup.without_calls()
        self._detokenizer = tokenizer.detokenizer
        self._hidden = hidden
        self._machine = make_text_state_machine(self._markup)
        self._in = self._origin = initial_state(tokenizer, self._markup, prompt_ids)
        self._state = self._machine.make_state(self._in)
        self._stop = StopStrings(stop)
        self._calls = CallText(self._markup, list(tools), parallel, live)
        self._marker = ""  # what opened the call that is being read
        self._header = ""  # text outside of any message
        self._space = ""  # white space that is content only if content follows
        self._strip = self._markup.has_thinking  # newlines that come next are layout
        self._begun = False  # there is content, or a call
        self._reasoned = False
        self._reasoning_space = ""  # as _space; it is left out at both ends
        self._reasoning_strip = True
        self._parts = Parts()

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
            self._read(self._detokenizer.last_segment)
        if self.stopped is None:
            # A beginning of a marker that does not go on is text.
            self._state, rest, _ = self._machine.flush(self._state)
            self._segment(self._in, rest)
            if self._in == "tool":
                self._end_call(whole=not self._markup.tool_call_end)
            self._content_ends()
            if not self._calls.count:
                self._tell(text=self._space)
        if self.stopped is not None:
            reason = "stop"
        return self._take(), "tool_calls" if self._calls.count and reason == "stop" else reason

    def _read(self, text: str) -> None:
        state, segments = self._machine.split(self._state, text)
        if len(segments) == 1 and self._in != "header":
            self._state = state
            self._segment(*segments[0])
            return
        # A marker ends in this text, or may. Character by character, as what is found may put the
        # machine into another state, and so that nothing depends on how the text was cut.
        for char in text:
            self._state, segments = self._machine.split(self._state, char)
            for name, part in segments:
                self._segment(name, part)

    def _segment(self, name: str, text: str) -> None:
        """Some text of a state, perhaps of another than the last."""
        if self.stopped is not None:
            return
        if name != self._in:
            self._enter(name)
        # Entering may have refused the new state.
        if self._in == "tool":
            self._tell(calls=self._calls.add(text))
        elif self._in == "reasoning":
            self._reasoning(text)
        elif self._in == "header":
            self._outside(text)
        else:
            self._content(text)

    def _enter(self, name: str) -> None:
        left, self._in = self._in, name
        if left == "tool":
            self._end_call(whole=True)
        elif left == "normal":
            if name == "reasoning" and self._begun and not self._markup.reopens:
                self._go_to("normal")
                self._content(self._markup.think_start or "")
                return
            self._content_ends()
        elif left == "reasoning":
            self._strip = True
        if self._in == "tool":
            self._begin_call(left, self._markup.tool_call_start or "")
        elif self._in == "reasoning" and left != "tool":
            self._reasoning_space = "\n" if self._reasoned else ""
            self._reasoning_strip = True

    def _go_to(self, name: str) -> None:
        held, self._in = self._state[3], name
        self._state, segments = self._machine.split(self._machine.make_state(name), held)
        for inner, text in segments:
            self._segment(inner, text)

    def _begin_call(self, origin: str, marker: str) -> None:
        self._origin, self._marker = origin, marker
        self._calls.open()

    def _end_call(self, whole: bool) -> None:
        pieces = self._calls.close(whole)
        before, marker, inner = self._calls.text.rpartition(self._marker or "\0")
        if pieces is None and marker:
            # A word about calls, then a call.
            written, self._calls.text = self._calls.text, inner
            pieces = self._calls.close(whole)
            self._calls.text = written
            if pieces is not None:
                self._give_back(before)
                self._content_ends()
                if self._in == "reasoning":
                    self._go_to("normal")  # as after any call, in mlx-lm
        if pieces is None:
            self._give_back(self._calls.text + (self._markup.tool_call_end or "") * whole)
            return
        self._tell(calls=pieces)
        self._begun = self._strip = True
        self._space = ""
        self._content(self._calls.after.strip())

    def _give_back(self, text: str) -> None:
        """What was taken for a call is text where it stood."""
        text = self._marker + text
        if self._origin == "reasoning":
            # A thought about calls; the thinking may have ended after it.
            text, ended, rest = text.partition(self._markup.think_end or "\0")
            self._reasoning(text)
            if not ended:
                self._go_to("reasoning")
                return
            self._reasoning_space, self._strip = "", True
            text = rest
        self._content(text)

    def _outside(self, text: str) -> None:
        """A header, which is dropped; or an answer without any, as under a grammar."""
        self._header += text
        start = self._header.lstrip()
        headed = any(word.startswith(start) or start.startswith(word) for word in HEADERS)
        if not (headed or self._begun or self._reasoned):
            self._in = "normal"
            self._content(self._header)
            self._go_to("normal")

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
        if not self._begun and self._markup.bare_json and text.lstrip().startswith("{"):
            self._begun = True
            self._begin_call("normal", "")
            self._tell(calls=self._calls.add(text))
            self._go_to("tool")
            return
        self._begun = self._begun or not text.isspace()
        self._shown(self._stop.add(text))
        self.stopped = self._stop.stopped
        if self.stopped is not None:
            self._tell(text=self._space)
            self._space = ""

    def _content_ends(self) -> None:
        self._shown(self._stop.flush())

    def _shown(self, text: str) -> None:
        """Content that no stop string can cut any more. White space waits, as before a call it is
        layout."""
        text = self._space + text
        kept = text.rstrip() if self._markup.has_tool_calling else text
        self._space = text[len(kept) :]
        self._tell(text=kept)

    def _tell(self, text: str = "", reasoning: str = "", calls: tuple[CallPiece, ...] = ()) -> None:
        self._parts += Parts(text, reasoning, calls)

    def _take(self) -> Parts:
        parts, self._parts = self._parts, Parts()
        return parts
