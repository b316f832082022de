"""When rank 0 drafts, how much, and of what; by made-up steps in the place of the clock."""

import random
from types import SimpleNamespace

import pytest

from server.engine.turn import Turn
from server.protocol.events import Token
from server.protocol.requests import Common
from server.sampling.choosers import Wanting
from server.scheduler.guesses import Guess
from server.scheduler.ngrams import MOST_TOKENS, NGrams, _hashes
from server.scheduler.speculation import AGAIN, OPEN_MOST, SETTLED, WIDTHS, Speculation
from server.scheduler.step_costs import AHEAD, StepCosts
from server.wire.mailbox import DRAFTS_MOST, Header

DENSE = [(1, 0.030), (2, 0.030), (4, 0.031), (8, 0.032), (16, 0.036), (32, 0.05), (128, 0.15)]
EXPERTS = [(1, 0.010), (2, 0.018), (4, 0.034), (8, 0.066), (16, 0.12), (128, 0.5)]
FILE = random.Random(1).choices(range(5000), k=400)
PROSE = random.Random(2).choices(range(400), k=3000)


# What a text is likely to go on with.


def test_a_text_that_repeats_an_earlier_part_is_expected_to_go_on_as_that_did():
    text = NGrams(FILE)
    assert not text.expected(5)
    for token in FILE[100:103]:
        text.add(token)
    assert text.expected(6) == FILE[103:109] and text.length == 3


def test_the_place_that_is_followed_is_kept_though_its_lines_are_in_others():
    lines = [[7, 7, 7, 100 + n, 7, 7, 7] for n in range(20)]
    text = NGrams(sum(lines, []))
    for token in lines[3][2:] + lines[4]:
        text.add(token)
    assert text.expected(7) == lines[5]


def test_what_repeats_itself_is_expected_to_go_on_doing_so():
    text = NGrams([1, 2, 3, 4, 5] * 2)
    assert text.expected(12) == [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2]


def test_a_token_that_came_otherwise_ends_the_part_until_it_is_found_again():
    text = NGrams(FILE)
    for token in [*FILE[50:60], 9999]:
        text.add(token)
    assert text.length == 0 and text.expected(3) == []
    for token in FILE[60:63]:
        text.add(token)
    assert text.expected(3) == FILE[63:66]


@pytest.mark.parametrize("seed", range(5))
def test_one_by_one_a_text_is_what_it_is_at_once(seed):
    rng = random.Random(seed)
    tokens = [rng.randrange(6) for _ in range(rng.randrange(1, 300))]
    start = rng.randrange(len(tokens))
    slow, fast = NGrams(tokens[:start]), NGrams(tokens)
    for token in tokens[start:]:
        slow.add(token)
    assert (slow.length > 0) == (fast.length > 0)
    for n, table in slow._tables.items():
        assert (table == fast._tables[n]).all()


def test_what_is_looked_up_is_the_hash_of_the_last_tokens(monkeypatch):
    monkeypatch.setattr("server.scheduler.ngrams.MOST_TOKENS", 600)
    text = NGrams(FILE[:5])
    for n, token in enumerate(FILE * 20, 6):
        text.add(token)
        if n % 100 in (0, 1, 9):
            last = text._tokens[: text._count]
            for size in text._tables:
                assert text._slot(size) == _hashes(last, size)[-1]


def test_a_text_takes_no_more_memory_than_its_newest_tokens(monkeypatch):
    monkeypatch.setattr("server.scheduler.ngrams.MOST_TOKENS", 600)
    text = NGrams(FILE * 3)
    for _ in range(20):
        for token in FILE:
            text.add(token)
    assert len(text._tokens) <= 4 * 600 < MOST_TOKENS
    assert text.expected(4) == FILE[:4]


# How often it was right.


def test_what_a_guess_is_worth_is_learned_before_anything_is_drafted():
    copies, wanders = Guess(FILE), Guess(PROSE)
    rng = random.Random(3)
    for n in range(120):
        copies.hear([FILE[n]], n + 1)
        wanders.hear([rng.choice(PROSE)], n + 1)
    assert copies.expect(8)[0] == FILE[120:128]
    assert copies.expect(8)[1][7] > 0.9
    assert sum(wanders.expect(8)[1]) < 0.5


def test_tokens_that_were_heard_with_a_step_are_not_heard_again_when_they_are_delivered():
    guess = Guess(FILE)
    assert guess.hear(FILE[10:15], 5) and guess.hear([FILE[14]], 5) and guess.hear([FILE[15]], 6)
    assert guess.expect(3)[0] == FILE[16:19]
    assert not guess.hear([1], 9), "two are missing"


