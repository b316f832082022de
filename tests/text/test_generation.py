"""From token events to text: how an answer ends, and that the engine always hears of it."""

import math
import threading
import time

import pytest

from server.protocol.client import ClientGone
from server.protocol.errors import ApiError, engine_failed
from server.protocol.events import Failed, Prefilled, Score, Scored, Token
from server.protocol.pieces import Parts, Piece, TokenLogprob, Usage
from server.protocol.requests import Common
from server.scheduler.queue import Line, Ticket
from server.text import following
from server.text.following import Following
from server.text.generation import Choice, Generation, Waiting

DEADLINE_S = 20


class Letters:
    """A TextOut of one letter a token. Stops at `stop`; holds `held` tokens back until the end."""

    def __init__(self, stop: str = "", held: str = "", reason: str | None = None) -> None:
        self.stopped: str | None = None
        self.reasoning_tokens = 0
        self._stop, self._held, self._back, self._reason = stop, held, "", reason

    def add(self, token: int) -> Parts:
        letter = chr(token)
        if letter == self._stop:
            self.stopped = letter
            return Parts()
        if letter == self._held:
            self._back += letter
            return Parts()
        back, self._back = self._back, ""
        return Parts(text=back + letter)

    def finish(self, reason: str) -> tuple[Parts, str]:
        return Parts(text=self._back), self._reason or reason


class Broken(Letters):
    def add(self, token: int) -> Parts:
        raise RuntimeError("a detokenizer's bug")


def describe(score: Score) -> TokenLogprob:
    text = chr(score.id)
    return TokenLogprob(score.id, text, tuple(text.encode()), score.logprob)


