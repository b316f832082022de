"""Lines for somebody who does not read: nobody waits, and what is lost is counted and told."""

import os
import subprocess
import sys
import threading

import pytest

from server.observe.line_queue import LineQueue, write_all
from tests.support.paths import ROOT

DEADLINE_S = 60


class Gate:
    """A reader that takes lines only while it is open."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.asked = threading.Event()
        self.taken: list[bytes] = []

    def take(self, line: bytes) -> None:
        self.asked.set()
        assert self.open.wait(DEADLINE_S)
        self.taken.append(line)


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.open.set()


def note(count: int) -> bytes:
    return b"%d missing" % count


def test_lines_arrive_in_order():
    taken = []
    queue = LineQueue(taken.append, name="test")
    lines = [b"%d" % n for n in range(1000)]
    for line in lines:
        queue.put(line)
    assert queue.flush(DEADLINE_S)
    assert taken == lines
    assert queue.dropped == 0


def test_what_is_held_for_a_stuck_reader_has_a_bound_and_the_rest_is_counted(gate):
    dropped = []
    queue = LineQueue(
        gate.take, name="test", held_bytes=1000, note=note, on_drop=lambda: dropped.append(1)
    )
    for n in range(100):
        queue.put(b"%03d" % n + b"x" * 97)
    assert not queue.flush(0)
    assert (queue.dropped, len(dropped)) == (90, 90)
    gate.open.set()
    assert queue.flush(DEADLINE_S)
    assert [line[:3] for line in gate.taken[:10]] == [b"%03d" % n for n in range(10)]
    assert gate.taken[10:] == [b"90 missing"]  # although nothing came after them


def test_the_note_stands_where_lines_are_missing(gate):
    queue = LineQueue(gate.take, name="test", held_bytes=100, note=note)
    for _ in range(20):
        queue.put(b"x" * 10)
    gate.open.set()
    assert queue.flush(DEADLINE_S)
    queue.put(b"later")
    assert queue.flush(DEADLINE_S)
    assert gate.taken[10:] == [b"10 missing", b"later"]


def test_last_words_get_in_when_all_else_is_dropped_but_not_without_end(gate):
    queue = LineQueue(gate.take, name="test", held_bytes=100)
    for _ in range(20):
        queue.put(b"x" * 10)
    for _ in range(1000):
        queue.put(b"last words", must=True)
    gate.open.set()
    assert queue.flush(DEADLINE_S)
    assert len(gate.taken) == 20
    assert gate.taken.count(b"last words") == 10


def test_a_reader_that_fails_is_asked_again():
    taken = []

    def take(line: bytes) -> None:
        taken.append(line)
        raise OSError(28, "No space left on device")

    queue = LineQueue(take, name="test")
    queue.put(b"one")
    queue.put(b"two")
    assert queue.flush(DEADLINE_S)
    assert taken == [b"one", b"two"]


def test_a_finalizer_that_logs_while_a_line_is_put_does_not_lock_up():
    queue = LineQueue(lambda line: None, name="test")
    with queue._changed:  # as put holds it when the collector runs
        queue.put(b"from a finalizer")
    assert queue.flush(DEADLINE_S)


def test_all_is_written_through_a_pipe_that_does_not_block():
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    data = os.urandom(1 << 20)
    writer = threading.Thread(target=write_all, args=(write_end, data))
    writer.start()
    found = b""
    while len(found) < len(data):
        found += os.read(read_end, 1 << 16)
    writer.join()
    assert found == data
    os.close(read_end)
    os.close(write_end)


# -- a rank's log. In processes of their own, with a pipe for stderr as under the launcher.

PRELUDE = """
import logging, os, sys, threading, warnings
from server.observe.rank_log import RankLog
log = RankLog(3)
log.take_streams()
logging.basicConfig(handlers=[log], format="%(levelname)s %(message)s", level="INFO", force=True)
"""


def start(body: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + body], cwd=ROOT,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen) -> str:
    try:
        _, told = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
    return told


def test_all_that_a_rank_says_goes_one_way_and_arrives():
    process = start("""
logging.info("logged")
print("printed, ", end="")
print("to its end")
print("to stderr", file=sys.stderr)
warnings.warn("a warning")
def fail(): raise ValueError("in a thread")
thread = threading.Thread(target=fail)
thread.start()
thread.join()
logging.error("last")
logging.shutdown()
os._exit(7)
""")
    told = finish(process).splitlines()
    assert process.returncode == 7
    assert told[0] == "INFO logged"
    assert told[1:3] == ["printed, to its end", "to stderr"]
    assert "UserWarning: a warning" in told[3]
    assert "ValueError: in a thread" in told
    assert told[-1] == "ERROR last"


SPEAKS = """
import io
line = "x" * 200
for _ in range(100_000):
    logging.info(line)
    print(line)
    print(line, file=sys.stderr)
os.write(1, b"%d" % log.dropped)
os.close(1)
"""


def test_nobody_waits_for_a_pipe_that_nobody_reads_and_what_is_lost_is_counted():
    process = start(SPEAKS + "sys.__stdin__.read(1)\nlogging.shutdown()\nos._exit(0)")
    dropped = int(process.stdout.read())  # it got here, although nobody read its stderr
    assert dropped > 200_000
    told = finish(process).splitlines()
    lost = [int(line.split("WARNING ")[1].split()[0]) for line in told if "[rank 3]" in line]
    assert sum(lost) == dropped
    assert "lines dropped: nobody read them" in told[-1]
    assert len(told) - len(lost) + dropped == 300_000


@pytest.mark.parametrize(
    "end",
    [
        "logging.shutdown(); os._exit(75)",
        "sys.exit(75)",
        # The watchdog's end, and the one for native code that keeps the interpreter to itself.
        "from server.lifecycle.watchdog import Watchdog\n"
        "Watchdog(0.3, on_stall=lambda reason: None).start()\nos.read(os.pipe()[0], 1)",
        "import ctypes\nfrom server.lifecycle.watchdog import limit_native\n"
        "with limit_native(0.5): ctypes.PyDLL(None).sleep(1000)",
    ],
)
def test_a_full_pipe_holds_up_no_end(end):
    process = start(SPEAKS + end)
    try:
        process.stdout.read()
        assert process.wait(DEADLINE_S) == (1 if "limit_native" in end else 75)
    finally:
        process.kill()
        process.communicate()


def test_the_stacks_of_all_threads_begin_with_the_main_threads():
    process = start("""
from server.lifecycle.watchdog import Watchdog
threading.Thread(target=threading.Event().wait, name="bystander", daemon=True).start()
def stuck(): os.read(os.pipe()[0], 1)
Watchdog(0.3, on_stall=lambda reason: None).start()
stuck()
""")
    told = finish(process).splitlines()
    assert process.returncode == 75
    stacks = [line for line in told if "most recent call first" in line]
    assert "[MainThread]" in stacks[0]
    assert any("[bystander]" in line for line in stacks)
    assert " in stuck" in told[told.index(stacks[0]) + 1]
