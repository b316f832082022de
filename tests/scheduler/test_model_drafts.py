"""When a draft model is asked, by made-up steps and a made-up model in the place of the clock."""

import random

import pytest

from server.scheduler import model_drafts
from server.scheduler.guesses import Guess, Offer, Rate
from server.scheduler.model_drafts import ModelDrafts
from server.scheduler.pacing import PrefillPace
from tests.scheduler.test_speculation import (
    COPY,
    DENSE,
    EXPERTS,
    FILE,
    PROSE,
    WANDER,
    Played,
    without,
)

STEP_S = DENSE[0][1]


class Small:
    """A draft model that is right with a chance, and takes its time."""

    def __init__(self, right: float, draft_s: float, read_s: float = 0.0) -> None:
        self.right, self.draft_s, self.read_s = right, draft_s, read_s
        self.made, self.read_tokens, self.pieces = 0, 0, []
        self.texts: dict[Guess, list[int]] = {}
        self._known: dict[Guess, int] = {}
        self._rng = random.Random(4)
        self.played: Played | None = None

    def begin(self, keys) -> None:
        self._known = {key: count for key, count in self._known.items() if key in keys}

    def known(self, key) -> int:
        return self._known.get(key, 0)

    def has_room(self, key, tokens: int) -> bool:
        return True

    def read(self, key, text) -> None:
        self._known[key] = self.known(key) + len(text)
        self.pieces.append(len(text) * self.read_s)
        self.played.now += self.pieces[-1]

    def draft(self, key, text, states) -> list[int]:
        assert len(text) <= model_drafts.AT_ONCE
        self._known[key] = self.known(key) + len(text)
        self.made += len(states)
        self.played.now += len(states) * self.draft_s
        at = states[0].drawn
        coming = self.texts[key][at : at + len(states)]
        return [token if self._rng.random() < self.right else -1 for token in coming]


@pytest.fixture
def play(monkeypatch):
    def play(curve, texts, small: Small) -> Played:
        small.played = played = Played(
            curve, texts, model=ModelDrafts(small, PrefillPace(0.25, 512))
        )
        small.texts = {row.guess: text for row, (_, text) in zip(played.rows, texts, strict=True)}
        monkeypatch.setattr(model_drafts.time, "monotonic", lambda: played.now)
        return played

    return play


@pytest.mark.parametrize(("right", "times"), [(0.95, 3), (0.8, 1.8), (0.6, 1.3)])
def test_prose_is_drafted_by_a_model_that_is_right_often_enough(play, right, times):
    small = Small(right, STEP_S / 20)
    assert play(DENSE, [WANDER], small).pace(2000) > times * without(DENSE, 1)


@pytest.mark.parametrize(
    ("right", "draft_s", "curve"),
    [(0.0, 1 / 20, DENSE), (0.2, 1 / 8, DENSE), (1.0, 1.2, DENSE), (0.6, 1 / 8, EXPERTS)],
)
@pytest.mark.parametrize("rows", [1, 3, 8, 12])
def test_one_that_does_not_pay_is_not_asked(play, right, draft_s, curve, rows):
    small = Small(right, draft_s * curve[0][1])
    played = play(curve, [WANDER] * rows, small)
    assert played.pace(3000) >= 0.98 * without(curve, rows)
    assert small.made < 0.2 * sum(played.at)


def test_where_a_text_says_itself_again_the_model_is_hardly_asked(play):
    """What costs nothing goes first, as long as it is as good."""
    small = Small(0.8, STEP_S / 20)
    played = play(DENSE, [COPY], small)
    assert played.pace(5000) > 4 * without(DENSE, 1)
    assert small.made < 0.05 * played.speculation.drafted


def test_a_row_of_each_kind_has_its_own_drafts(play):
    small = Small(0.9, STEP_S / 40)
    played = play(DENSE, [COPY, WANDER], small)
    while played.at[0] < 10_000:
        played.step()
    assert played.at[1] > 2500, "it waits for the other's wide steps, and has drafts of its own"
    assert small.made < 0.8 * played.speculation.drafted


def test_a_long_text_is_read_for_a_long_answer_alone_and_in_bearable_pieces(play):
    prompt = random.Random(5).choices(range(400), k=20_000)
    answer = random.Random(6).choices(range(400), k=9000)
    small = Small(0.9, STEP_S / 20, read_s=0.0005)
    played = play(DENSE, [(prompt, answer)], small)
    assert played.pace(150) >= 0.98 * without(DENSE, 1) and not small.pieces
    assert played.pace(8000) > 1.5 * without(DENSE, 1)
    assert max(small.pieces) <= 0.26 and sum(small.pieces) > 9


def test_what_is_known_of_other_rows_is_where_a_new_one_begins():
    shared = Rate(weight=0.02)
    first = Rate(above=shared)
    for _ in range(100):
        first.learn(False)
    assert first.value < 0.01 and Rate(above=shared).value == shared.value < 0.15
    for _ in range(2000):
        first.fade()
    assert first.value > 0.5 and shared.value > 0.5, "a text may change its nature"


def test_a_guess_compares_what_comes_with_what_the_model_said():
    shared = Rate()
    guess = Guess(FILE, shared)
    guess.try_model([1, 2, 3])
    guess.hear([1, 2, 9, 3], 4)
    likely = guess.model_likely(2)
    right = Rate()
    for was in (True, True, False):
        right.learn(was)
    right.fade()
    assert likely == pytest.approx([right.value, right.value**2])
    assert guess.length == len(FILE) + 4 and guess.text(len(FILE) - 1) == [FILE[-1], 1, 2, 9, 3]
    assert guess.text(len(FILE) + 1, 2) == [2, 9]


def test_an_offer_of_the_model_costs_what_it_makes_and_no_other_does():
    model = Offer([0.5, 0.25, 0.125], None, draft_s=0.1, text_s=0.01)
    assert model.brings(3) == 1.75 and model.takes_s(1) == 0
    assert model.takes_s(3) == pytest.approx(0.2 + 0.0175)
    assert model.takes_s(9) == pytest.approx(0.3 + 0.01875)
    assert Offer([0.5, 0.25], PROSE[:2]).takes_s(3) == 0
    assert model.worth(2.0).likely == [0.5, 0.25] and model.worth(6.0).likely == []
