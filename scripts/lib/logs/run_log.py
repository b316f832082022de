"""The supervisor's output: a log file that may fail, and a terminal that may block.

Neither may stop the server, and its loop waits for neither: a thread each writes, from a queue
with a bound. What a disk refuses, or a disk that hangs does not take in time, is dropped and
counted; so is what a terminal does not read (Ctrl-S, a selection). A log that has reached its
size is turned: it becomes the newest of a few older parts (log_files.py), and no line is cut or
lost by it. Used by supervise.py.
"""

import contextlib
import os
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

from scripts.lib.logs.log_files import CONTINUES, part, turn
from server.observe.line_queue import LineQueue, write_all

FLUSH_S = 2.0  # At the end disk and terminal get this long each for what they have not taken.


def _stamp() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _note(why: str) -> Callable[[int], bytes]:
    return lambda count: f"({count} lines lost: {why})\n".encode()


class RunLog:
    """Writes whole lines to the log file and to stdout. max_bytes: of a part; 0 is no limit."""

    def __init__(self, path: Path, max_bytes: int = 0):
        # Where a link leads to: older parts belong on the same disk.
        self._path = Path(os.path.realpath(path))
        self._max_bytes = max_bytes
        self._size = 0  # Of the part in use, as far as we know.
        self._turn_above = max_bytes
        self._fd: int | None = None
        self._dropped = 0
        self._torn = False  # The disk took a part of a line.
        self._told = self._told_turn = False
        self._terminal_gone = False
        self._disk = LineQueue(self._store, name="disk", note=_note("the disk hung"))
        self._terminal = LineQueue(self._show, name="terminal", note=_note("nobody read them"))

    def say(self, text: str) -> None:
        """Write a line of the supervisor's own."""
        self.write([f"{_stamp()} supervisor: {text}".encode()], must=True)

    def write(self, lines: list[bytes], must: bool = False) -> None:
        """Write lines, given without their ends. Never waits."""
        for line in lines:
            self._disk.put(line + b"\n", must=must)
            self._terminal.put(line + b"\n", must=must)

    def flush(self) -> None:
        """Give disk and terminal a moment for the rest."""
        self._disk.flush(FLUSH_S)
        self._terminal.flush(FLUSH_S)

    def _store(self, line: bytes) -> None:
        data = line
        if self._dropped:
            data = f"({self._dropped} lines lost: the disk took none)\n".encode() + data
        if self._torn:
            data = b"\n" + data
        try:
            if self._fd is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._fd = self._open(self._path)
            if self._max_bytes and self._size + len(data) > self._turn_above:
                data = self._turn() + data
            written = os.write(self._fd, data)
        except OSError as error:
            self._dropped += 1
            if not self._told:
                self._told = True
                self._tell(f"cannot write {self._path}: {error.strerror}; going on")
            return
        self._size += written
        self._torn = written < len(data) and not data[:written].endswith(b"\n")
        self._dropped = 0 if written == len(data) else self._dropped + 1
        self._told = self._told and bool(self._dropped)

    def _open(self, path: Path) -> int:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        about = os.fstat(fd)
        self._size = about.st_size
        if not stat.S_ISREG(about.st_mode):
            self._max_bytes = 0  # A device or a pipe has no parts.
        return fd

    def _turn(self) -> bytes:
        """Go on in a new part, if this one is full; return the line it begins with.

        If that fails the lines go on into the old one, and it is tried again a bit later.
        """
        self._size = os.fstat(self._fd).st_size  # Somebody may have emptied it.
        if self._size < self._max_bytes // 2:
            return b""
        fresh = self._path.with_name(self._path.name + ".new")
        try:
            fresh.unlink(missing_ok=True)
            fd = self._open(fresh)  # First, since this is what a full disk refuses.
            try:
                turn(self._path)
                os.replace(fresh, self._path)
            except OSError:
                os.close(fd)
                raise
        except OSError as error:
            self._size = os.fstat(self._fd).st_size
            self._turn_above = self._size + self._max_bytes // 8
            if not self._told_turn:
                self._told_turn = True
                self._tell(f"cannot turn {self._path}: {error.strerror}; it grows on")
            return b""
        old, self._fd = self._fd, fd
        with contextlib.suppress(OSError):
            if os.path.sameopenfile(old, 2):  # --detach: what Python says goes there as well.
                os.dup2(fd, 2)
        os.close(old)
        self._turn_above, self._told_turn = self._max_bytes, False
        return _stamp().encode() + CONTINUES + part(self._path, 1).name.encode() + b"\n"

    def _tell(self, text: str) -> None:
        """Tell the terminal alone."""
        self._terminal.put(f"supervise: {text}\n".encode())

    def _show(self, line: bytes) -> None:
        if self._terminal_gone:
            return
        try:
            write_all(sys.stdout.fileno(), line)
        except OSError:  # The log goes on.
            self._terminal_gone = True
