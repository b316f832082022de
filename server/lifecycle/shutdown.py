"""Signals: the first SIGTERM or SIGINT drains, the second ends at once; SIGHUP ends at once.

A failure is something else: those who wait hear whether the supervisor starts the server again.

Python runs signal handlers on the main thread, which may sit in a collective for ever. So the
signals are blocked in every thread and one thread waits for them; it can end the process whatever
the main thread does.
"""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from server.lifecycle.watchdog import end_soon
from server.observe import phases
from server.observe.status import Status
from server.protocol.errors import unavailable
from server.protocol.exit_codes import CONFIG, OK, PEER_LOST, STALLED
from server.scheduler.queue import Line

SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
POLL_S = 0.05
LEAVE_S = 10.0  # for the ranks to leave the loop together, once drained
FLUSH_S = 1.0  # for HTTP threads to send their last words

log = logging.getLogger(__name__)


class Leaver:
    """What a rank does when told to end, and when it has to. on_end() runs just before the process
    ends, on_fail() as soon as a failure is known: whoever found it may leave no time after that."""

    def __init__(
        self,
        on_end: Callable[[], None],
        status: Status,
        on_fail: Callable[[], None] = lambda: None,
        restarts: bool = False,
    ) -> None:
        self._on_end = on_end
        self._on_fail = on_fail
        self._status = status
        self._restarts = restarts  # a supervisor does, after a failure

    def drain(self) -> None:
        """Ends in good order; returns never, or after the loop was told to end."""
        before = self._status.phases.drain()
        if before in phases.ENDING:
            # Whoever found the failure is telling the clients, and ends the process after that.
            log.info("asked to end; ending already")
            return
        self._status.note("draining: asked to end")
        if before != phases.OK:
            log.info("ending: asked to, before the model was ready")
            self.end(OK)
        self._finish()

    @property
    def failing(self) -> bool:
        """The end of this rank is decided, and a few seconds away whatever happens."""
        return self._status.state.phase in phases.ENDING

    def _finish(self) -> NoReturn:
        """What is left to do for a rank that serves. Ends the process, if the loop has not."""
        raise NotImplementedError

    def last_words(self, reason: str, code: str = "shutting_down") -> None:
        """Answers whoever still waits for this rank."""

    def fail(self, reason: str, exit_code: int = STALLED) -> None:
        """Tells everybody of the failure that ends this rank, or all. Any thread."""
        restarting = self._restarts and exit_code != CONFIG
        self._status.phases.fail(reason, restarting)
        self._status.note(f"ending: {reason}")
        how = "is restarting" if restarting else "failed"
        self.last_words(f"The server {how}: {reason}.", self._status.state.phase)
        self._on_fail()

    def leave(self, code: int, reason: str) -> NoReturn:
        """Ends this rank for a failure."""
        end_soon(code)
        log.error("ending with code %d: %s", code, reason)
        self.fail(reason, code)
        self.end(code)

    def follow(self, word: str) -> NoReturn:
        """Ends this rank because another has failed, as the launcher says: CODE and a reason."""
        end_soon(PEER_LOST)
        code, _, reason = word.partition(" ")
        log.error("ending with code %d: %s", PEER_LOST, reason)
        self.fail(reason, int(code) if code.isdigit() else PEER_LOST)
        self.end(PEER_LOST)

    def end(self, code: int) -> NoReturn:
        """Ends the process now, even while the main thread sits in native code."""
        end_soon(code)
        self._on_end()
        logging.shutdown()
        os._exit(code)


class Drainer(Leaver):
    """Rank 0's: finishes what it holds, then lets all ranks leave together."""

    def __init__(
        self,
        on_end: Callable[[], None],
        line: Line,
        status: Status,
        drain_timeout: float,
        on_fail: Callable[[], None] = lambda: None,
        restarts: bool = False,
    ) -> None:
        super().__init__(on_end, status, on_fail, restarts)
        self._line = line
        self._timeout = drain_timeout

    def _finish(self) -> NoReturn:
        self._line.close(unavailable("The server is draining.", "draining"))
        log.info("draining: %d requests, up to %g s", self._line.unanswered(), self._timeout)
        self._wait_answered(self._timeout)
        self.last_words("The server is shutting down.")
        self._line.stop("drained")
        time.sleep(LEAVE_S)
        log.error("a rank did not leave the loop within %g s", LEAVE_S)
        self.end(STALLED)

    def last_words(self, reason: str, code: str = "shutting_down") -> None:
        """Answers everything held with 503, and gives the HTTP threads time to send it."""
        self._line.fail_all(unavailable(reason, code))
        self._wait_answered(FLUSH_S)

    def _wait_answered(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._line.unanswered() and time.monotonic() < deadline:
            time.sleep(POLL_S)


class Worker(Leaver):
    """Waits for rank 0's Shutdown; leaves by itself when that does not come."""

    def __init__(self, on_end: Callable[[], None], status: Status, drain_timeout: float) -> None:
        super().__init__(on_end, status)
        self._patience = drain_timeout + LEAVE_S + FLUSH_S

    def _finish(self) -> NoReturn:
        log.info("asked to end; waiting for rank 0, up to %g s", self._patience)
        time.sleep(self._patience)
        self.end(OK)


def block_signals() -> None:
    """Called on the main thread before any other thread starts: they inherit the mask."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


@contextlib.contextmanager
def signals_end_at_once() -> Iterator[None]:
    """While the body runs a signal ends the process, by the system's hand. On the main thread.

    For a native call that keeps the interpreter to itself: the thread of handle_signals, which
    must not run yet, could not do anything. Such an end leaves the pid file behind; nobody takes
    it for a living rank.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's wish
            signal.signal(number, signal.SIG_DFL)
    ready, over = threading.Event(), threading.Event()

    def take_signals() -> None:
        # On this thread alone: the ones that native code starts inherit the main thread's mask,
        # and keep it for life.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        ready.set()
        over.wait()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    thread = threading.Thread(target=take_signals, name="signals", daemon=True)
    thread.start()
    ready.wait()
    try:
        yield
    finally:
        over.set()
        thread.join()


def handle_signals(leaver: Leaver) -> None:
    """Starts the thread that waits for signals."""

    def wait() -> None:
        draining = False
        while True:
            number = signal.sigwait(SIGNALS)
            name = signal.Signals(number).name
            if leaver.failing:
                # Whoever found the failure is telling the clients, and ends the process after that.
                log.info("%s; ending already", name)
                continue
            if number == signal.SIGHUP:
                log.error("ending with code %d: %s, the launcher is gone", PEER_LOST, name)
                leaver.last_words("The server lost its launcher.")
                leaver.end(PEER_LOST)
            if draining:
                log.warning("ending at once: second signal (%s)", name)
                leaver.last_words("The server is shutting down.")
                leaver.end(OK)
            draining = True
            # On its own thread, so that a second signal is heard meanwhile.
            threading.Thread(target=leaver.drain, name="drain", daemon=True).start()

    threading.Thread(target=wait, name="signals", daemon=True).start()
