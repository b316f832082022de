"""The two sides that the front end talks to, without a model: an engine that repeats its prompt,
and a tokenizer whose tokens are characters."""

import threading
from collections.abc import Callable, Iterator

from server.errors import bad_request
from server.requests import ChatRequest
from server.status import Status
from server.tickets import Event, Line, Ticket, Token

CONTEXT = 100


def repeat(ticket: Ticket) -> Iterator[Event]:
    """The prompt as the answer, up to max_tokens."""
    for n, token in enumerate(ticket.prompt, 1):
        last = n == len(ticket.prompt)
        yield Token(token, "stop" if last else "length" if n == ticket.max_tokens else None)
        if n == ticket.max_tokens:
            return


class StubEngine:
    """Takes tickets from the line and answers by script, one event a turn.

    While `go` is clear, nothing moves but cancels. dropped: uids that were cancelled.
    """

    def __init__(
        self,
        line: Line,
        status: Status,
        script: Callable[[Ticket], Iterator[Event]] = repeat,
    ) -> None:
        self.go = threading.Event()
        self.go.set()
        self.script = script
        self.seen: list[Ticket] = []
        self.dropped: list[int] = []
        self._line, self._status = line, status
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        waiting: list[Ticket] = []
        running: dict[Ticket, Iterator[Event]] = {}
        while not self._end.is_set():
            self._line.arrived.wait(0.005)
            self._line.arrived.clear()
            new = self._line.take()
            self.seen += new
            waiting += new
            for ticket in [t for t in [*waiting, *running] if t.cancelled.is_set()]:
                self.dropped.append(ticket.uid)
                waiting = [t for t in waiting if t is not ticket]
                running.pop(ticket, None)
                self._line.release(ticket)
            while waiting and len(running) < self._line.max_running:
                ticket = waiting.pop(0)
                running[ticket] = self.script(ticket)
            self._status.running = len(running)
            self._status.waiting = len(waiting)
            if not self.go.is_set():
                continue
            for ticket, events in list(running.items()):
                event = next(events, None)
                if event is None:
                    continue  # a script that has gone silent
                ticket.put(event)
                if isinstance(event, Token) and event.finish:
                    del running[ticket]
                    self._line.release(ticket)


class LetterText:
    """A TextOut for StubPrompts: stop strings of one letter."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self.stopped = False
        self._stop = stop

    def add(self, token: int) -> str:
        if chr(token) == "\x18":
            raise RuntimeError("a detokenizer's bug")
        self.stopped = chr(token) in self._stop
        return "" if self.stopped else chr(token)

    def finish(self) -> str:
        return ""


class StubPrompts:
    """One token a character. A conversation is its contents, one after the other."""

    vocab = 0x110000

    def from_chat(self, request: ChatRequest) -> list[int]:
        text = "".join(message["content"] for message in request.messages)
        if text == "bug":
            raise RuntimeError("a bug with a secret")
        if text == "refuse":
            raise bad_request("'messages' was refused by the model's chat template", "messages")
        return [ord(letter) for letter in text]

    def from_text(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def text_out(
        self, stop: tuple[str, ...], end_tokens_are_text: bool, continues: bool
    ) -> LetterText:
        return LetterText(stop)
