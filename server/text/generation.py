"""From token events to pieces of an answer: stop strings, log-probabilities, usage.

Runs on the HTTP thread of the request, on rank 0.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from server.protocol.errors import ApiError
from server.protocol.events import Prefilled, Score, Scored, Token
from server.protocol.pieces import Parts, Piece, Progress, TextOut, TokenLogprob, Usage
from server.scheduler.queue import Ticket
from server.text.following import Following


@dataclass(frozen=True)
class Waiting:
    """Nothing to send yet. seconds: since the request was accepted."""

    seconds: float


@dataclass
class Choice:
    """One choice on its way out. echo: the prompt's own text, if it is part of the answer."""

    ticket: Ticket
    text: TextOut
    echo: str | None = None
    pending: list[TokenLogprob] = field(default_factory=list)  # of tokens with no text yet
    ahead: int = 0  # bytes by which the tokens told so far exceed their text
    begun: bool = False
    tokens: int = 0  # that it has got
    finish: str | None = None  # the finish reason, once there is one

    @property
    def finished(self) -> bool:
        return self.finish is not None

    def take_pending(self, parts: Parts) -> tuple[TokenLogprob, ...]:
        """What goes out with parts."""
        taken, self.pending = tuple(self.pending), []
        self.ahead += sum(len(token.bytes) for token in taken) - _size(parts)
        return taken

    def drop_stop_string(self, parts: Parts) -> None:
        """Leaves the tokens that parts, the last before a stop string, are made of."""
        missing, kept = _size(parts) - self.ahead, []
        for token in self.pending:
            if missing <= 0:
                break
            kept.append(token)
            missing -= len(token.bytes)
        self.pending = kept


def _size(parts: Parts) -> int:
    return len((parts.reasoning + parts.text).encode())


class Generation:
    """An admitted request's answer, as an iterator of Piece and Waiting.

    choices by index. following: their tickets; what it raises, the iteration does. describe turns
    a Score into a TokenLogprob.
    """

    def __init__(
        self,
        choices: list[Choice],
        following: Following,
        describe: Callable[[Score], TokenLogprob],
    ) -> None:
        self._choices = choices
        self._following = following
        self._describe = describe
        self._accepted = choices[0].ticket.accepted
        self._prefilled = 0  # tokens of the first prompt
        self._prompt_logprobs: dict[int, tuple[TokenLogprob, ...]] = {}  # by id of the prompt
        self._drafts_right = self._drafts_wrong = 0

    def __iter__(self) -> Iterator[Piece | Waiting]:
        with contextlib.closing(self._following.events()) as events:
            for index, event in events:
                pieces = self._take(index, event)
                yield from pieces
                if not pieces:
                    yield Waiting(time.monotonic() - self._accepted)

    def answered(self) -> None:
        """The last byte is sent, or there is nobody left to send it to."""
        self._following.answered()

    def finish_reasons(self) -> list[str | None]:
        """Of each choice; None while it has none."""
        return [choice.finish for choice in self._choices]

    def tickets(self) -> list[Ticket]:
        """The ticket of each choice."""
        return [choice.ticket for choice in self._choices]

    def rows(self) -> list[int]:
        """Tokens in the KV cache of each choice that the ranks hold."""
        held = [choice for choice in self._choices if choice.ticket.started and not choice.finished]
        return [len(choice.ticket.prompt) + choice.tokens for choice in held]

    def stop(self, error: ApiError) -> None:
        """Ends it, from whichever thread: the ranks drop it at once, also while the client does not
        read, and its own thread tells the client."""
        self._following.stop(error)

    def tokens(self) -> list[int]:
        """Those that each choice has got."""
        return [choice.tokens for choice in self._choices]

    def progress(self) -> Progress:
        """How far the first prompt is."""
        ticket, now = self._choices[0].ticket, time.monotonic()
        total, cached = len(ticket.prompt), ticket.cached
        processed = max(cached, self._prefilled)
        seconds = now - ticket.started if ticket.started else 0.0
        computed = processed - cached
        left = seconds * (total - processed) / computed if computed else None
        return Progress(total, cached, processed, self._following.place(ticket), seconds, left)

    def usage(self) -> Usage:
        """Tokens so far; the prompt of several choices counts once."""
        prompts: dict[int, list[Ticket]] = {}
        for choice in self._choices:
            prompts.setdefault(id(choice.ticket.prompt), []).append(choice.ticket)
        return Usage(
            prompt=sum(len(tickets[0].prompt) for tickets in prompts.values()),
            completion=sum(self.tokens()),
            cached=sum(max(t.cached for t in tickets) for tickets in prompts.values()),
            reasoning=sum(choice.text.reasoning_tokens for choice in self._choices),
            drafts_right=self._drafts_right,
            drafts_wrong=self._drafts_wrong,
        )

    def _take(self, index: int, event) -> list[Piece]:
        choice = self._choices[index]
        if isinstance(event, Prefilled) and choice.ticket.prompt is self._choices[0].ticket.prompt:
            self._prefilled = event.done
        if isinstance(event, Scored):
            scores = tuple(self._describe(score) for score in event.scores)
            self._prompt_logprobs[id(choice.ticket.prompt)] = scores
        if not isinstance(event, Token) or choice.finished:
            return []
        pieces = []
        if not choice.begun:
            choice.begun = True
            if choice.echo is not None:
                pieces.append(self._echo(index, choice))
        piece = self._token(index, choice, event)
        if piece is not None:
            pieces.append(piece)
        return pieces

    def _token(self, index: int, choice: Choice, event: Token) -> Piece | None:
        choice.tokens += 1
        self._drafts_right += event.drafted
        self._drafts_wrong += event.wrong
        parts, finish = choice.text.add(event.id), None
        if event.score is not None and event.finish != "stop":
            choice.pending.append(self._describe(event.score))
        if choice.text.stopped is not None:
            finish = "stop"
            choice.drop_stop_string(parts)
            if event.finish is None:
                self._following.cancel(choice.ticket)
        elif event.finish is not None:
            rest, finish = choice.text.finish(event.finish)
            parts += rest
        if finish is None and not parts:
            return None
        choice.finish = finish
        if finish is not None:
            self._following.finished(choice.ticket)
        return Piece(index, parts, choice.take_pending(parts), finish, choice.text.stopped)

    def _echo(self, index: int, choice: Choice) -> Piece:
        """The prompt as the first piece of a choice, with its log-probabilities if asked for."""
        prompt = choice.ticket.prompt
        logprobs: tuple[TokenLogprob, ...] = ()
        if choice.ticket.common.logprobs is not None:
            first = self._describe(Score(prompt[0], None))
            logprobs = (first, *self._prompt_logprobs.get(id(prompt), ()))
        return Piece(index, Parts(text=choice.echo or ""), logprobs)
