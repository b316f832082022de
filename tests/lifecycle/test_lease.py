"""The lease on standard input: when a rank takes its launcher for lost."""

import os
import queue
import signal
import subprocess
import sys
import time

import pytest

from server.lifecycle import lease as lifeline
from server.lifecycle.lease import watch_lifeline
from tests.support.paths import ROOT

DEADLINE_S = 20


class Lease:
    """A watched pipe, and what the watcher said."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        self.lost: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.thread = watch_lifeline(self.lost.put, self.read_end)

    def renew(self) -> None:
        os.write(self.write_end, b"\n")

    def hang_up(self) -> None:
        if self.write_end is not None:
            os.close(self.write_end)
            self.write_end = None

    def reason(self) -> str:
        return self.lost.get(timeout=DEADLINE_S)


@pytest.fixture
def lease():
    lease = Lease()
    yield lease
    lease.hang_up()
    lease.thread.join(DEADLINE_S)
    os.close(lease.read_end)


def test_a_leased_rank_whose_launcher_hangs_up_is_told_once(lease):
    lease.renew()
    lease.hang_up()
    assert lease.reason() == "the launcher is gone"
    lease.thread.join(DEADLINE_S)
    assert lease.lost.empty()


def test_a_leased_rank_that_hears_nothing_is_told(monkeypatch):
    monkeypatch.setattr(lifeline, "LEASE_S", 0.1)
    lease = Lease()
    lease.renew()
    assert lease.reason().startswith("nothing heard from the launcher")
    lease.hang_up()


def test_renewing_keeps_the_lease(monkeypatch):
    monkeypatch.setattr(lifeline, "LEASE_S", 2.0)
    lease = Lease()
    for _ in range(30):
        lease.renew()
        time.sleep(0.1)
    assert lease.lost.empty() and lease.thread.is_alive()
    lease.hang_up()
    assert lease.reason() == "the launcher is gone"


def test_a_line_that_says_something_is_a_word_and_renews_the_lease_too():
    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    lost: queue.SimpleQueue[str] = queue.SimpleQueue()
    read, write = os.pipe()
    thread = watch_lifeline(lost.put, read, told.put)
    for part in (b"\n", b"137 rank 1 on mac1 ", "ended: \u00e4rgerlich\r\n\n".encode(), b"69 b\n"):
        os.write(write, part)
    assert told.get(timeout=DEADLINE_S) == "137 rank 1 on mac1 ended: \u00e4rgerlich"
    assert told.get(timeout=DEADLINE_S) == "69 b"
    os.close(write)
    assert lost.get(timeout=DEADLINE_S) == "the launcher is gone"
    thread.join(DEADLINE_S)
    os.close(read)


def test_without_a_first_newline_there_is_no_lease(lease, monkeypatch):
    """Started by hand with stdin at /dev/null, or by the plain mlx.launch."""
    monkeypatch.setattr(lifeline, "LEASE_S", 0.05)
    time.sleep(0.3)
    assert lease.lost.empty() and lease.thread.is_alive()
    lease.hang_up()
    lease.thread.join(DEADLINE_S)
    assert lease.lost.empty()


def test_a_closed_stdin_is_no_lease(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    lost: queue.SimpleQueue[str] = queue.SimpleQueue()
    watch_lifeline(lost.put).join(DEADLINE_S)
    assert lost.empty()


STOPPED = """
import sys, time
from server.lifecycle import lease as lifeline
lifeline.LEASE_S = 4.0
lifeline.watch_lifeline(lambda reason: print(reason, flush=True))
print("watching", flush=True)
time.sleep(600)
"""


def test_a_rank_that_was_stopped_with_its_launcher_keeps_its_lease():
    """The lease used to be over on waking, before the launcher could renew it."""
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout.readline() == b"watching\n"
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.send_signal(signal.SIGSTOP)
        time.sleep(8)
        process.send_signal(signal.SIGCONT)
        time.sleep(0.5)
        process.stdin.close()
        # The first that it says: nothing was lost before.
        assert process.stdout.readline() == b"the launcher is gone\n"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
