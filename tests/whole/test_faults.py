"""Faults of ranks that serve, through the real run script: what clients see, and that service comes
back.

A representative part of what scripts/dev/fault_table.py runs; docs/operations.md holds its table.
Most strike one server, one after another, as faults do.
"""

import os
import signal
import time

import pytest

from tests.support.fault_checks import SOON_S, assert_served_again, assert_told, start
from tests.support.faults import (
    DECODE,
    IDLE,
    PREFILL,
    STALL_TIMEOUT_S,
    STREAMS,
    Server,
    wait_for,
)

pytestmark = pytest.mark.ranks

STALLED = " s at: engine step"  # after STALL_TIMEOUT, or later where the machine is busy


@pytest.fixture(scope="module")
def servers(tiny_model, tmp_path_factory):
    """next_one() is a server that serves: the last test's, which must recover from what befalls it,
    or a new one where it has not."""
    made: list[Server] = []

    def next_one() -> Server:
        if not (made and made[-1].serve_another_test()):
            while made:
                made.pop().close()
            made.append(Server(tmp_path_factory.mktemp("server"), tiny_model))
            start(made[-1])
        return made[-1]

    yield next_one
    for one in made:
        one.close()


@pytest.fixture
def one(servers):
    return servers()


def test_a_killed_worker_under_eight_streams_is_told_to_all_and_service_returns(one):
    held = one.hold(STREAMS)
    struck = time.monotonic()
    os.kill(one.rank(1), signal.SIGKILL)
    assert_told(held)
    assert_served_again(one, struck, "rank 1 on 127.0.0.1 exited with code 137 (ended by SIGKILL)")


def test_a_killed_rank_zero_is_replaced(one):
    """Its clients see a cut: nobody is left to tell them."""
    held = one.hold(DECODE)
    struck = time.monotonic()
    os.kill(one.rank(0), signal.SIGKILL)
    for client in held:
        client.join(SOON_S)
        assert client.ended_at is not None, "a client hangs"
    assert_served_again(one, struck, "rank 0 on 127.0.0.1 exited with code 137")


def test_a_stopped_worker_is_found_by_the_watchdog(one):
    held = one.hold(DECODE)
    struck = time.monotonic()
    os.kill(one.rank(1), signal.SIGSTOP)
    assert_told(held)
    assert max(client.ended_at for client in held) - struck > STALL_TIMEOUT_S - 1
    assert_served_again(one, struck, STALLED)
    assert "no progress for " in one.log() and "stacks of all threads follow" in one.log()


@pytest.mark.sweep(3)
@pytest.mark.parametrize("phase", [IDLE, PREFILL, DECODE])
def test_a_pause_of_the_whole_machine_ends_nothing(one, phase):
    """Ctrl-Z and fg, a laptop's lid: each rank's watchdog bit on waking."""
    ranks = one.tree()
    held = one.hold(phase)
    one.pause(STALL_TIMEOUT_S + 3)
    assert all(map(one.goes_on, held))
    time.sleep(STALL_TIMEOUT_S + 2)  # nor does a watchdog bite later
    assert one.tree() == ranks
    assert one.get("/health")[1]["restarts"] == one.restarts
    assert all(map(one.goes_on, held))
    for client in held:
        client.leave()
    assert one.ask().text == one.reference


@pytest.mark.thorough
def test_a_rank_that_was_away_alone_leaves_when_it_finds_the_others_gone(server):
    """The others cannot know when it comes back: they end, and all are started again."""
    one = start(server(STALL_TIMEOUT=3))
    held = one.hold(DECODE)
    away = one.rank(1)
    struck = time.monotonic()
    os.kill(away, signal.SIGSTOP)
    assert_told(held)
    os.kill(away, signal.SIGCONT)
    wait_for(lambda: away not in one.left(), "the rank that was away to leave")
    assert_served_again(one, struck, STALLED)


@pytest.mark.thorough
def test_a_stopped_rank_zero_is_continued_to_tell_its_clients(one):
    """Its SIGTERM used to lie unread until SIGKILL cut every client."""
    held = one.hold(PREFILL)
    struck = time.monotonic()
    os.kill(one.rank(0), signal.SIGSTOP)
    assert_told(held)
    assert_served_again(one, struck, "rank 1 on 127.0.0.1 exited with code 75 (watchdog")


