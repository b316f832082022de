"""From token events to text: how an answer ends, and that the engine always hears of it."""

import threading
import time

import pytest

from server import generation
from server.errors import ApiError, engine_failed
from server.generation import ClientGone, Piece, Waiting, generate
from server.requests import Sampling
from server.tickets import Failed, Line, Prefilled, Ticket, Token

DEADLINE_S = 20


class Letters:
    """A TextOut of one letter a token. Stops at `stop`; holds `held` tokens back until the end."""

    def __init__(self, stop: str = "", held: str = "") -> None:
        self.stopped = False
        self._stop, self._held, self._back = stop, held, ""

    def add(self, token: int) -> str:
        letter = chr(token)
        if letter == self._stop:
            self.stopped = True
            return ""
        if letter == self._held:
            self._back += letter
            return ""
        back, self._back = self._back, ""
        return back + letter

    def finish(self) -> str:
        return self._back


class Broken(Letters):
    def add(self, token: int) -> str:
        raise RuntimeError("a detokenizer's bug")


class Case:
    """One request, its line, and what generate() yields for it."""

    def __init__(self, text=None, gone=lambda: False, timeout: float = DEADLINE_S) -> None:
        self.line = Line(1, 1)
        self.ticket = Ticket([1], 100, Sampling())
        self.line.admit(self.ticket)
        self.line.arrived.clear()
        self.out = generate(self.ticket, self.line, text or Letters(), gone, timeout)

    def say(self, text: str, finish: str | None = None) -> None:
        for i, letter in enumerate(text):
            last = i == len(text) - 1
            self.ticket.put(Token(ord(letter), finish if last else None))

    def pieces(self) -> list[Piece]:
        return [item for item in self.out if isinstance(item, Piece)]

    @property
    def cancelled(self) -> bool:
        return self.ticket.cancelled.is_set()


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_the_engines_end_is_the_answers_end_and_needs_no_cancel(finish):
    case = Case()
    case.say("abc", finish)
    assert case.pieces() == [Piece("a", 1), Piece("b", 2), Piece("c", 3, finish)]
    assert not case.cancelled


def test_held_back_text_comes_with_the_end():
    case = Case(Letters(held="c"))
    case.say("abcc", "length")
    assert case.pieces() == [Piece("a", 1), Piece("b", 2), Piece("cc", 4, "length")]


def test_held_back_text_comes_with_what_follows():
    case = Case(Letters(held="c"))
    case.say("acb", "stop")
    assert case.pieces() == [Piece("a", 1), Piece("cb", 3, "stop")]


def test_a_stop_string_ends_the_answer_and_cancels_the_rest():
    case = Case(Letters(stop="X"))
    case.say("abXcd")
    assert case.pieces() == [Piece("a", 1), Piece("b", 2), Piece("", 3, "stop")]
    assert case.cancelled and case.line.arrived.is_set()


def test_a_stop_string_in_the_last_token_is_a_stop_not_a_length():
    case = Case(Letters(stop="X"))
    case.say("aX", "length")
    assert case.pieces()[-1] == Piece("", 2, "stop")
    assert not case.cancelled


def test_an_answer_without_text_still_has_an_end():
    case = Case(Letters(held="c"))
    case.say("c", "stop")
    assert case.pieces() == [Piece("c", 1, "stop")]


def test_waiting_is_told_with_the_seconds_so_far(monkeypatch):
    monkeypatch.setattr(generation, "POLL_S", 0.01)
    case = Case()
    waits = [next(case.out) for _ in range(3)]
    assert all(isinstance(wait, Waiting) for wait in waits)
    assert 0 < waits[0].seconds <= waits[-1].seconds
    case.ticket.put(Prefilled(5, 10))
    assert isinstance(next(case.out), Waiting)
    case.say("a", "stop")
    assert case.pieces() == [Piece("a", 1, "stop")]


def test_too_slow_is_504_and_cancels(monkeypatch):
    monkeypatch.setattr(generation, "POLL_S", 0.01)
    case = Case(timeout=0.1)
    with pytest.raises(ApiError) as caught:
        case.pieces()
    assert (caught.value.status, caught.value.code) == (504, "request_timeout")
    assert case.cancelled


def test_too_slow_counts_from_acceptance_and_in_spite_of_tokens():
    case = Case(timeout=5)
    case.ticket.accepted -= 6
    case.say("abc")
    assert next(case.out) == Piece("a", 1)
    with pytest.raises(ApiError) as caught:
        next(case.out)
    assert caught.value.status == 504
    assert case.cancelled


def test_an_answer_that_is_complete_at_the_deadline_counts():
    case = Case(timeout=5)
    case.ticket.accepted -= 6
    case.say("a", "stop")
    assert case.pieces() == [Piece("a", 1, "stop")]


def test_a_client_that_leaves_in_silence_cancels(monkeypatch):
    monkeypatch.setattr(generation, "POLL_S", 0.01)
    case = Case(gone=lambda: True)
    with pytest.raises(ClientGone):
        case.pieces()
    assert case.cancelled


def test_a_client_that_leaves_while_tokens_pour_in_cancels(monkeypatch):
    """It was only looked for in silence: an answer that was not streamed ran to its end unread."""
    monkeypatch.setattr(generation, "POLL_S", 0.05)
    case = Case(gone=lambda: True)
    enough = threading.Event()

    def pour() -> None:
        while not enough.is_set():
            case.say("a")
            time.sleep(0.001)

    threading.Thread(target=pour, daemon=True).start()
    try:
        with pytest.raises(ClientGone):
            for count, _ in enumerate(case.out):
                assert count < 20_000, "the client's leaving was not seen"
    finally:
        enough.set()
    assert case.cancelled


def test_the_client_is_not_looked_for_at_every_token():
    looks = []
    case = Case(gone=lambda: looks.append(1) or False)
    case.say("a" * 500, "stop")
    assert len(case.pieces()) == 500
    assert len(looks) < 100


def test_a_failure_of_the_engine_is_raised_and_cancels():
    case = Case()
    case.say("ab")
    case.ticket.put(Failed(engine_failed("Sampling failed")))
    assert next(case.out) == Piece("a", 1)
    assert next(case.out) == Piece("b", 2)
    with pytest.raises(ApiError) as caught:
        next(case.out)
    assert caught.value.code == "engine_error"
    assert case.cancelled


def test_a_failure_of_the_detokenizer_is_raised_and_cancels():
    case = Case(Broken())
    case.say("ab")
    with pytest.raises(RuntimeError):
        case.pieces()
    assert case.cancelled


def test_closing_early_cancels():
    case = Case()
    case.say("ab")
    assert next(case.out) == Piece("a", 1)
    case.out.close()
    assert case.cancelled and case.line.arrived.is_set()


def test_closing_after_the_end_cancels_nothing():
    case = Case()
    case.say("a", "stop")
    case.pieces()
    case.out.close()
    assert not case.cancelled
