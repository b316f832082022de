"""The supervisor's output: a log file that may fail, and a terminal that may block.

Neither may stop the server. A line that the disk does not take is dropped and counted; a
terminal that does not read (Ctrl-S, a selection) is fed by a thread of its own through a
bounded queue. Used by supervise.py.
"""

import contextlib
import os
import queue
import sys
import threading
import time
from pathlib import Path

TERMINAL_LINES = 10_000  # Held for a terminal that does not read; then they are dropped.
FLUSH_S = 2.0  # At the end a terminal gets this long for what it has not shown.


class RunLog:
    """Writes whole lines to the log file and to stdout."""

    def __init__(self, path: Path):
        self._path = path
        self._fd: int | None = None
        self._dropped = 0
        self._torn = False  # The disk took a part of a line.
        self._told = False
        self._terminal: queue.Queue[bytes | None] = queue.Queue(TERMINAL_LINES)
        self._shower = threading.Thread(target=self._show, daemon=True)
        self._shower.start()

    def say(self, text: str) -> None:
        """Write a line of the supervisor's own."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        self.write([f"{stamp} supervisor: {text}".encode()])

    def write(self, lines: list[bytes]) -> None:
        """Write lines, given without their ends."""
        for line in lines:
            self._store(line + b"\n")
            with contextlib.suppress(queue.Full):
                self._terminal.put_nowait(line + b"\n")

    def close(self) -> None:
        """Give the terminal a moment for the rest."""
        with contextlib.suppress(queue.Full):
            self._terminal.put(None, timeout=FLUSH_S)
        self._shower.join(FLUSH_S)

    def _store(self, line: bytes) -> None:
        data = line
        if self._dropped:
            data = f"({self._dropped} lines lost: the disk took none)\n".encode() + data
        if self._torn:
            data = b"\n" + data
        try:
            if self._fd is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            written = os.write(self._fd, data)
        except OSError as error:
            self._dropped += 1
            if not self._told:
                self._told = True
                message = f"supervise: cannot write {self._path}: {error.strerror}; going on\n"
                with contextlib.suppress(queue.Full):
                    self._terminal.put_nowait(message.encode())
            return
        self._torn = written < len(data) and not data[:written].endswith(b"\n")
        self._dropped = 0 if written == len(data) else self._dropped + 1
        self._told = self._told and bool(self._dropped)

    def _show(self) -> None:
        fd = sys.stdout.fileno()
        while (line := self._terminal.get()) is not None:
            try:
                while line:
                    line = line[os.write(fd, line) :]
            except BlockingIOError:
                os.set_blocking(fd, True)
            except OSError:  # The terminal is gone. The log goes on.
                return
