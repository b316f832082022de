"""The watchdog, in processes of its own: it must end them whatever their main thread does."""

import signal
import subprocess
import sys
import time

import pytest

from server.protocol.exit_codes import STALLED
from tests.support.paths import ROOT

DEADLINE_S = 60
PRELUDE = """
import logging, os, sys, threading, time
from server.lifecycle.watchdog import Watchdog
logging.basicConfig(stream=sys.stderr)

def stuck_in_native_code():
    os.read(os.pipe()[0], 1)

def stuck_on_a_lock():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()

def on_stall(reason):
    print("told:", reason, flush=True)
"""


def run(body: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + body],
        cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.parametrize("place", ["stuck_in_native_code", "stuck_on_a_lock"])
def test_a_main_thread_without_progress_ends_the_process_with_stacks(place):
    ended = run(f"""
watchdog = Watchdog(0.3, on_stall)
watchdog.start()
threading.Thread(target=time.sleep, args=(100,), name="bystander").start()
watchdog.progress("meeting")
{place}()
""")
    assert ended.returncode == STALLED
    assert "told: no progress for" in ended.stdout and "at: meeting" in ended.stdout
    assert f"in {place}" in ended.stderr  # the main thread's stack
    assert ended.stderr.count("hread 0x") >= 2  # and the others'
    assert f"ending with code {STALLED}" in ended.stderr.splitlines()[-1]


def test_a_start_without_any_progress_counts_too():
    assert run("Watchdog(0.3, on_stall).start(); stuck_in_native_code()").returncode == STALLED


def test_progress_keeps_it_alive():
    ended = run("""
watchdog = Watchdog(1.0, on_stall)
watchdog.start()
for _ in range(30):
    watchdog.progress("step")
    time.sleep(0.1)
print("alive")
""")
    assert (ended.returncode, ended.stdout) == (0, "alive\n")


def test_a_longer_limit_while_loading_gives_way_to_a_short_one():
    ended = run("""
watchdog = Watchdog(60, on_stall)
watchdog.start()
watchdog.progress("loading")
time.sleep(1.5)
print("loaded", flush=True)
watchdog.set_limit(0.3)
stuck_in_native_code()
""")
    assert ended.returncode == STALLED
    assert ended.stdout.startswith("loaded\ntold: no progress for")


def test_last_words_that_fail_do_not_save_it():
    ended = run("""
def fail(reason):
    raise RuntimeError("no last words")
Watchdog(0.3, fail).start()
stuck_in_native_code()
""")
    assert ended.returncode == STALLED


def test_it_does_not_hold_a_process_that_ends_by_itself():
    assert run("Watchdog(60, on_stall).start()").returncode == 0


@pytest.mark.parametrize(
    "body",
    [
        # The launcher is stopped and reads no more: whoever logs waits for ever, with the lock.
        "Watchdog(0.3, on_stall).start()\nwhile True: logging.error('x' * 1000)",
        "Watchdog(0.3, lambda reason: time.sleep(1000)).start(); stuck_in_native_code()",
    ],
)
def test_neither_a_full_pipe_nor_endless_last_words_save_it(body):
    process = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + body], cwd=ROOT, stderr=subprocess.PIPE
    )
    try:
        assert process.wait(DEADLINE_S) == STALLED
    finally:
        process.kill()
        process.communicate()


STOPPED_WHILE_IT_WAITS = """
from server.lifecycle.turn_times import TurnTimes
watchdog = Watchdog(1.0, on_stall)
watchdog.start()
watchdog.follow(1.0, TurnTimes(1.0))
watchdog.progress("engine step")
print("waiting", flush=True)
sys.stdin.readline()
watchdog.progress("meeting")
print("went on", flush=True)
sys.stdin.readline()
"""


def test_a_process_that_was_stopped_for_longer_than_the_limit_goes_on():
    """Ctrl-Z and fg, a debugger: it used to end itself on waking, before its main thread had got as
    far as to say that it makes progress. Then it still notices when there is none."""
    process = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + STOPPED_WHILE_IT_WAITS],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(4)
        process.send_signal(signal.SIGCONT)
        print(file=process.stdin, flush=True)
        assert process.stdout.readline() == "went on\n"
        assert process.wait(DEADLINE_S) == STALLED
        assert "at: meeting" in process.stderr.read()
    finally:
        process.kill()
        process.communicate()


def test_a_turn_may_take_a_multiple_of_what_such_turns_have_taken():
    ended = run("""
from types import SimpleNamespace
from server.lifecycle.turn_times import CHUNK, TurnTimes
times = TurnTimes(1.0)
times.observe(SimpleNamespace(computed=512, chunk_s=0.3, step_s=0.0))
watchdog = Watchdog(60, on_stall)
watchdog.start()
watchdog.follow(1.0, times)
watchdog.progress(CHUNK)
time.sleep(3)
print("computed", flush=True)
watchdog.progress("engine step")
stuck_in_native_code()
""")
    assert ended.returncode == STALLED
    assert ended.stdout.startswith("computed\ntold: no progress for")
    assert "at: engine step\n" in ended.stdout
