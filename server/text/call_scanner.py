"""Follows a tool call written as JSON, {"name": ..., "arguments": {...}}, while it arrives.

Pure text work on rank 0's HTTP threads. It finds where the name and the arguments are and passes
the arguments' own text on; whether that text is valid JSON is left to who made it (a grammar) or
to who checks the whole call afterwards (the model family's parser).
"""

import json

ARGUMENTS = ("arguments", "parameters")
SPACE = " \t\r\n"


class CallScanner:
    """One call. failed: it is not of this form; done: its closing brace was read."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.failed = False
        self.done = False
        self._arguments: list[str] = []  # text of the arguments that was not taken yet
        self._seen: set[str] = set()
        self._expect = "{"
        self._key = ""
        self._value = ""  # text of the key or value that is being read, arguments excepted
        self._depth = 0  # of containers open in the value that is being read
        self._string = self._escape = False

    def feed(self, char: str) -> None:
        """Reads one more character."""
        if self.failed:
            return
        if self._expect == "in value":
            self._in_value(char)
        elif char not in SPACE:
            self._between(char)

    def take(self) -> str:
        """Text of the arguments since the last time; none before the name is known."""
        if self.name is None:
            return ""
        text = "".join(self._arguments)
        self._arguments.clear()
        return text

    def _between(self, char: str) -> None:
        """A character that is neither in a key nor in a value."""
        expect = self._expect
        if expect == "{" and char == "{":
            self._expect = "key or }"
        elif char == '"' and expect in ("key or }", "key"):
            self._key, self._value, self._expect, self._string = "", char, "in value", True
        elif char == "}" and expect in ("key or }", ", or }"):
            self._expect, self.done = "nothing", True
        elif char == "," and expect == ", or }":
            self._expect = "key"
        elif char == ":" and expect == ":":
            self._expect = "value"
        elif expect == "value" and not (self._is_arguments() and char != "{"):
            self._expect = "in value"
            self._begin_value(char)
        else:
            self.failed = True

    def _begin_value(self, char: str) -> None:
        self._value = ""
        self._keep(char)
        self._string = char == '"'
        self._depth = 1 if char in "{[" else 0

    def _in_value(self, char: str) -> None:
        if self._string:
            self._keep(char)
            if self._escape:
                self._escape = False
            elif char == "\\":
                self._escape = True
            elif char == '"':
                self._string = False
                if not self._depth:
                    self._end_value()
        elif not self._depth and char in ",}" + SPACE:  # the end of a number, true, false or null
            self._end_value()
            self.feed(char)
        else:
            self._keep(char)
            self._string = char == '"'
            self._depth += (char in "{[") - (char in "}]")
            if not self._depth and char in "}]":
                self._end_value()

    def _keep(self, char: str) -> None:
        if self._is_arguments():
            self._arguments.append(char)
        else:
            self._value += char

    def _is_arguments(self) -> bool:
        return self._key in ARGUMENTS

    def _end_value(self) -> None:
        if not self._key:
            self._key = self._text() or ""
            kind = "arguments" if self._is_arguments() else self._key
            # An empty key would look like none; one twice leaves open which counts.
            self.failed |= not kind or kind in self._seen
            self._seen.add(kind)
            self._expect = ":"
            return
        if self._key == "name":
            self.name = self._text()
            self.failed |= not self.name
        self._key, self._expect = "", ", or }"

    def _text(self) -> str | None:
        """The string that was read, or None if it was none."""
        try:
            value = json.loads(self._value)
        except ValueError:
            return None
        return value if isinstance(value, str) else None
