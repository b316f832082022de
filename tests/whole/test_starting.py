"""Faults of a server that starts, through the real run script."""

import os
import re
import signal
import socket
import time

import pytest

from tests.support.fault_checks import SOON_S, start
from tests.support.faults import (
    Stranger,
    leave_rank_zero_stopped,
    wait_for,
)

pytestmark = pytest.mark.ranks


@pytest.mark.sweep(2)
@pytest.mark.parametrize("missing", [0, 1])
def test_a_rank_that_never_comes_up_ends_the_start(server, missing):
    """MLX waits for it in native code with the interpreter's lock held: no thread of rank 0's
    ran, so neither its watchdog nor a SIGTERM ended it, ever."""
    one = server(JOIN_TIMEOUT=4)
    (one.fault_dir / f"hang-{missing}").touch()
    assert one.start("--no-restart") == 1
    last = one.last_line()
    assert f"over: restarts are off; the last: rank {1 - missing}" in last
    assert "the other ranks did not join it within JOIN_TIMEOUT" in last
    assert last in one.output
    assert not one.left()


@pytest.mark.parametrize("mute", [0, 1])
@pytest.mark.sweep(2)
def test_a_rank_that_joins_and_falls_silent_is_named(server, mute):
    """As one does behind a dead wire: it stood at "handshake" for a quarter of an hour."""
    one = server(HANDSHAKE_TIMEOUT=2)
    (one.fault_dir / f"mute-{mute}").touch()
    assert one.start("--no-restart") == 1
    last = one.last_line()
    assert f"the last: rank {1 - mute} on 127.0.0.1 exited with code 68" in last
    assert re.search(r"no progress for \d+ s at: rank 0 \(127\.0\.0\.1:", last), last
    assert ") and rank 1 (127.0.0.1:" in last and "exchange a word; look for" in last
    assert not one.left()


@pytest.mark.thorough
@pytest.mark.parametrize("deed", ["talks", "leaves"])
def test_a_stranger_at_a_ring_port_costs_a_start_one_more_try(server, deed):
    """MLX takes whoever calls for a neighbour. The start stood for LOAD_TIMEOUT, and was lost."""
    one = server(JOIN_TIMEOUT=12)
    with Stranger(one, deed) as stranger:
        assert one.start() == 0, one.output
    assert stranger.called.is_set()
    assert one.log().count("started launcher") == 2
    assert "failed: rank" in one.log() and "code 68 (the ranks did not join)" in one.log()
    assert one.get("/health")[1]["restarts"] == 1 and one.orphans() == []


def test_a_rank_that_dies_while_it_loads_ends_the_start(server):
    """Long before LOAD_TIMEOUT, though rank 0 waits for it in a collective."""
    one = server()
    (one.fault_dir / "load-1").touch()
    starting = one.begin("--no-restart")
    wait_for(lambda: one.get("/health")[1].get("detail") == "loading on 2 ranks", "loading")
    time.sleep(1)  # into the collective
    os.kill(one.rank(1), signal.SIGKILL)
    assert starting.wait(SOON_S) == 1
    last = one.last_line()
    assert "over: restarts are off; the last: rank 1" in last and "SIGKILL" in last
    assert not one.left()


def test_a_taken_port_is_named_before_anything_is_started(server):
    one = server()
    with socket.create_server(("127.0.0.1", one.port)):
        assert one.start() == 1
    assert f"port {one.port} of 127.0.0.1 is taken by something else" in one.output
    assert not one.left() and not one.run_dir.exists()


@pytest.mark.thorough
def test_a_fault_right_after_the_start_is_a_failure_of_a_server_that_served(server):
    """--detach returned when /health was ready, up to half a second before the supervisor had seen
    it: a fault in between counted as a start that failed, and nothing was started again."""
    one = start(server())
    assert "supervisor: ready" in one.log()


def test_a_stopped_rank_zero_that_nobody_watches_is_told_and_ended(server):
    """With supervisor and launcher killed it kept the port, and 'something else' was blamed."""
    one = start(server())
    rank_zero = one.rank(0)
    leave_rank_zero_stopped(one)
    assert one.start() == 1
    line = f"port {one.port} of 127.0.0.1 is held by rank 0 (pid {rank_zero}, stopped) of run "
    assert line in one.output and f"HTTP_PORT={one.port} scripts/stop_openai_clu" in one.output
    assert rank_zero in one.left()
    assert one.stop() == 0
    assert not one.left()
    start(one)


def test_of_two_starts_at_once_one_serves_and_is_found(server):
    one = server()
    scripts = [one.begin(), one.begin()]
    outputs = [script.communicate(timeout=120)[0] for script in scripts]
    codes = [script.returncode for script in scripts]
    assert sorted(codes) == [0, 1], outputs
    loser = outputs[codes.index(1)]
    assert "already running" in loser, loser
    health = one.get("/health")[1]
    one.run_ids.add(health["run_id"])
    told = (one.run_dir / "started_with").read_text()
    assert f"RUN_ID={health['run_id']}\n" in told
    assert one.stop() == 0
    assert not one.left()
