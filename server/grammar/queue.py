"""Where requests wait for a grammar that is new: bounded, in fair turns, one compilation each.

HTTP threads of rank 0 wait here, each looking at its client and its deadline; one thread of the
queue's own compiles, one grammar at a time, so that clients cannot take more than a core with it.
Next is whoever has taken least of that thread's time lately: one client's slow grammars keep
others waiting for the one that is being compiled, and no longer. Imports no mlx.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from server.grammar.cache import key_of
from server.protocol.client import POLL_S, Client
from server.protocol.errors import ApiError, engine_failed, too_many_grammars, unavailable

MAX_GRAMMARS = 64  # being compiled or waiting
MAX_GRAMMARS_EACH = 16  # of one key, or of one address where there are no keys
MAX_WAITING = 256  # requests, of which many may want the same grammar
MAX_WAITING_EACH = 64
HALF_LIFE_S = 60.0  # of the time that a source has taken
REMEMBERED = 1024  # sources

log = logging.getLogger(__name__)


class NotNow(Exception):
    """A grammar could not be compiled, and is not to blame. all: nor can any other be."""

    def __init__(self, message: str, all: bool) -> None:
        super().__init__(message)
        self.all = all


@dataclass
class Job:
    """One grammar on its way. waiting: how many requests of each source want it."""

    number: int
    text: str
    source: str  # who asked first
    waiting: Counter[str] = field(default_factory=Counter)
    begun: bool = False
    done: threading.Event = field(default_factory=threading.Event)
    result: Any = None
    error: ApiError | None = None


class GrammarQueue:
    """compile(text, source) returns what there is to say of a grammar, and raises NotNow, or
    ApiError where all requests for it are to be told the same. It remembers its results: find(key)
    returns one, or None. clock: seconds.
    """

    def __init__(
        self,
        compile: Callable[[str, str], Any],
        find: Callable[[bytes], Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._compile = compile
        self._find = find
        self._clock = clock
        self._changed = threading.Condition()  # held for moments, never while one compiles
        self._jobs: dict[bytes, Job] = {}
        self._count = 0
        self._taken: dict[str, tuple[float, float]] = {}  # by source: seconds, and when it was
        self._closed = False
        self._thread: threading.Thread | None = None

    def ask(self, text: str, client: Client) -> Any:
        """What compile says of the text; at once, if it is known.

        Raises ApiError: 429 or 503 where too many wait, 503 where nothing can be compiled, 504
        when the client's time is up; ClientGone when it is gone.
        """
        key = key_of(text)
        found = self._find(key)
        if found is not None:
            return found
        client.look()  # nothing is begun for a client that has left
        with self._changed:
            found = self._find(key)  # it may have been done meanwhile
            if found is not None:
                return found
            job = self._join(key, text, client.source)
        try:
            while not job.done.wait(POLL_S):
                client.look()
        finally:
            self._leave(key, job, client.source)
        if job.error is not None:
            raise job.error.with_traceback(None)  # raised many times over
        return job.result

    def waiting(self) -> tuple[int, int]:
        """Grammars that are on their way, and the requests that want them."""
        with self._changed:
            return len(self._jobs), sum(job.waiting.total() for job in self._jobs.values())

    def close(self, stop: Callable[[], None]) -> None:
        """Answers all who wait with 503, and ends the thread; stop has its compilation end."""
        with self._changed:
            self._closed = True
            self._end_all(_not_available())
            self._changed.notify_all()
        stop()
        if self._thread is not None:
            self._thread.join()

    def _join(self, key: bytes, text: str, source: str) -> Job:
        if self._closed:
            raise _not_available()
        asked = sum((one.waiting for one in self._jobs.values()), Counter())
        if asked[source] >= MAX_WAITING_EACH:
            raise too_many_grammars(asked[source])
        if asked.total() >= MAX_WAITING:
            self._make_room(source)
        job = self._jobs.get(key)
        if job is None:
            own = self._brought()[source]
            if own >= MAX_GRAMMARS_EACH:
                raise too_many_grammars(own)
            if len(self._jobs) >= MAX_GRAMMARS:
                self._make_room(source)
            self._start()
            self._count += 1
            job = self._jobs[key] = Job(self._count, text, source)
        job.waiting[source] += 1
        self._changed.notify_all()
        return job

    def _brought(self) -> Counter[str]:
        """How many grammars each source has on their way."""
        return Counter(job.source for job in self._jobs.values())

    def _make_room(self, source: str) -> None:
        """For one more of source, by sending away the last of whoever has most. Raises ApiError
        503 where nobody has so much more: all get about the same, however many they are."""
        brought = self._brought()
        most = max(brought, key=brought.__getitem__)
        theirs = [key for key, job in self._jobs.items() if job.source == most and not job.begun]
        if not theirs or brought[most] <= brought[source] + 1:
            raise _full()
        job = self._jobs.pop(theirs[-1])
        job.error = _full()
        job.done.set()

    def _start(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="compiles", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # no more threads can be had
                raise _not_available() from error
            self._thread = thread

    def _leave(self, key: bytes, job: Job, source: str) -> None:
        with self._changed:
            job.waiting[source] -= 1
            # What nobody wants is not begun. What has begun goes on to its own limit, and is
            # remembered: the next to ask for it costs nothing.
            if not job.waiting.total() and not job.begun and self._jobs.get(key) is job:
                del self._jobs[key]

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._closed:
                    self._changed.wait(1.0)
                if self._closed:
                    return
                key, job = min(self._jobs.items(), key=self._turn)
                job.begun = True
            began = self._clock()
            try:
                job.result = self._compile(job.text, job.source)
            except ApiError as error:
                job.error = error
            except NotNow as error:
                if not self._closed:
                    log.error("%s", error)
                job.error = _not_available()
                if error.all:
                    with self._changed:
                        self._end_all(job.error)
            except Exception:
                log.exception("a grammar could not be compiled")
                job.error = engine_failed("Internal error; the server's log has the details.")
            with self._changed:
                self._jobs.pop(key, None)
                self._charge(job.source, self._clock() - began)
            job.done.set()

    def _turn(self, item: tuple[bytes, Job]) -> tuple[float, int]:
        """The smallest is next. A grammar that several want comes at the best turn of theirs."""
        job = item[1]
        return min(self._lately(source) for source in +job.waiting), job.number

    def _lately(self, source: str) -> float:
        seconds, when = self._taken.get(source, (0.0, 0.0))
        return seconds * 0.5 ** ((self._clock() - when) / HALF_LIFE_S) if seconds else 0.0

    def _charge(self, source: str, seconds: float) -> None:
        self._taken[source] = (self._lately(source) + seconds, self._clock())
        if len(self._taken) > REMEMBERED:
            del self._taken[min(self._taken, key=self._lately)]

    def _end_all(self, error: ApiError) -> None:
        for job in self._jobs.values():
            if not job.begun:
                job.error = error
                job.done.set()
        self._jobs = {key: job for key, job in self._jobs.items() if job.begun}


def _full() -> ApiError:
    return unavailable(
        "Too many new grammars wait to be compiled. Try again later.", "grammars_full"
    )


def _not_available() -> ApiError:
    return unavailable("Structured output is not available at the moment.", "grammars_failed")