def test_a_rank_that_raises_in_its_step_ends_the_run_with_its_words(one):
    held = one.hold(DECODE)
    struck = time.monotonic()
    (one.fault_dir / "raise-1").touch()
    assert_told(held)
    assert_served_again(one, struck, "code 70 (unexpected error): ArithmeticError: a fault put in")


def test_a_killed_launcher_takes_its_ranks_along_and_is_replaced(one):
    held = one.hold(PREFILL)
    struck = time.monotonic()
    os.kill(one.launcher, signal.SIGKILL)
    assert_told(held)
    assert_served_again(one, struck, "the launcher ended with code 137 (ended by SIGKILL)")


def test_a_killed_supervisor_leaves_nothing_but_a_clear_last_line(one):
    """The line used to be lost: it went into the pipe of the supervisor that was gone."""
    held = one.hold(DECODE)
    struck = time.monotonic()
    os.kill(one.supervisor, signal.SIGKILL)
    assert_told(held, "shutting_down")
    one.wait_gone(struck)
    assert one.last_line() == (
        "mlx_launch: over: every rank has been ended, because the supervisor is gone"
    )
    assert one.start() == 0, one.output  # what it left behind is in nobody's way


@pytest.mark.thorough
def test_a_log_that_takes_nothing_stops_neither_service_nor_restart(server):
    one = server()
    one.log_path.symlink_to("/dev/full")
    start(one)
    struck = time.monotonic()
    os.kill(one.rank(1), signal.SIGKILL)
    assert_served_again(one, struck, "exited with code 137")


@pytest.mark.thorough
def test_a_stopped_supervisor_stops_no_service(server):
    """Ctrl-Z stops the supervisor alone. After 1,300 requests its pipe was full, then the ranks',
    and every thread waited in a log call: 503 for ever."""
    one = start(server(LOG_LEVEL="DEBUG"))
    os.kill(one.supervisor, signal.SIGSTOP)
    one.make_log_lines(4000)  # more than pipes and queues hold
    assert one.ask().text == one.reference
    assert one.get("/health")[0] == 200
    os.kill(one.supervisor, signal.SIGCONT)
    wait_for(lambda: "lines of the ranks dropped: nobody read them" in one.log(), "the count")
    struck = time.monotonic()
    os.kill(one.rank(1), signal.SIGKILL)
    assert_served_again(one, struck, "rank 1 on 127.0.0.1 exited with code 137")


@pytest.mark.thorough
def test_a_full_disk_under_run_is_named_and_ends_no_service(server):
    """Each restarted rank died writing its pid file: five failures, over, no word of the disk."""
    one = server()
    if reason := one.give_small_disk():
        pytest.skip(reason)
    start(one)
    ranks = {one.rank(0), one.rank(1)}
    give_back = one.fill_disk()
    os.kill(one.rank(1), signal.SIGKILL)
    one.wait_good_answer(time.monotonic())
    health = one.get("/health")[1]
    problem = f"cannot write {one.run_dir}/rank-0.pid: No space left on device"
    assert (health["detail"], health["restarts"]) == (f"serving; {problem}", 1)
    for rank in (0, 1):
        assert f"[rank {rank}] WARNING cannot write" in one.log()
    give_back()
    written = [one.run_dir / f"rank-{rank}.pid" for rank in (0, 1)]
    wait_for(lambda: all(path.exists() for path in written), "the pid files")
    assert ranks.isdisjoint({one.rank(0), one.rank(1)})
    assert one.orphans() == []
    wait_for(lambda: one.get("/health")[1]["detail"] == "serving", "no more trouble")


@pytest.mark.thorough
def test_six_failures_in_a_row_do_not_end_a_service_that_served_each_time(one):
    for restarts in range(1, 7):
        struck = time.monotonic()
        os.kill(one.rank(1), signal.SIGKILL)
        assert_served_again(one, struck, "exited with code 137", restarts)
