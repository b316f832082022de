"""The two sides that the front end talks to, without a model: an engine that repeats its prompt,
and a tokenizer whose tokens are characters."""

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

from server.observe.status import Status
from server.observe.views import Load
from server.protocol.client import Client
from server.protocol.errors import bad_request, wrong
from server.protocol.events import Embedded, Event, Failed, Score, Scored, Token
from server.protocol.pieces import Parts, TokenLogprob
from server.protocol.requests import NOWHERE, ChatRequest, Common, CompletionRequest, Places
from server.scheduler.queue import Line, Ticket
from server.text.prompts import check_length

CONTEXT = 100


def repeat(ticket: Ticket) -> Iterator[Event]:
    """The prompt as the answer, up to max_tokens. Log-probabilities count down from -1."""
    if ticket.score_prompt:
        yield Scored(tuple(scored(ticket, n, token) for n, token in enumerate(ticket.prompt))[1:])
    for n, token in enumerate(ticket.prompt, 1):
        last = n == len(ticket.prompt)
        finish = "stop" if last else "length" if n == ticket.max_tokens else None
        score = None if ticket.common.logprobs is None else scored(ticket, n, token)
        yield Token(token, finish, score)
        if n == ticket.max_tokens:
            return


def embed(ticket: Ticket) -> Iterator[Event]:
    """Of each input four numbers: its length, its first token, 3, and its place; the last input's
    first."""
    for place in reversed(range(len(ticket.inputs))):
        ids = ticket.inputs[place]
        yield Embedded(np.array([len(ids), ids[0], 3, place], dtype=np.float32))


def scored(ticket: Ticket, n: int, token: int) -> Score:
    """The nth token at -n, and what asked for beside it: its successors, the last impossible."""
    asked = ticket.common.logprobs
    values = [-n - 0.5, -float("inf")][-asked:] if asked else []
    return Score(token, -float(n), tuple((token + i, v) for i, v in enumerate(values, 1)))


class StubEngine:
    """Takes tickets from the line and answers by script, one event a turn.

    While `go` is clear, nothing moves but cancels. dropped: uids that were cancelled.
    """

    def __init__(
        self, line: Line, status: Status, script: Callable[[Ticket], Iterator[Event]] = repeat
    ) -> None:
        self.go = threading.Event()
        self.go.set()
        self.script = script
        self.seen: list[Ticket] = []
        self.dropped: list[int] = []
        self.slot_free_s = Load().slot_free_s
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
        left: dict[Ticket, int] = {}  # inputs
        while not self._end.is_set():
            self._line.arrived.wait(0.005)
            self._line.arrived.clear()
            for first in self._line.take():
                self.seen += [first, *first.followers]
                waiting += [first, *first.followers]
            for ticket in [t for t in [*waiting, *running] if t.cancelled.is_set()]:
                self.dropped.append(ticket.uid)
                waiting = [t for t in waiting if t is not ticket]
                running.pop(ticket, None)
                self._line.release(ticket)
            while waiting and len(running) < self._line.max_running:
                ticket = waiting.pop(0)
                self._status.record.started(ticket, time.monotonic())
                running[ticket] = (embed if ticket.inputs else self.script)(ticket)
                left[ticket] = len(ticket.inputs)
            self._status.publish(Load(len(running), len(waiting), slot_free_s=self.slot_free_s))
            if not self.go.is_set():
                continue
            for ticket, events in list(running.items()):
                event = next(events, None)
                if event is None:
                    continue  # a script that has gone silent
                if isinstance(event, Token):
                    self._status.record.token(ticket, time.monotonic())
                if isinstance(event, Embedded):
                    left[ticket] -= 1
                    ticket.input(left[ticket]).put(event)
                else:
                    ticket.put(event)
                over = isinstance(event, Embedded) and not left[ticket]
                if over or isinstance(event, Failed) or getattr(event, "finish", None):
                    del running[ticket]
                    self._line.release(ticket)


class LetterText:
    """A TextOut for StubPrompts: stop strings of one letter."""

    reasoning_tokens = 0

    def __init__(self, stop: tuple[str, ...]) -> None:
        self.stopped: str | None = None
        self._stop = stop

    def add(self, token: int) -> Parts:
        letter = chr(token)
        if letter == "\x18":
            raise RuntimeError("a detokenizer's bug")
        if letter in self._stop:
            self.stopped = letter
            return Parts()
        return Parts(text=letter)

    def finish(self, reason: str) -> tuple[Parts, str]:
        return Parts(), reason


class StubPrompts:
    """One token a character. A conversation is its contents, one after the other. texts: what was
    tokenized."""

    vocab = 0x110000
    token_bytes = 4

    def __init__(self) -> None:
        self.texts: list[str] = []

    def from_chat(self, request: ChatRequest, open_turn: bool = True, **bounds) -> list[int]:
        text = "".join(message["content"] for message in request.messages)
        if text == "bug":
            raise RuntimeError("a bug with a secret")
        if text == "refuse":
            raise bad_request("'messages' was refused by the model's chat template", "messages")
        return self.from_text(text, **bounds)

    def places(self, request: ChatRequest, prompt: list[int], client: Client) -> Places:
        return NOWHERE

    def suffix(self, text: str, *, context: int, client: Client) -> None:
        raise wrong("suffix", text, "empty or absent")

    def from_text(
        self, text: str, *, context: int, client: Client, param: str = "prompt"
    ) -> list[int]:
        client.look()
        check_length(len(text.encode()), self.token_bytes, context, param)
        self.texts.append(text)
        return [ord(letter) for letter in text]

    def encode(self, text: str, special_tokens: bool, **bounds) -> list[int]:
        return self.from_text(text, **bounds)

    def chat_out(self, request: ChatRequest, constraint: None, prompt: list[int]) -> LetterText:
        return LetterText(request.common.stop)

    def plain_out(self, common: Common) -> LetterText:
        return LetterText(common.stop)

    def chat_constraint(self, request: ChatRequest, prompt: list[int], client: Client) -> None:
        return None

    def plain_constraint(self, request: CompletionRequest, client: Client) -> None:
        return None

    def describe(self, score: Score) -> TokenLogprob:
        text = chr(score.id)
        top = tuple(self.describe(Score(token, value)) for token, value in score.top)
        return TokenLogprob(score.id, text, tuple(text.encode()), score.logprob, top)

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(token) for token in ids)

    def token_names(self, ids: list[int]) -> list[str]:
        return [chr(token) for token in ids]
