"""From the text of tool calls to pieces of calls, for one choice of an answer.

Called on rank 0's HTTP threads. The parsers are the model family's own (mlx-lm's, or those of
call_parsers.py) and read what a model wrote, so whatever they raise only means: this is no call.
"""

import json
import logging
import secrets
import string
import uuid
from typing import Any

from server.protocol.pieces import CallPiece
from server.text.call_scanner import CallScanner
from server.text.markup import Markup

PIECE_CHARS = 128  # of arguments, where they are only known all at once


class CallText:
    """Calls between markers, one section after the other; a section may hold several.

    live: arguments go out as they arrive, where a call is plain JSON. A call that is then cut or
    malformed has been told already and stands; otherwise it is no call, and its text is given back.
    """

    def __init__(
        self, markup: Markup, tools: list[dict[str, Any]], parallel: bool, live: bool
    ) -> None:
        self.count = 0  # calls told so far
        self.text = ""  # of the section so far, without its markers
        self.after = ""  # what of it comes after a call that was told live
        self._markup = markup
        self._tools = [_plain(tool) for tool in tools]
        self._limit = None if parallel else 1
        self._live = live and markup.plain_json
        self._ids: set[str] = set()
        self._scanner: CallScanner | None = None
        self._told = False  # a piece of this section's call has gone out

    def open(self) -> None:
        """A section begins."""
        self.text, self.after, self._told = "", "", False
        self._scanner = CallScanner() if self._live and not self._full() else None

    def add(self, text: str) -> tuple[CallPiece, ...]:
        """More text of the section."""
        self.text += text
        scanner = self._scanner
        if scanner is None:
            return ()
        arguments = ""
        for char in text:
            if scanner.done:
                self.after += char
            else:
                scanner.feed(char)
                arguments += "" if scanner.failed else scanner.take()
        # Not before name and arguments: until then it may turn out to be no call.
        if not arguments:
            return ()
        opening = () if self._told else (self._open_call(scanner.name, None),)
        self._told = True
        return (*opening, CallPiece(self.count - 1, arguments=arguments))

    def close(self, whole: bool) -> tuple[CallPiece, ...] | None:
        """The section ends. whole: with its end marker, or it has none. None: it is no call."""
        if self._told:
            return ()
        self.after = ""
        if not whole and not self._markup.strict:
            return None
        try:
            calls = self._parse()
        except Exception as error:
            logging.info("no tool call: %s", type(error).__name__)
            return None
        pieces: list[CallPiece] = []
        for name, arguments, given in calls:
            if self._full():
                break
            pieces.append(self._open_call(name, given))
            pieces += [
                CallPiece(self.count - 1, arguments=arguments[at : at + PIECE_CHARS])
                for at in range(0, len(arguments), PIECE_CHARS)
            ]
        return tuple(pieces)

    def _parse(self) -> list[tuple[str, str, str | None]]:
        """Name, arguments and the model's own id of each call. Raises whatever a parser raises."""
        if self._markup.parser is None:
            raise ValueError("no parser")
        parsed = self._markup.parser(self.text.strip(), self._tools)
        calls = [self._checked(call) for call in (parsed if isinstance(parsed, list) else [parsed])]
        if not calls:
            raise ValueError("no call")
        if self._markup.plain_json:
            # The model's own spelling, as it is when it goes out live.
            scanner = CallScanner()
            for char in self.text:
                scanner.feed(char)
            own = scanner.take()
            if scanner.done and not scanner.failed and own:
                return [(calls[0][0], own, calls[0][2])]
        return calls

    def _checked(self, call: Any) -> tuple[str, str, str | None]:
        name, arguments = call["name"], call.get("arguments")
        if isinstance(arguments, str) and arguments.strip():
            arguments = json.loads(arguments)
        arguments = {} if arguments in (None, "") else arguments
        if not isinstance(name, str) or not name or not isinstance(arguments, dict):
            raise ValueError("a call without a name or without an object of arguments")
        known = {tool["function"].get("name") for tool in self._tools}
        if set(arguments) == {"raw"} and name not in known:
            # What mlx-lm's parser for GLM makes of any text that is no call.
            raise ValueError("a call of nothing")
        # Not NaN: it is no JSON.
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        given = call.get("id")
        return name, text, given if isinstance(given, str) and given else None

    def _open_call(self, name: str | None, given: str | None) -> CallPiece:
        # Kimi's templates want its own ids back, so a model's id is kept.
        number = given if given and given not in self._ids else self._new_id()
        self._ids.add(number)
        self.count += 1
        return CallPiece(self.count - 1, number, name)

    def _new_id(self) -> str:
        if self._markup.short_ids:
            return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
        return new_call_id()

    def _full(self) -> bool:
        return self._limit is not None and self.count >= self._limit


def new_call_id() -> str:
    """An id as OpenAI's look."""
    return "call_" + uuid.uuid4().hex


def _plain(tool: dict[str, Any]) -> dict[str, Any]:
    """The tool as parsers read it: all there, and each property's schema an object.

    A schema may be true, and parameters may be absent; mlx-lm's parsers fail over either.
    """
    function = dict(tool.get("function") or {})
    parameters = dict(function.get("parameters") or {})
    properties = parameters.get("properties") or {}
    parameters["properties"] = {
        name: schema if isinstance(schema, dict) else {} for name, schema in properties.items()
    }
    return {**tool, "function": {**function, "parameters": parameters}}
