"""Signals and limits while native code keeps the interpreter's lock."""

import signal
import subprocess
import sys

import pytest

from tests.support.faults import (
    ROOT,
)

NATIVE = """
import sys; sys.path.insert(0, {root!r})
import ctypes, threading
from server.lifecycle.shutdown import block_signals, signals_end_at_once
from server.lifecycle.watchdog import limit_native
block_signals()
with limit_native({limit}), signals_end_at_once():
    print("in", flush=True)
    ctypes.PyDLL(None).sleep(60)  # a PyDLL call keeps the interpreter's lock
"""


def in_native_code(limit: float) -> subprocess.Popen:
    program = [sys.executable, "-c", NATIVE.format(root=str(ROOT), limit=limit)]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "in\n"
    return process


def test_native_code_that_keeps_the_lock_is_ended_with_its_stack():
    process = in_native_code(0.5)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "Timeout" in errors and "most recent call first" in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_native_code_that_keeps_the_lock(number):
    process = in_native_code(60)
    process.send_signal(number)
    process.communicate(timeout=240)
    assert process.returncode == -number


THREADS_OF_NATIVE_CODE = """
import sys; sys.path.insert(0, {root!r})
import os, signal, threading, time
from server.lifecycle.shutdown import block_signals, signals_end_at_once
block_signals()
with signals_end_at_once():
    native = threading.Thread(target=time.sleep, args=(60,), daemon=True)
    native.start()
os.kill(os.getpid(), signal.SIGTERM)
print(signal.sigwait({{signal.SIGTERM}}).name)
"""


def test_threads_that_native_code_starts_take_no_signals_later():
    """MLX's threads did, as they inherited the mask: a SIGTERM ended rank 0 without a word."""
    program = [sys.executable, "-c", THREADS_OF_NATIVE_CODE.format(root=str(ROOT))]
    done = subprocess.run(program, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout) == (0, "SIGTERM\n"), done.stderr
