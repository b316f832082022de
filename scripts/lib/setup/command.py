"""One command of a step: shown as it could be pasted, and run until it ends or Ctrl-C comes.

A command has a session of its own, so that Ctrl-C reaches us alone: we end it, and say in one line
how to go on, in place of what it and everything below it would say. One that asks its user for a
password keeps our terminal.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

END_S = 20.0  # for what it does at Ctrl-C; then SIGKILL
LAST_LINES = 3


@dataclass(frozen=True)
class Command:
    """words: argv. env: settings that go with it. asks: on the terminal, for a password say."""

    words: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    asks: bool = False

    def __str__(self) -> str:
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.env.items()]
        return " ".join([*settings, shlex.join(self.words)])


@dataclass(frozen=True)
class Ended:
    """How it ended. said: its last lines on stderr, for the summary of a failure."""

    code: int
    said: str


def run(command: Command, cwd: Path) -> Ended:
    """Its output goes where ours goes. KeyboardInterrupt after it has been ended."""
    env = os.environ | command.env
    try:
        if command.asks:
            return Ended(subprocess.run(command.words, cwd=cwd, env=env).returncode, "")
        return _run_apart(command.words, cwd, env)
    except OSError as error:
        return Ended(127, f"{command.words[0]}: {error.strerror}")


def _run_apart(words: tuple[str, ...], cwd: Path, env: Mapping[str, str]) -> Ended:
    ours, theirs = _stream()
    try:
        process = subprocess.Popen(
            words, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stderr=theirs, start_new_session=True
        )
    except OSError:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    relay = _Relay(ours)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        relay.mute()
        _end(process)
        raise
    relay.finish()
    return Ended(code, relay.last())


def _stream() -> tuple[int, int]:
    """Its stderr, as we read it and as it writes it: a terminal where ours is, for its bars."""
    return os.openpty() if sys.stderr.isatty() else os.pipe()


def _end(process: subprocess.Popen) -> None:
    for signum in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signum)
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            process.wait(END_S)
            return


class _Relay:
    """Passes on what it writes, until it is muted, and keeps the end of it. A thread of its own."""

    def __init__(self, source: int):
        self._source = source
        self._muted = threading.Event()
        self._kept: deque[bytes] = deque(maxlen=64)
        self._thread = threading.Thread(target=self._pass_on, daemon=True)
        self._thread.start()

    def _pass_on(self) -> None:
        # A terminal whose other end was closed gives an error in place of an end.
        with contextlib.suppress(OSError):
            while data := os.read(self._source, 65536):
                self._kept.append(data[-4096:])
                if not self._muted.is_set():
                    sys.stderr.buffer.write(data)
                    sys.stderr.buffer.flush()

    def mute(self) -> None:
        self._muted.set()

    def finish(self) -> None:
        # What it has left running may hold the stream open.
        self._thread.join(1.0)

    def last(self) -> str:
        text = b"".join(self._kept).decode("utf-8", "replace").replace("\r", "\n")
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        return "\n".join(lines[-LAST_LINES:])
