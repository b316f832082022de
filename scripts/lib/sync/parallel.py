"""The same steps on every host at once. Each host has a thread; one that fails stops no other.

A step that cannot go on raises Failure, with a sentence for the user that names what to do. What
is said goes to stderr, a line at a time, with the host before it.
"""

import fcntl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SAY_EVERY_S = 5.0  # between two lines of progress of one host
REMIND_EVERY_S = 20.0  # the same for work that cannot tell how far it is


class Failure(Exception):
    """Why a host could not be served, in words for the user."""


class Voice:
    """Says what happens on one host; progress at most every SAY_EVERY_S. Any thread."""

    def __init__(self, program: str, host: str) -> None:
        self._start = f"{program}: {host}: " if host else f"{program}: "
        self._next = time.monotonic() + SAY_EVERY_S

    def say(self, text: str) -> None:
        """One line on stderr."""
        print(f"{self._start}{text}", file=sys.stderr, flush=True)

    def progress(self, text: Callable[[], str]) -> None:
        """The same, unless something was said a moment ago."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + SAY_EVERY_S
            self.say(text())

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Say what takes its time in the block: at once, then how long it has taken so far."""
        self.say(what)
        over = threading.Event()

        def remind() -> None:
            began = time.monotonic()
            while not over.wait(REMIND_EVERY_S):
                self.say(f"{what}, {time.monotonic() - began:.0f} s so far")

        threading.Thread(target=remind, daemon=True).start()
        try:
            yield
        finally:
            over.set()


@contextmanager
def alone(state: Path, program: str) -> Iterator[None]:
    """Two at a time would undo each other's work. Failure if another one is at it, or nothing can
    be written there."""
    try:
        state.mkdir(parents=True, exist_ok=True)
        opened = (state / f"{program}.lock").open("w")
    except OSError as error:
        raise Failure(f"{cannot(error)}; {program} keeps a lock in {state}") from None
    with opened as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Failure(f"another {program} is at work in this checkout") from None
        yield


def cannot(error: OSError) -> str:
    """What the system refused, of which path."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


def serve_all(hosts: Sequence[str], serve: Callable[[str], str]) -> dict[str, tuple[bool, str]]:
    """Call serve(host) for all hosts at once; whether it went well, and what it said or why not."""
    outcomes: dict[str, tuple[bool, str]] = {}

    def run(host: str) -> None:
        try:
            outcomes[host] = (True, serve(host))
        except Failure as failure:
            outcomes[host] = (False, str(failure))
        except Exception as error:  # A fault of ours must not be taken for success.
            outcomes[host] = (False, f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=run, args=(host,), daemon=True) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        # With a limit, so that a signal is noticed while the threads work.
        while thread.is_alive():
            thread.join(0.5)
    return {host: outcomes[host] for host in hosts}


def report(program: str, outcomes: dict[str, tuple[bool, str]]) -> int:
    """A line a host on stdout, the failed ones named last on stderr; the exit code."""
    width = max(map(len, outcomes), default=0)
    for host, (fine, text) in outcomes.items():
        print(f"{'ok  ' if fine else 'fail'}  {host:{width}}  {text}")
    sys.stdout.flush()
    if failed := [host for host, (fine, _) in outcomes.items() if not fine]:
        print(f"{program}: failed on {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def size_text(count: float) -> str:
    """A number of bytes for people: 512 B, 3.4 MB, 1.2 TB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