# What a step costs.


def test_a_step_is_expected_to_cost_what_the_start_has_measured_until_it_is_measured():
    costs = StepCosts(DENSE)
    for _ in range(20):
        costs.observe(1, AHEAD, 0.040)
    assert costs.of(1, 8) == pytest.approx(0.032 * 0.040 / 0.030, rel=0.01)
    for _ in range(60):
        costs.observe(1, 8, 0.060)
    assert costs.of(1, 8) == pytest.approx(0.060, rel=0.02)
    assert costs.of(1, AHEAD) == pytest.approx(0.040, rel=0.02)


def test_one_stall_says_little_of_a_step():
    costs = StepCosts(DENSE)
    for _ in range(20):
        costs.observe(1, AHEAD, 0.030)
    costs.observe(1, 4, 5.0)
    assert costs.of(1, 4) < 0.045


# What is drafted.


class Played:
    """Steps of rows that go on with given texts, by a cost of steps that is known. waits: times
    what a step costs is one that is not made ahead."""

    def __init__(self, curve, texts, several=True, waits=1.02, model=None) -> None:
        self.waits = waits
        self.speculation = Speculation(StepCosts(curve), several, model)
        self.costs = StepCosts(curve)
        self.rows = [
            SimpleNamespace(
                guess=self.speculation.guess(Common(), prompt), constrained=False,
                looks_ahead=True, allowed=len, sampling=None, seed=0,
            )
            for prompt, _ in texts
        ]  # fmt: skip
        self.texts = [text for _, text in texts]
        self.at = [0] * len(texts)
        self.now, self.rooms = 0.0, [0, 0]
        self.widths: list[int] = []
        self.offered = [[] for _ in texts]
        self.looking = False

    def step(self) -> None:
        """One, as the engine has it: with drafts where the last header had room for them."""
        width = (1 + max(map(len, self.offered))) if self.looking else AHEAD
        self.widths.append(width)
        self.now += self.costs.of(len(self.rows), width) * (self.waits if self.looking else 1)
        events, newest = [], []
        for i, text in enumerate(self.texts):
            at, right = self.at[i], 0
            while right < len(self.offered[i]) and self.offered[i][right] == text[at + right]:
                right += 1
            newest.append(text[at : at + right + 1])
            wrong = len(self.offered[i]) - right
            events += [(i, Token(t, None, drafted=n < right, wrong=wrong * (n == right)))
                       for n, t in enumerate(newest[-1])]  # fmt: skip
            self.at[i] += right + 1
        self.looking, self.offered = self.rooms[-1] > 0, [[] for _ in self.texts]
        if self.looking:
            wanting = [
                Wanting(row, own, at, 1000)
                for row, own, at in zip(self.rows, newest, self.at, strict=True)
            ]
            self.offered = self.speculation.draft(wanting, self.rooms[-1])
        self.rooms.append(self.speculation.room(self.rows))
        for row, own, at in zip(self.rows, newest, self.at, strict=True):
            row.guess.hear(own, at)
        self.speculation.observe(Turn(events, [], header=Header(), width=width), self.now)

    def pace(self, tokens: int) -> float:
        """Tokens a second over so many tokens of each row."""
        while min(self.at) < tokens:
            self.step()
        return sum(self.at) / self.now


def without(curve, rows: int) -> float:
    return rows / StepCosts(curve).of(rows, AHEAD)


COPY = (FILE, FILE * 40)
WANDER = (PROSE, random.Random(9).choices(PROSE, k=4000))


def test_a_copy_is_drafted_and_prose_is_not():
    assert Played(DENSE, [COPY]).pace(380) > 4 * without(DENSE, 1)
    prose = Played(DENSE, [WANDER])
    assert prose.pace(2000) >= 0.98 * without(DENSE, 1)
    assert sum(width > 1 for width in prose.widths) < 0.05 * len(prose.widths)


def nearly_repeats(seed: int, count: int, longest: int) -> list[int]:
    """Of pieces that come again and again, in an order of chance and with words between them."""
    rng = random.Random(seed)
    pieces = [rng.choices(range(400), k=rng.randrange(2, longest)) for _ in range(60)]
    text: list[int] = []
    while len(text) < count:
        text += rng.choice(pieces) + [rng.randrange(5000)] * rng.randrange(2)
    return text


