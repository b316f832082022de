"""What the launcher and its ranks print, on its way to whoever reads it.

Handed over on the launcher's main thread, which never waits for a reader; written on a thread of
its own.
"""

from collections.abc import Iterable

from server.observe.line_queue import LineQueue, write_all


class Output:
    """Writes lines to stdout and stderr, in order, on a thread of its own.

    One thread for both, as they are often one pipe. A reader that is gone, or does not read, stops
    nothing.
    """

    def __init__(self):
        self._fds = {1: 1, 2: 2}
        self._gone: set[int] = set()
        self._queue = LineQueue(self._write, name="output", note=_note)

    def write(self, fd: int, lines: Iterable[bytes], must: bool = False) -> None:
        for line in lines:
            self._queue.put(b"%d%s\n" % (fd, line), must=must)

    def move(self, fd: int) -> None:
        """From now on all goes there."""
        self._fds, self._gone = dict.fromkeys((1, 2), fd), set()

    def flush(self, within_s: float) -> bool:
        return self._queue.flush(within_s)

    def _write(self, line: bytes) -> None:
        fd = self._fds[line[0] - ord("0")]
        if fd in self._gone:
            return
        try:
            write_all(fd, line[1:])
        except (BrokenPipeError, ConnectionError):
            self._gone.add(fd)
        except OSError:  # A full disk, say. There may be space for later lines.
            pass


def _note(count: int) -> bytes:
    return b"2mlx_launch: %d lines of the ranks dropped: nobody read them\n" % count
