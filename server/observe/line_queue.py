"""Lines on their way to something that may not take them: a full pipe, a disk that hangs.

Whoever has a line puts it here and never waits. A thread of the queue's own hands the lines over,
one by one, and may wait as long as it likes: only so many bytes are held for it, and what comes on
top of them is dropped and counted. Used by every rank for its log and by rank 0 for its files, by
the launcher for the ranks' output, and by the supervisor for the terminal and for the disk.
Standard library only.
"""

import collections
import contextlib
import os
import select
import threading
from collections.abc import Callable

HELD_BYTES = 4 << 20
# Then until the queue is half empty: a reader that is only slow should lose some stretches, with
# a word about each, and not every other line.
RESUME_PART = 2


class LineQueue:
    """take(line) is called on the queue's thread; on_drop for each line that is lost, on the
    thread that had it. note(n): the line to put where n lines are missing; without it none is."""

    def __init__(
        self,
        take: Callable[[bytes], None],
        *,
        name: str,
        held_bytes: int = HELD_BYTES,
        note: Callable[[int], bytes] | None = None,
        on_drop: Callable[[], None] = lambda: None,
    ) -> None:
        self.dropped = 0  # so far
        self._take = take
        self._note = note
        self._on_drop = on_drop
        self._most = held_bytes
        self._lines: collections.deque[bytes] = collections.deque()
        self._held = 0
        self._missing = 0  # dropped since the last line that was taken in
        self._idle = True  # nothing is held, and nothing is being handed over
        self._changed = threading.Condition()  # can be entered twice: a finalizer may log
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, line: bytes, *, must: bool = False) -> None:
        """Takes a line in, or drops it. Never waits. must: for what tells how something ended;
        it is dropped only at twice the limit."""
        with self._changed:
            full = self._held + len(line) > self._most
            if self._missing and not full:
                full = self._held > self._most // RESUME_PART
            if full and not (must and self._held + len(line) <= 2 * self._most):
                self.dropped += 1
                self._missing += 1
            else:
                full = False
                self._append_note()
                self._append(line)
                self._changed.notify_all()
        if full:
            self._on_drop()

    def flush(self, within_s: float) -> bool:
        """Waits until all is handed over, but not for longer; whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self._idle and not self._missing, within_s)

    def _append(self, line: bytes) -> None:
        self._lines.append(line)
        self._held += len(line)
        self._idle = False

    def _append_note(self) -> None:
        if self._missing and self._note is not None:
            self._append(self._note(self._missing))
        self._missing = 0

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._lines:
                    self._append_note()  # it flows again, and no further line may come
                if not self._lines:
                    self._idle = True
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._lines or self._missing)
                    continue
                line = self._lines.popleft()
            # What is lost here is the taker's to tell. Held until then: a line that is stuck in a
            # write counts.
            with contextlib.suppress(Exception):
                self._take(line)
            with self._changed:
                self._held -= len(line)


def write_all(fd: int, data: bytes) -> None:
    """Writes all of it, however long the reader takes. Raises OSError."""
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:  # it is set so that native code does not wait there
            select.select([], [fd], [])
