"""A rank's log, which no thread ever waits for, even when nobody reads it.

The ranks' stderr is a pipe to the launcher. Once that is full a write waits, and with it whoever
wrote: in the end every HTTP thread. So all that a rank says, through `logging` or as plain text on
stdout and stderr (warnings, tracebacks), goes through a LineQueue. Used on every rank, from any
thread. Imports nothing that takes long.
"""

import io
import logging
import os
import stat
import sys
import threading
import time
import traceback

from server.observe.line_queue import LineQueue, write_all

FLUSH_S = 1.0  # at the end, for what has not been written
PART_CHARS = 1 << 16  # of a line without an end


class RankLog(logging.Handler):
    """Writes to fd. dropped: lines lost so far, because nobody read them."""

    def __init__(self, rank: int, fd: int = 2) -> None:
        super().__init__()
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            # What native code writes there by itself must not wait either: it may hold the
            # interpreter meanwhile, as faulthandler does.
            os.set_blocking(fd, False)

        def note(count: int) -> bytes:
            when = time.strftime("%Y-%m-%d %H:%M:%S")
            return (
                f"{when} [rank {rank}] WARNING {count} lines dropped: nobody read them\n".encode()
            )

        self.queue = LineQueue(lambda line: write_all(fd, line), name="log", note=note)
        self._fd = fd

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception:
            self.handleError(record)
            return
        self.say(text, must=record.levelno >= logging.ERROR)

    def say(self, text: str, must: bool = False) -> None:
        """Any text, as one piece."""
        self.queue.put(text.encode(errors="backslashreplace") + b"\n", must=must)

    def take_streams(self) -> None:
        """From now on what is printed goes the same way. sys.__stderr__ stays what it was."""
        sys.stdout, sys.stderr = PrintedLines(self, 1), PrintedLines(self, self._fd)

    def flush(self) -> None:
        """Gives what is held a moment. logging.shutdown calls it, and so whoever ends a rank."""
        self.queue.flush(FLUSH_S)

    @property
    def dropped(self) -> int:
        return self.queue.dropped


class PrintedLines(io.TextIOBase):
    """A stream for print and tracebacks: whole lines to the log."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, log: RankLog, fd: int) -> None:
        self._log = log
        self._fd = fd
        self._lock = threading.RLock()
        self._rest = ""

    def write(self, text: str) -> int:
        with self._lock:
            whole, end, self._rest = (self._rest + text).rpartition("\n")
            if len(self._rest) > PART_CHARS:
                whole, end, self._rest = whole + end + self._rest, "\n", ""
        if end:
            self._log.say(whole)
        return len(text)

    def flush(self) -> None:
        """Nothing: a line goes out with its end."""

    def fileno(self) -> int:
        return self._fd

    def writable(self) -> bool:
        return True


def list_stacks() -> str:
    """Every thread's stack, the main thread's first, without looking into any file.

    Not by faulthandler: it writes to a file, and keeps the interpreter to itself until that has
    taken everything.
    """
    frames = sys._current_frames()
    main = threading.main_thread().ident
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    lines = []
    for ident in sorted(frames, key=lambda ident: ident != main):
        name = names.get(ident, "not Python's")
        lines.append(f"Thread 0x{ident:016x} [{name}] (most recent call first):")
        for frame, line in traceback.walk_stack(frames[ident]):
            code = frame.f_code
            lines.append(f'  File "{code.co_filename}", line {line} in {code.co_name}')
    return "\n".join(lines)