@pytest.mark.parametrize("curve", [DENSE, EXPERTS], ids=["dense", "experts"])
@pytest.mark.parametrize("waits", [1.02, 1.3, 1.6])
@pytest.mark.parametrize("longest", [4, 9, 14])
def test_a_text_that_nearly_repeats_itself_is_not_slower(curve, waits, longest):
    """What such a text was expected to bring made up for steps that cost more than was known."""
    texts = [(nearly_repeats(0, 300, longest), nearly_repeats(0, 2000, longest))]
    assert Played(curve, texts, waits=waits).pace(1500) >= 0.98 * without(curve, 1)


def test_what_drafts_have_lost_is_earned_again_before_there_are_others():
    speculation = Speculation(StepCosts(DENSE))
    rows = [SimpleNamespace(guess=speculation.guess(Common(), FILE), constrained=False,
                            looks_ahead=True)]  # fmt: skip
    rows[0].guess.hear(FILE[:20], 20)

    def step(width: int, seconds: float) -> None:
        nonlocal now
        now += seconds
        turn = Turn([(0, Token(1, None, wrong=width))], [], header=Header(), width=width)
        speculation.observe(turn, now)

    now = 0.0
    for _ in range(SETTLED + 2):
        step(AHEAD, 0.030)
    assert speculation.room(rows) > 0
    for _ in range(8):
        step(8, 0.060)
    assert speculation.room(rows) == 0
    lost = speculation._account
    for _ in range(20):
        step(AHEAD, 0.030)
    assert speculation.room(rows) == 0 and lost < speculation._account <= 0
    while speculation._account <= 0:
        step(AHEAD, 0.030)
    assert speculation.room(rows) > 0


def test_where_each_token_costs_as_much_as_a_step_nothing_is_drafted():
    for texts in ([COPY], [WANDER], [COPY, WANDER]):
        played = Played(EXPERTS, texts)
        assert played.pace(380) >= 0.98 * without(EXPERTS, len(texts))


@pytest.mark.parametrize("rows", [2, 4, 8, 12])
def test_many_rows_are_never_slower(rows):
    for texts in ([WANDER] * rows, [COPY] * rows, [COPY] + [WANDER] * (rows - 1)):
        played = Played(DENSE, texts)
        assert played.pace(380) >= 0.98 * without(DENSE, rows)
        assert max(played.rooms) <= DRAFTS_MOST


def test_a_model_that_bears_drafts_of_a_lone_row_alone_gets_no_others():
    lone, two = Played(DENSE, [COPY], False), Played(DENSE, [COPY] * 2, False)
    lone.pace(380), two.pace(380)
    assert max(lone.widths) > 1 and max(two.widths) == AHEAD


def test_steps_without_drafts_are_measured_before_and_between_those_with_them():
    played = Played(DENSE, [(FILE, FILE * 40)])
    played.pace(9000)
    assert played.widths[:SETTLED] == [AHEAD] * SETTLED
    longest = max(map(len, "".join("x" if w else " " for w in played.widths).split()))
    assert 100 < longest <= OPEN_MOST + 2
    assert played.widths.count(AHEAD) >= AGAIN * (len(played.widths) // (OPEN_MOST + 10))


def test_no_row_is_drafted_beyond_what_it_may_get():
    played = Played(DENSE, [COPY])
    for _ in range(60):
        if not any(played.offered):
            played.step()
    assert any(played.offered)
    row, at = played.rows[0], played.at[0]
    for left in (0, 1, 2, 5, 100):
        (drafts,) = played.speculation.draft([Wanting(row, [FILE[at - 1]], at, left)], 60)
        assert len(drafts) <= min(max(0, left - 1), WIDTHS[-1] - 1)


def test_a_request_that_wants_none_gets_none():
    speculation = Speculation(StepCosts(DENSE))
    assert speculation.guess(Common(speculate=False), FILE) is None
    assert Speculation(None).guess(Common(), FILE) is None
    row = SimpleNamespace(guess=None, constrained=False, looks_ahead=True)
    assert speculation.room([row]) == 0
    assert speculation.draft([Wanting(row, [5], 1, 9)], 60) == [[]]


def test_a_step_in_which_another_model_had_its_turn_says_nothing_of_what_steps_cost():
    """It was taken for a slow one, and drafts were made or left out by it."""
    costs = StepCosts(DENSE)
    speculation = Speculation(costs)
    now = 0.0
    for interrupted in (True, True, False, True, False):
        token = Token(1, None)
        turn = Turn([(1, token)], [], step_s=0.03, header=Header(), interrupted=interrupted)
        now += 0.9 if interrupted else 0.03
        speculation.observe(turn, now)
    assert costs.of(1, AHEAD) == pytest.approx(0.03)
    assert costs.measured == {1: 4}, "or models that are always beside others had no drafts"
