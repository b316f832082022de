"""Signals as bytes in a pipe, so that one `select` waits for signals and data alike.

Used by mlx_launch.py and supervise.py, on the main thread only (Python allows no
other). Without it a loop has to wake up now and then to look whether a child ended.
"""

import contextlib
import os
import signal


def _noted(signum: int, frame: object) -> None:
    """Do nothing: Python writes the number to the wakeup pipe before it calls this."""


class SignalPipe:
    """Catches `signals`; `read()` returns the numbers that came, in order."""

    def __init__(self, signals: tuple[int, ...]):
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        os.set_blocking(self._write_end, False)
        signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        for signum in signals:
            # nohup and background jobs of a script ask for some signals to be ignored.
            if signal.getsignal(signum) is not signal.SIG_IGN or signum == signal.SIGCHLD:
                signal.signal(signum, _noted)

    def fileno(self) -> int:
        return self._read_end

    def poke(self) -> None:
        """Wake the loop from another thread; `read()` does not report it."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._write_end, b"\0")

    def read(self) -> list[int]:
        """Return the signals since the last call, without waiting."""
        numbers: list[int] = []
        while True:
            try:
                chunk = os.read(self._read_end, 4096)
            except BlockingIOError:
                return numbers
            numbers.extend(number for number in chunk if number)
