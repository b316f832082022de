"""Time that counts, and time in which this process was away."""

import pytest

from server.lifecycle.turn_times import CHUNK, MOST, MULTIPLE, STEP, TurnTimes
from server.lifecycle.wait_clock import AWAY_S, WaitClock

LOOK_S = 1.0
LEAST_S = 60.0


class Clocks:
    """A monotonic clock, and one on the wall."""

    def __init__(self) -> None:
        self.now, self.time = 100.0, 1e9
        self.patience = WaitClock(LOOK_S, lambda: self.now, lambda: self.time)

    def pass_(self, seconds: float, wall: float | None = None) -> float:
        self.now += seconds
        self.time += seconds if wall is None else wall
        return self.patience.look()


@pytest.fixture
def clocks():
    return Clocks()


def test_looks_add_up(clocks):
    assert [clocks.pass_(LOOK_S) for _ in range(3)] == [1, 2, 3]
    clocks.patience.renew()
    assert clocks.pass_(LOOK_S) == 1


def test_a_stopped_process_counts_anew(clocks):
    """SIGSTOP and SIGCONT, a debugger: both clocks went on."""
    clocks.pass_(LOOK_S)
    assert clocks.pass_(3600) == 0
    assert clocks.pass_(LOOK_S) == 1


def test_a_machine_that_slept_counts_anew_though_the_monotonic_clock_stood_still(clocks):
    clocks.pass_(LOOK_S)
    assert clocks.pass_(LOOK_S, wall=3600) == 0


def test_a_short_pause_counts_as_a_look(clocks):
    assert clocks.pass_(LOOK_S + AWAY_S) == 2 * LOOK_S


def test_a_busy_machine_postpones_the_end_but_does_not_prevent_it(clocks):
    """Each look comes late, as with a thread that gets no processor."""
    waited = [clocks.pass_(LOOK_S + AWAY_S / 2) for _ in range(100)]
    assert waited == sorted(waited) and waited[-1] == 100 * 2 * LOOK_S


def test_a_wall_clock_that_is_set_back_takes_nothing_off(clocks):
    assert [clocks.pass_(LOOK_S, wall=-3600) for _ in range(3)] == [1, 2, 3]


# What a turn may take.


class Turn:
    def __init__(self, computed=0, chunk_s=0.0, step_s=0.0) -> None:
        self.computed, self.chunk_s, self.step_s = computed, chunk_s, step_s


def times(*turns: Turn) -> TurnTimes:
    made = TurnTimes(LEAST_S)
    for turn in turns:
        made.observe(turn)
    return made


def test_a_fast_cluster_keeps_to_the_stall_timeout():
    quick = times(Turn(512, 0.4, 0.03), *[Turn(step_s=0.03)] * 100)
    assert {quick.limit(stage) for stage in (STEP, CHUNK, "meeting")} == {LEAST_S}
    assert times().limit(CHUNK) == LEAST_S


def test_a_slow_chunk_gives_the_next_ones_a_multiple_of_its_time():
    """At a load of 12 a healthy chunk of 512 tokens took over 60 s, and was shot."""
    slow = times(Turn(512, 12.0))
    assert slow.limit(CHUNK) == MULTIPLE * 12
    assert slow.limit("meeting") == MULTIPLE * 12  # another rank may be in one still
    assert slow.limit(STEP) == LEAST_S  # a decode step has nothing of it


def test_a_slow_step_counts_in_every_stage():
    slow = times(Turn(step_s=6.0), Turn(512, 5.0))
    assert slow.limit(STEP) == MULTIPLE * 6
    assert slow.limit(CHUNK) == MULTIPLE * 11


def test_a_hang_is_noticed_however_slow_all_is():
    assert times(Turn(512, 50.0), Turn(512, 400.0)).limit(CHUNK) == MOST * LEAST_S


def test_slowness_is_believed_at_once_and_forgotten_by_and_by():
    one = times(Turn(512, 1.0), Turn(512, 30.0))
    limits = [one.limit(CHUNK)]
    for _ in range(40):
        one.observe(Turn(512, 1.0))
        limits.append(one.limit(CHUNK))
    assert limits[0] == MULTIPLE * 30
    assert limits == sorted(limits, reverse=True)
    assert limits[1] > LEAST_S and limits[-1] == LEAST_S


def test_a_small_chunk_that_stalled_is_corrected_by_a_larger_one():
    one = times(Turn(20, 40.0))
    assert one.limit(CHUNK) == MOST * LEAST_S
    one.observe(Turn(512, 2.0))
    assert one.limit(CHUNK) == LEAST_S


def test_small_chunks_do_not_make_large_ones_forgotten():
    one = times(Turn(512, 20.0), *[Turn(16, 0.5)] * 100)
    assert one.limit(CHUNK) == MULTIPLE * 20


def test_a_turn_in_which_the_machine_was_away_teaches_nothing():
    one = times(Turn(512, 2.0, 0.1), Turn(512, 3600.0), Turn(step_s=3600.0))
    assert one.limit(CHUNK) == one.limit(STEP) == LEAST_S
