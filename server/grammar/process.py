"""Rank 0's end of the child process that tries grammars (checker.py).

Called by the one thread that compiles. Whatever becomes of the child (killed, stopped, stuck, slow
to start), every read, write and wait here has a deadline, and the next grammar gets another child.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.grammar.checker import COMPILE_CPU_S, COMPILE_WALL_S, PANIC

PROGRAM = Path(__file__).with_name("checker.py")
START_WALL_S = 120.0
PING_WALL_S = 10.0  # for a child that has nothing to do
ANSWER_WALL_S = COMPILE_WALL_S + 5.0  # the child's own limit comes first
REAP_S = 5.0
PIPE_BYTES = 65536
# How a fork ends that the grammar was too much for, as subprocess gives it.
TOO_SLOW = (-signal.SIGPROF,)
CRASHED = (
    -signal.SIGSEGV,
    -signal.SIGBUS,
    -signal.SIGABRT,
    -signal.SIGILL,
    -signal.SIGTRAP,
)


class CheckerFailed(Exception):
    """There is no verdict, and the grammar is not to blame. started: whether it was being tried;
    otherwise the next one would not fare better at once."""

    def __init__(self, message: str, started: bool) -> None:
        super().__init__(message)
        self.started = started


@dataclass(frozen=True)
class Verdict:
    """reason: why the grammar cannot be used, or "". bytes: memory that compiling it took."""

    reason: str
    bytes: int = 0


class Checker:
    """The child, started when first needed and again when it is of no more use. For one thread;
    stop() may be called by another."""

    def __init__(self, spec: dict[str, Any]) -> None:
        """spec: as make_tokenizer takes it."""
        self._spec = _line(spec)
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()  # of _child and _closed, for stop()
        self._closed = False

    def check(self, grammar: str) -> Verdict:
        """What the child says of a grammar. Raises CheckerFailed."""
        child = self._ready()
        answer = self._ask(child, _line({"grammar": grammar}), ANSWER_WALL_S)
        if answer is None:
            raise CheckerFailed(f"the grammar checker {self._end()}", started=True)
        if "reason" in answer:
            return Verdict(answer["reason"], answer["bytes"])
        if answer["ended"] in TOO_SLOW:
            return Verdict(f"it takes longer than {COMPILE_CPU_S:g} s to compile")
        if answer["ended"] in CRASHED:
            return Verdict(PANIC)
        raise CheckerFailed(f"a grammar's trial ended with {answer['ended']}", started=True)

    def stop(self) -> None:
        """Ends the child for good; any thread. A check that goes on raises CheckerFailed."""
        with self._lock:
            if self._child is not None and not self._closed:
                _kill(self._child)
            self._closed = True

    def close(self) -> None:
        """Lets go of it. Not while a check goes on."""
        self.stop()
        if self._child is not None:
            self._end()

    def _ready(self) -> "subprocess.Popen[bytes]":
        """A child that listens: one that was stopped or killed while it was idle costs nobody
        more than the time to notice it."""
        if self._child is not None:
            if self._ask(self._child, _line({}), PING_WALL_S) is not None:
                return self._child
            self._end()
        try:
            child = subprocess.Popen(
                # -P: the names of our modules must not hide the standard library's.
                [sys.executable, "-P", PROGRAM],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # a crash prints pages, and we say it in one line
                # So that Python spawns it: to fork a process that holds a model can take seconds.
                # The child closes what it has inherited.
                close_fds=False,
            )
        except OSError as error:
            raise CheckerFailed(f"no grammar checker can be started: {error}", False) from error
        for pipe in (child.stdin, child.stdout):
            os.set_blocking(pipe.fileno(), False)
        with self._lock:
            self._child = child
            if self._closed:
                _kill(child)
        if self._ask(child, self._spec, START_WALL_S) is None:
            raise CheckerFailed(f"the grammar checker {self._end()} while it started", False)
        return child

    def _ask(self, child: "subprocess.Popen[bytes]", question: bytes, seconds: float) -> Any:
        """The answer, or None if there is none in time, or never will be."""
        deadline = time.monotonic() + seconds
        into, out = child.stdin.fileno(), child.stdout.fileno()
        left, answer = memoryview(question), bytearray()
        try:
            while not answer.endswith(b"\n"):
                poll = select.poll()  # select() refuses descriptors from 1024 on
                poll.register(out, select.POLLIN)
                if left:
                    poll.register(into, select.POLLOUT)
                wait = deadline - time.monotonic()
                ready = [number for number, _ in poll.poll(wait * 1000)] if wait > 0 else []
                if not ready:
                    return None
                if into in ready:
                    left = left[os.write(into, left[:PIPE_BYTES]) :]
                if out in ready:
                    data = os.read(out, PIPE_BYTES)
                    if not data:
                        return None
                    answer += data
        except OSError:
            return None
        return json.loads(answer)

    def _end(self) -> str:
        """Lets go of the child, whatever it does. Returns what became of it, in words."""
        with self._lock:
            child, self._child = self._child, None
        # Its pipe may be closed a moment before it has ended.
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=0.2)
        code = child.returncode
        _kill(child)
        for pipe in (child.stdin, child.stdout):
            pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # one that waits for a dead disk
            child.wait(timeout=REAP_S)
        return "did not answer" if code is None else f"ended with {code}"


def _kill(child: "subprocess.Popen[bytes]") -> None:
    """Ends the child, and with it a fork that may be at work."""
    if child.poll() is None:
        child.kill()
    with contextlib.suppress(OSError):
        os.killpg(child.pid, signal.SIGKILL)


def _line(question: dict[str, Any]) -> bytes:
    return json.dumps(question).encode() + b"\n"
