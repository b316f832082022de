"""A file of lines that nobody waits for: one thread writes, and a full disk costs lines only.

Any thread of rank 0 hands items over; the writer turns each into a line. A file that has reached
its size becomes .1, and the parts before it move on, up to .4.
"""

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

KEPT = 4  # older parts
LINES_HELD = 10_000  # for a slow disk; then they are dropped
ON_THEIR_WAY_S = 0.05  # at the end, for what is just being handed over
CLOSE_S = 1.0  # at the end, for what has not been written

log = logging.getLogger(__name__)


class LineFile:
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
        self._items: queue.Queue[Any] = queue.Queue(LINES_HELD)
        self._writer = threading.Thread(target=self._run, name=path.name, daemon=True)
        self._writer.start()

    def add(self, item: Any) -> None:
        """Takes something to write, but not None. Never waits."""
        try:
            self._items.put_nowait(item)
        except queue.Full:
            self._on_drop()

    def close(self) -> None:
        """Writes what there is, if the disk takes it soon. More than once does no harm."""
        time.sleep(ON_THEIR_WAY_S)
        with contextlib.suppress(queue.Full):
            self._items.put_nowait(None)
        self._writer.join(CLOSE_S)

    def _run(self) -> None:
        while (item := self._items.get()) is not None:
            try:
                self._write(self._make(item).encode() + b"\n")
                self._told = False
            except OSError as error:
                self._on_drop()
                if not self._told:
                    self._told = True
                    log.warning("cannot write %s: %s; going on", self._path, error.strerror)
            except Exception:
                self._on_drop()  # what cannot be put in words must not end the file
                log.exception("a line of %s is lost", self._path.name)

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