class Case:
    """One request, its line, and what its Generation yields."""

    def __init__(
        self,
        *texts,
        gone=lambda: False,
        timeout: float = DEADLINE_S,
        common: Common | None = None,
        prompts=([1],),
        echo: str | None = None,
        age: float = 0.0,
        total: float = math.inf,
    ) -> None:
        self.line = Line(10, 1)
        self.tickets: list[Ticket] = []
        firsts: list[Ticket] = []
        texts = texts or (Letters(),)
        each = len(texts) // len(prompts)
        for n in range(len(texts)):
            events = self.tickets[0].events if n else None
            one = Ticket(prompts[n // each], 100, common or Common(), choice=n, events=events)
            self.tickets.append(one)
            (firsts if n % each == 0 else firsts[-1].followers).append(one)
        self.ticket = self.tickets[0]
        self.ticket.accepted -= age
        self.line.admit(firsts)
        self.line.arrived.clear()
        choices = [Choice(one, text, echo) for one, text in zip(self.tickets, texts, strict=True)]
        end = self.ticket.accepted + total
        follows = Following(self.tickets, self.line, gone, timeout, total=total, end=end)
        self.generation = Generation(choices, follows, describe)
        self.out = iter(self.generation)

    def say(self, text: str, finish: str | None = None, choice: int = 0) -> None:
        for i, letter in enumerate(text):
            last = i == len(text) - 1
            self.tickets[choice].put(Token(ord(letter), finish if last else None))

    def pieces(self) -> list[Piece]:
        return [item for item in self.out if isinstance(item, Piece)]

    @property
    def cancelled(self) -> bool:
        return self.ticket.cancelled.is_set()

    @property
    def tokens(self) -> int:
        return self.generation.usage().completion


def said(text: str, finish: str | None = None, choice: int = 0, stop: str | None = None) -> Piece:
    return Piece(choice, Parts(text=text), (), finish, stop)


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_the_engines_end_is_the_answers_end_and_needs_no_cancel(finish):
    case = Case()
    case.say("abc", finish)
    assert case.pieces() == [said("a"), said("b"), said("c", finish)]
    assert not case.cancelled and case.tokens == 3


def test_held_back_text_comes_with_the_end():
    case = Case(Letters(held="c"))
    case.say("abcc", "length")
    assert case.pieces() == [said("a"), said("b"), said("cc", "length")]
    assert case.tokens == 4


def test_held_back_text_comes_with_what_follows():
    case = Case(Letters(held="c"))
    case.say("acb", "stop")
    assert case.pieces() == [said("a"), said("cb", "stop")]
    assert case.tokens == 3


def test_a_stop_string_ends_the_answer_and_cancels_the_rest():
    case = Case(Letters(stop="X"))
    case.say("abXcd")
    assert case.pieces() == [said("a"), said("b"), said("", "stop", stop="X")]
    assert case.tokens == 3
    assert case.cancelled and case.line.arrived.is_set()


def test_a_stop_string_in_the_last_token_is_a_stop_not_a_length():
    case = Case(Letters(stop="X"))
    case.say("aX", "length")
    assert case.pieces()[-1] == said("", "stop", stop="X")
    assert case.tokens == 2
    assert not case.cancelled


def test_an_answer_without_text_still_has_an_end():
    case = Case(Letters(held="c"))
    case.say("c", "stop")
    assert case.pieces() == [said("c", "stop")]


def test_waiting_is_told_with_the_seconds_so_far(monkeypatch):
    monkeypatch.setattr(following, "POLL_S", 0.01)
    case = Case()
    waits = [next(case.out) for _ in range(3)]
    assert all(isinstance(wait, Waiting) for wait in waits)
    assert 0 < waits[0].seconds <= waits[-1].seconds
    case.ticket.put(Prefilled(5, 10))
    assert isinstance(next(case.out), Waiting)
    case.say("a", "stop")
    assert case.pieces() == [said("a", "stop")]


def test_too_slow_is_504_and_cancels(monkeypatch):
    monkeypatch.setattr(following, "POLL_S", 0.01)
    case = Case(timeout=0.1)
    with pytest.raises(ApiError) as caught:
        case.pieces()
    assert (caught.value.status, caught.value.code) == (504, "request_timeout")
    assert case.cancelled


def test_silence_counts_from_the_start_of_the_request():
    case = Case(timeout=5, age=6)
    with pytest.raises(ApiError, match="no progress for 5 s .REQ_TIMEOUT"):
        case.pieces()
    assert case.cancelled


@pytest.mark.parametrize("progress", ["token", "prompt"])
def test_an_answer_may_be_long_while_something_comes_of_it(progress):
    """A healthy stream of ten minutes ended with an error."""
    case = Case(timeout=5, age=6)
    if progress == "token":
        case.say("a")
        assert next(case.out) == said("a")
    else:
        case.ticket.put(Prefilled(5, 10))
        assert isinstance(next(case.out), Waiting)
    assert isinstance(next(case.out), Waiting), "the silence has begun anew"
    case.say("b", "stop")
    assert case.pieces() == [said("b", "stop")]


def test_all_of_it_has_a_limit_where_one_is_set():
    case = Case(total=5, age=6)
    case.say("abc")
    assert next(case.out) == said("a")
    with pytest.raises(ApiError, match="not finish within 5 s .REQ_TOTAL_TIMEOUT") as caught:
        next(case.out)
    assert (caught.value.status, caught.value.code) == (504, "request_timeout")
    assert case.cancelled


@pytest.mark.parametrize("limit", ["timeout", "total"])
def test_an_answer_that_is_complete_at_the_deadline_counts(limit):
    case = Case(**{limit: 5}, age=6)
    case.say("a", "stop")
    assert case.pieces() == [said("a", "stop")]


def test_a_client_that_leaves_in_silence_cancels(monkeypatch):
    monkeypatch.setattr(following, "POLL_S", 0.01)
    case = Case(gone=lambda: True)
    with pytest.raises(ClientGone):
        case.pieces()
    assert case.cancelled


def test_a_client_that_leaves_while_tokens_pour_in_cancels(monkeypatch):
    """It was only looked for in silence: an answer that was not streamed ran to its end unread."""
    monkeypatch.setattr(following, "POLL_S", 0.05)
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
    assert next(case.out) == said("a")
    assert next(case.out) == said("b")
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
    assert next(case.out) == said("a")
    case.out.close()
    assert case.cancelled and case.line.arrived.is_set()


def test_closing_after_the_end_cancels_nothing():
    case = Case()
    case.say("a", "stop")
    case.pieces()
    case.out.close()
    assert not case.cancelled


# Several choices.


def test_choices_come_as_they_are_said_and_each_has_its_own_end():
    case = Case(Letters(), Letters(), Letters())
    case.say("x", choice=2)
    case.say("a")
    case.say("y", "length", choice=2)
    case.say("mn", "stop", choice=1)
    case.say("b", "stop")
    assert case.pieces() == [
        said("x", choice=2), said("a"), said("y", "length", choice=2), said("m", choice=1),
        said("n", "stop", choice=1), said("b", "stop"),
    ]  # fmt: skip
    assert not any(one.cancelled.is_set() for one in case.tickets)
    assert case.tokens == 6


def test_a_choice_that_met_its_stop_string_is_cancelled_while_the_others_go_on():
    case = Case(Letters("X"), Letters("X"))
    case.say("aX")
    case.say("b", choice=1)
    assert [next(case.out) for _ in range(3)] == [
        said("a"), said("", "stop", stop="X"), said("b", choice=1),
    ]  # fmt: skip
    assert [one.cancelled.is_set() for one in case.tickets] == [True, False]
    case.say("zzz")  # was on its way
    case.say("c", "length", choice=1)
    assert case.pieces() == [said("c", "length", choice=1)]
    assert case.tokens == 4, "what came after a choice's end is not counted"
    assert not case.tickets[1].cancelled.is_set()


def test_one_choice_that_fails_ends_the_request():
    case = Case(Letters(), Letters())
    case.say("a")
    case.tickets[1].put(Failed(engine_failed("Sampling failed")))
    case.say("b")
    assert next(case.out) == said("a")
    with pytest.raises(ApiError):
        next(case.out)
    assert all(one.cancelled.is_set() for one in case.tickets)


@pytest.mark.parametrize("how", ["close", "gone", "late", "bug"])
def test_however_it_ends_all_unfinished_choices_are_cancelled(monkeypatch, how):
    monkeypatch.setattr(following, "POLL_S", 0.01)
    left = threading.Event()
    texts = [Letters(), Broken() if how == "bug" else Letters(), Letters()]
    case = Case(*texts, gone=left.is_set, timeout=0.3 if how == "late" else DEADLINE_S)
    case.say("a", "stop")
    assert next(case.out) == said("a", "stop")
    if how == "close":
        case.out.close()
    else:
        left_with = {"gone": ClientGone, "late": ApiError, "bug": RuntimeError}[how]
        if how == "gone":
            left.set()
        if how == "bug":
            case.say("b", choice=1)
        with pytest.raises(left_with):
            case.pieces()
    assert [one.cancelled.is_set() for one in case.tickets] == [False, True, True]


def test_all_choices_are_answered_together():
    case = Case(Letters(), Letters())
    case.say("a", "stop")
    case.say("b", "stop", choice=1)
    case.pieces()
    assert case.line.unanswered() == 2
    case.generation.answered()
    assert case.line.unanswered() == 0


def test_usage_counts_each_prompt_once_and_every_choices_tokens():
    texts = [Letters() for _ in range(6)]
    texts[1].reasoning_tokens, texts[4].reasoning_tokens = 2, 3
    case = Case(*texts, prompts=([1, 2, 3], [1, 2, 3]))
    for n in range(6):
        case.say("ab", "stop", choice=n)
    case.pieces()
    assert case.generation.usage() == Usage(prompt=6, completion=12, reasoning=5)


def test_the_way_out_may_tell_another_reason():
    case = Case(Letters(reason="tool_calls"))
    case.say("a", "stop")
    assert case.pieces() == [said("a", "tool_calls")]


# Log-probabilities.


def scored(letter: str, finish: str | None = None, logprob: float = -1.0) -> Token:
    return Token(ord(letter), finish, Score(ord(letter), logprob))


def letters(piece: Piece) -> str:
    return "".join(token.text for token in piece.logprobs)


def test_each_token_has_its_log_probability_in_the_piece_of_its_text():
    case = Case(Letters(held="c"), common=Common(logprobs=0))
    for event in (scored("a"), scored("c"), scored("b"), scored("c", "length")):
        case.ticket.put(event)
    pieces = case.pieces()
    assert [(piece.parts.text, letters(piece)) for piece in pieces] == [
        ("a", "a"), ("cb", "cb"), ("c", "c"),
    ]  # fmt: skip


def test_the_tokens_of_a_stop_string_and_of_the_end_have_none():
    for last in (scored("X"), scored("X", "length")):
        case = Case(Letters(stop="X"), common=Common(logprobs=0))
        for event in (scored("a"), last):
            case.ticket.put(event)
        assert [letters(piece) for piece in case.pieces()] == ["a", ""]
    case = Case(Letters(held="\x00"), common=Common(logprobs=0))
    for event in (scored("a"), scored("\x00", "stop")):
        case.ticket.put(event)
    assert [letters(piece) for piece in case.pieces()] == ["a", ""]


class Held:
    """A TextOut that gives set texts, the last of them at a stop string."""

    reasoning_tokens = 0

    def __init__(self, *texts: str) -> None:
        self.stopped: str | None = None
        self._texts = list(texts)

    def add(self, token: int) -> Parts:
        text = self._texts.pop(0)
        if not self._texts:
            self.stopped = "stop"
        return Parts(text=text)


@pytest.mark.parametrize(
    ("texts", "tokens", "told"),
    [
        (["a", ""], "ab", ["a", ""]),
        (["", "a"], "ab", ["a"]),  # the a could have begun another stop string
        (["", "", "a"], "abc", ["a"]),
        (["", "", "ab"], "abc", ["ab"]),
        (["é", "", "é"], "ééX", ["é", "é"]),
    ],
)
def test_text_before_a_stop_string_keeps_its_tokens(texts, tokens, told):
    """What was held back, and came free with the stop string, was told without its tokens."""
    case = Case(Held(*texts), common=Common(logprobs=0))
    for letter in tokens:
        case.ticket.put(scored(letter))
    pieces = case.pieces()
    assert [letters(piece) for piece in pieces] == told
    assert [piece.parts.text for piece in pieces] == told


def test_a_token_that_was_told_with_the_first_part_of_its_text_is_not_told_again():
    """Its end could have begun a stop string; the next token brings another one."""
    case = Case(Held("one", "<"), common=Common(logprobs=0))
    case.generation._describe = lambda score: TokenLogprob(
        score.id, text := {1: "one<", 2: "!"}[score.id], tuple(text.encode()), -1.0
    )
    for token in (1, 2):
        case.ticket.put(Token(token, None, Score(token, -1.0)))
    assert [letters(piece) for piece in case.pieces()] == ["one<", ""]


# Echo.


def test_an_echo_is_the_first_piece_of_every_choice():
    case = Case(Letters(), Letters(), echo="prompt ")
    case.say("b", choice=1)
    case.say("a", "stop")
    case.say("c", "stop", choice=1)
    assert case.pieces() == [
        said("prompt ", choice=1), said("b", choice=1), said("prompt "), said("a", "stop"),
        said("c", "stop", choice=1),
    ]  # fmt: skip


def test_an_echo_comes_even_if_the_answer_is_empty():
    case = Case(Letters(stop="X"), echo="prompt")
    case.say("X")
    assert case.pieces() == [said("prompt"), said("", "stop", stop="X")]


def test_an_echo_has_the_prompts_log_probabilities_in_every_choice():
    prompt = [ord(letter) for letter in "xyz"]
    case = Case(Letters(), Letters(), common=Common(logprobs=0), prompts=(prompt,), echo="xyz")
    case.ticket.put(Prefilled(3, 3))
    case.ticket.put(Scored((Score(ord("y"), -1.0), Score(ord("z"), -2.0))))
    for one in case.tickets:
        one.put(scored("a", "length"))
    pieces = case.pieces()
    assert [(p.choice, p.parts.text, letters(p)) for p in pieces] == [
        (0, "xyz", "xyz"), (0, "a", "a"), (1, "xyz", "xyz"), (1, "a", "a"),
    ]  # fmt: skip
    assert [token.logprob for token in pieces[2].logprobs] == [None, -1.0, -2.0]


def test_each_prompt_of_a_list_has_its_own_echo_scores():
    prompts = ([ord("x"), ord("y")], [ord("x"), ord("y")])
    case = Case(Letters(), Letters(), common=Common(logprobs=0), prompts=prompts, echo="xy")
    case.tickets[1].put(Scored((Score(ord("y"), -2.0),)))
    case.tickets[0].put(Scored((Score(ord("y"), -1.0),)))
    for one in case.tickets:
        one.put(scored("a", "length"))
    echoes = [piece for piece in case.pieces() if piece.parts.text == "xy"]
    assert [piece.logprobs[1].logprob for piece in echoes] == [-1.0, -2.0]


def test_a_prompt_of_one_token_has_an_echo_without_scores():
    case = Case(Letters(), common=Common(logprobs=0), prompts=([ord("x")],), echo="x")
    case.ticket.put(scored("a", "length"))
    echo, _ = case.pieces()
    assert [token.logprob for token in echo.logprobs] == [None]
