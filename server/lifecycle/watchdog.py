"""The watchdog of a rank: ends the process when its main thread makes no progress.

A dead peer, a stopped peer and a wedged GPU look the same from here: a collective or an eval that
never returns, and no error. One thread on every rank compares a counter that the main thread
moves; no progress for the limit, and it prints every thread's stack, lets rank 0 answer what it
holds, and ends the process with its own exit code. The supervisor does the rest. Time in which the
process was stopped or the machine slept does not count (wait_clock.py), and while the rank serves
the limit follows what turns take here (turn_times.py).

A thread of Python's is of no use while native code keeps the interpreter to itself, as joining the
group of ranks does: `limit_native` is for that.
"""

import contextlib
import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

from server.lifecycle.turn_times import TurnTimes
from server.lifecycle.wait_clock import WaitClock
from server.observe.rank_log import list_stacks
from server.protocol.exit_codes import STALLED

LOOK_S = 1.0  # between two looks; a quarter of a short limit
LAST_WORDS_S = 5.0  # for stacks, answers to clients and the log, once the end is decided

log = logging.getLogger(__name__)


class Watchdog:
    """limit: seconds without progress. on_stall(reason) runs before the process ends."""

    def __init__(self, limit: float, on_stall: Callable[[str], None]) -> None:
        self._limit = limit
        self._on_stall = on_stall
        self._times: TurnTimes | None = None  # whose limits count, once it serves
        self._count = 0
        self._stage = "start"
        self._code, self._hint = STALLED, ""
        self._look_s = min(LOOK_S, limit / 4)

    def progress(self, stage: str) -> None:
        """Called by the main thread before whatever may block. Costs next to nothing."""
        self._stage = stage
        self._count += 1

    def set_limit(self, limit: float) -> None:
        """Loading may take longer than serving."""
        self.progress(self._stage)
        self._limit = limit
        self._look_s = min(LOOK_S, limit / 4)

    @contextlib.contextmanager
    def within(self, limit: float, code: int, hint: str) -> Iterator[None]:
        """While the body runs, the limit and the exit code; hint ends the reason."""
        before = self._limit, self._code, self._hint
        self._code, self._hint = code, f"; {hint}"
        self.set_limit(limit)
        try:
            yield
        finally:
            limit, self._code, self._hint = before
            self.set_limit(limit)

    def follow(self, least: float, times: TurnTimes) -> None:
        """From now on limits are those of times, at least so many seconds."""
        self.set_limit(least)
        self._times = times

    def start(self) -> None:
        """Watches until the process ends."""
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def _watch(self) -> None:
        seen, look_s, clock = self._count, self._look_s, WaitClock(self._look_s)
        while True:
            time.sleep(look_s)
            waited = clock.look()
            if look_s != self._look_s:
                seen, look_s, clock = self._count, self._look_s, WaitClock(self._look_s)
            elif self._count != seen:
                seen = self._count
                clock.renew()
            elif waited > self._limit_now():
                self._bite(waited)

    def _limit_now(self) -> float:
        return self._limit if self._times is None else self._times.limit(self._stage)

    def _bite(self, seconds: float) -> None:
        code = self._code
        end_soon(code)
        reason = f"no progress for {seconds:.0f} s at: {self._stage}{self._hint}"
        try:
            log.error("%s; stacks of all threads follow", reason)
            print(list_stacks(), file=sys.stderr, flush=True)
            self._on_stall(reason)
            log.error("ending with code %d: %s", code, reason)
            logging.shutdown()  # the log has a thread of its own
        finally:
            os._exit(code)


def end_soon(code: int) -> None:
    """Ends the process in a few seconds, whatever else happens: a log that nobody reads and a
    lock that nobody frees can hold up everything but this."""

    def end() -> None:
        time.sleep(LAST_WORDS_S)
        os._exit(code)

    threading.Thread(target=end, name="end", daemon=True).start()


@contextlib.contextmanager
def limit_native(seconds: float) -> Iterator[None]:
    """Ends the process, with every thread's stack, if the body takes longer.

    Its exit code is 1, as faulthandler knows no other; the launcher makes NOT_JOINED of it, by the
    line "Timeout (" before the stacks. For the joining of ranks alone, therefore.
    For a native call that does not release the interpreter's lock: no thread of Python's runs
    meanwhile, the watchdog's neither. faulthandler's is a native one.
    """
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
