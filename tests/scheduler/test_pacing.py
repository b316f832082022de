"""The size of a prefill chunk follows what the clock says of a machine. No clock runs here."""

import pytest

from server.scheduler.pacing import LEAST, PrefillPace


class Machine:
    """Takes fixed + per_token x computed seconds for a chunk, beside step_s of decoding."""

    def __init__(self, per_token: float, fixed: float = 0.0, step_s: float = 0.05) -> None:
        self.per_token, self.fixed, self.step_s = per_token, fixed, step_s

    def pause(self, computed: int) -> float:
        return self.fixed + self.per_token * computed

    def run(self, pace: PrefillPace, turns: int, prompt: int = 10**6) -> None:
        for _ in range(turns):
            computed = min(pace.tokens, prompt)
            pace.observe(computed, self.pause(computed), self.step_s)


@pytest.mark.parametrize("per_token", [1e-5, 1e-3, 4e-3])
@pytest.mark.parametrize("fixed", [0.0, 0.03])
def test_the_pause_comes_close_to_what_is_asked_on_any_machine(per_token, fixed):
    machine, pace = Machine(per_token, fixed), PrefillPace(0.25, 4096)
    machine.run(pace, 20)
    pause = machine.pause(pace.tokens)
    assert pace.tokens == 4096 and pause < 0.25 or 0.2 < pause <= 0.26


def test_a_slow_machine_still_makes_progress_worth_its_fixed_cost():
    """Where two decode steps take longer than the pause, the chunk may take as long as they."""
    machine, pace = Machine(1e-3, fixed=0.4, step_s=0.4), PrefillPace(0.5, 4096)
    machine.run(pace, 60)
    assert 350 < pace.tokens < 450, "half of the chunk's time is the prompt's"


def test_the_size_stays_within_its_limits():
    pace = PrefillPace(0.25, 512)
    Machine(1e-9).run(pace, 20)
    assert pace.tokens == 512
    Machine(10.0).run(pace, 20)
    assert pace.tokens == LEAST
    assert PrefillPace(0.25, 32).tokens == 32


def test_short_prompts_do_not_make_the_next_long_one_crawl():
    machine, pace = Machine(1e-4, fixed=0.02), PrefillPace(0.25, 4096)
    machine.run(pace, 20)
    learned = pace.tokens
    machine.run(pace, 50, prompt=10)
    assert pace.tokens == learned


def test_a_chunk_larger_than_asked_for_teaches_the_same():
    """As when nothing decodes: the pause of a full chunk tells what a token costs."""
    machine, pace = Machine(1e-3), PrefillPace(0.25, 4096)
    for _ in range(20):
        pace.observe(2048, machine.pause(2048), machine.step_s)
    assert 240 < pace.tokens <= 250


def test_one_bad_measurement_halves_the_size_at_most():
    pace = PrefillPace(0.25, 4096)
    before = pace.tokens
    pace.observe(before, 5.0, 0.05)
    assert pace.tokens == before // 2


def test_a_step_is_known_from_the_turns_that_brought_tokens():
    pace = PrefillPace(0.25, 4096)
    before = pace.step_s
    pace.observe(64, 0.2, 0.0)
    assert pace.step_s == before
    for _ in range(60):
        pace.observe(0, 0.0, 0.5)
    assert pace.step_s == pytest.approx(0.5, rel=0.01)


def test_a_step_that_stalled_counts_as_five_seconds():
    long, endless = PrefillPace(0.25, 4096), PrefillPace(0.25, 4096)
    long.observe(0, 0.0, 5.0)
    endless.observe(0, 0.0, 500.0)
    assert endless.step_s == long.step_s < 0.6
