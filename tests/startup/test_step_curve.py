"""What drafts would cost: passes of more and more tokens, until one takes longer than is borne."""

import mlx.core as mx
import pytest

from server.startup import step_curve
from server.startup.piece_pace import at_once
from server.startup.step_curve import REPEATS, SIZES, measure_curve
from server.wire.link import Link


@pytest.fixture
def measure(monkeypatch):
    """measure(seconds of a pass by its tokens, what is borne) -> (pieces, which return the curve;
    tokens of each pass)."""

    def measure(takes, *bearable):
        passes = []

        def time_one(model, link, tokens: int) -> float:
            passes.append(tokens)
            return takes(tokens)

        monkeypatch.setattr(step_curve, "_time", time_one)
        link = Link(mx.distributed.init())
        return measure_curve(None, link, lambda stage: None, *bearable), passes

    return measure


def test_every_size_is_measured_while_passes_are_short(measure):
    pieces, passes = measure(lambda tokens: tokens / 1024)
    curve = at_once(pieces)
    assert [tokens for tokens, _ in curve] == list(SIZES)
    assert [seconds for _, seconds in curve] == pytest.approx([n / 1024 for n in SIZES], rel=2e-3)
    assert len(passes) == len(SIZES) * (1 + REPEATS)


@pytest.mark.parametrize(("borne_s", "largest"), [(0.0, 2), (0.1, 4), (0.3, 16)])
def test_no_larger_pass_than_twice_one_that_was_too_long_for_who_waits(measure, borne_s, largest):
    pieces, passes = measure(lambda tokens: tokens / 32, lambda: borne_s)
    curve = at_once(pieces)
    assert curve[-1][0] == max(passes) == largest


def test_a_pass_is_as_long_as_the_shortest_and_no_shorter_than_a_smaller_one(measure):
    takes = {1: [0.9, 0.25, 0.3, 0.4], 2: [0.125] * 4}
    pieces, _ = measure(lambda tokens: takes[tokens].pop(0), lambda: 0.0)
    assert at_once(pieces) == [(1, 0.25), (2, 0.25)]


def test_it_gives_way_after_every_pass(measure):
    pieces, passes = measure(lambda tokens: 0.001)
    for done, _ in enumerate(pieces, 1):
        assert len(passes) == done
