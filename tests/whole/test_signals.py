"""Signals to a real server: it drains, and ends when asked again."""

import os
import signal
import time

import pytest

from tests.support.fault_checks import SOON_S, assert_told, start
from tests.support.faults import (
    ANSWERED,
    DECODE,
    PROBE,
    Client,
    wait_for,
)

pytestmark = pytest.mark.ranks


SECOND_LOOK_S = 5  # between the launcher's two SIGTERMs (GRACE_S)


def test_the_first_signal_drains_and_the_second_ends_at_once(server):
    one = start(server())
    held = one.hold(DECODE)
    os.kill(one.supervisor, signal.SIGTERM)
    wait_for(lambda: one.get("/health")[1].get("status") == "draining", "the drain")
    assert one.get("/health")[0] == 503
    newcomer = one.ask()
    assert newcomer.outcome == "503" and int(newcomer.retry_after) >= 1
    assert newcomer.error["code"] == "draining"
    assert all(client.is_alive() for client in held), "what runs goes on"
    again = time.monotonic()
    os.kill(one.supervisor, signal.SIGTERM)
    assert_told(held, "shutting_down")
    assert one.wait_gone(again) < SOON_S
    assert "over: stopped as asked" in one.last_line()


@pytest.mark.thorough
def test_signals_are_heard_while_a_collective_blocks(server):
    """To the rank itself: the launcher would have its stopped peer go on."""
    one = start(server(STALL_TIMEOUT=60))
    held = one.hold(DECODE)
    os.kill(one.rank(1), signal.SIGSTOP)
    time.sleep(0.5)  # rank 0 is in the collective now
    rank_zero = one.rank(0)
    os.kill(rank_zero, signal.SIGTERM)
    wait_for(lambda: one.get("/health")[1].get("status") == "draining", "the drain")
    assert one.get("/health")[0] == 503
    newcomer = one.ask()
    assert (newcomer.outcome, newcomer.error["code"]) == ("503", "draining")
    assert int(newcomer.retry_after) >= 1
    assert all(client.is_alive() for client in held)
    os.kill(rank_zero, signal.SIGTERM)
    assert_told(held, "shutting_down")
    wait_for(lambda: rank_zero not in one.left(), "rank 0 to leave", SOON_S)


def test_stopping_a_server_with_a_stopped_rank_drains_and_leaves_nothing(server):
    one = start(server(STALL_TIMEOUT=60, DRAIN_TIMEOUT=90))
    short = Client(one.port, PROBE | {"max_tokens": 400}, stream=True)
    wait_for(lambda: short.text, "tokens")
    os.kill(one.rank(1), signal.SIGSTOP)
    asked = time.monotonic()
    os.kill(one.supervisor, signal.SIGTERM)
    one.wait_gone(asked)
    assert short.outcome == ANSWERED and len(short.text) >= 300
    assert "over: stopped as asked" in one.last_line()


@pytest.mark.thorough
def test_a_stop_is_heard_while_ranks_wait_for_one_that_is_missing(server):
    one = server()
    (one.fault_dir / "hang-1").touch()
    (one.fault_dir / "hang-0").touch()
    starting = one.begin()
    wait_for(lambda: (one.run_dir / "supervisor.pid").exists(), "the supervisor")
    (one.fault_dir / "hang-0").unlink()
    wait_for(lambda: "[rank 0] INFO joining" in one.log(), "rank 0 to wait")
    time.sleep(0.5)  # from the line to the native call
    asked = time.monotonic()
    os.kill(one.supervisor, signal.SIGTERM)
    assert one.wait_gone(asked) < SECOND_LOOK_S
    assert starting.wait(SOON_S) == 1
    assert "over: stopped as asked" in one.last_line()
