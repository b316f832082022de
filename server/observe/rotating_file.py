"""A file of lines that nobody waits for: a full disk, or one that hangs, costs lines only.

Any thread of rank 0 hands items over and turns each into a line: what is held for a slow disk has
a bound in bytes, which items, whole prompts perhaps, have not. A thread of a LineQueue writes. A
file that has reached its size becomes .1, and the parts before it move on, up to .4.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from server.observe.line_queue import LineQueue

KEPT = 4  # older parts
HELD_BYTES = 32 << 20  # for a slow disk; then lines are dropped
ON_THEIR_WAY_S = 0.05  # at the end, for what is just being handed over
CLOSE_S = 1.0  # at the end, for what has not been written

log = logging.getLogger(__name__)


class RotatingFile:
    """write(item) makes a line, without its end. max_bytes: of a part; 0 is no limit. on_drop
    hears of each line that is lost."""

    def __init__(
        self,
        path: Path,
        write: Callable[[Any], str],
        max_bytes: int = 0,
        on_drop: Callable[[], None] = lambda: None,
    ) -> None:
        self._path = path
        self._make = write
        self._max_bytes = max_bytes
        self._on_drop = on_drop
        self._fd: int | None = None
        self._size = 0
        self._torn = False  # the disk took a part of a line
        self._told = False
        self._lines = LineQueue(self._store, name=path.name, held_bytes=HELD_BYTES, on_drop=on_drop)

    def add(self, item: Any) -> None:
        """Takes something to write. Never waits."""
        try:
            line = self._make(item).encode(errors="backslashreplace") + b"\n"
        except Exception:
            self._on_drop()  # what cannot be put in words must not end the request
            log.exception("a line of %s is lost", self._path.name)
            return
        self._lines.put(line)

    def close(self) -> None:
        """Writes what there is, if the disk takes it soon. More than once does no harm."""
        time.sleep(ON_THEIR_WAY_S)
        self._lines.flush(CLOSE_S)

    def _store(self, line: bytes) -> None:
        try:
            self._write(line)
            self._told = False
        except OSError as error:
            self._on_drop()
            if not self._told:
                self._told = True
                log.warning("cannot write %s: %s; going on", self._path, error.strerror)

    def _write(self, line: bytes) -> None:
        if self._fd is None:
            self._open()
        if self._max_bytes and self._size and self._size + len(line) > self._max_bytes:
            self._turn()
        data = b"\n" + line if self._torn else line
        written = os.write(self._fd, data)
        self._size += written
        self._torn = written < len(data)
        if self._torn:
            raise OSError(0, "it took only a part of a line")

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Its owner's alone: labels of keys and, if asked for, what people wrote.
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._size = os.fstat(self._fd).st_size

    def _turn(self) -> None:
        """Moves every part one further and begins a new one."""
        for number in range(KEPT, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(self._part(number - 1), self._part(number))
        os.close(self._fd)
        self._fd = None
        self._open()

    def _part(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path
