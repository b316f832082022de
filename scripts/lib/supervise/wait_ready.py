"""Is the server ready? Asked of GET /health by the supervisor, and by whoever waits for it.

Ready means: status 200, and the answer carries our run id. Another server on the same
port, or one that is still loading, is not ours and not ready. Used by supervise.py: on a
thread beside its loop, and in the process that waits for a detached supervisor.
"""

import http.client
import json
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from scripts.lib.launch.causes import CAUSE_PREFIX, TAIL_PREFIX
from scripts.lib.logs.log_files import Mark, read_since
from server.protocol.printable import printable, printable_line

ASK_EVERY_S = 0.5
ANSWER_WITHIN_S = 5.0
TELL_EVERY_S = 10.0  # A line of progress, where no terminal can overwrite one.
LAST_LINES = 20  # Of the log, when no rank is known to have caused the end.
READ_BACK = 1 << 20  # Bytes of the log that are searched for the cause.
READ_SAID = 1 << 16  # For the supervisor's last words, of which there are few between two starts.
SUPERVISOR = " supervisor: "  # run_log.py's, in its own lines.


@dataclass(frozen=True)
class Health:
    ready: bool
    text: str  # What to tell somebody who waits.
    answered: bool = True


def ask_health(url: str, run_id: str) -> Health:
    """Ask once. Not through urllib: a proxy in the environment has no say here."""
    parts = urlsplit(url)
    link = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=ANSWER_WITHIN_S)
    try:
        link.request("GET", parts.path or "/")
        answer = link.getresponse()
        told = json.loads(answer.read(1 << 20))
        if not isinstance(told, dict):
            raise ValueError("not an object")
    except ConnectionRefusedError:
        return Health(False, "the ranks start", answered=False)
    except (OSError, ValueError, http.client.HTTPException) as error:
        return Health(False, f"/health does not answer ({type(error).__name__})")
    finally:
        link.close()
    if answer.status == 200 and told.get("run_id") != run_id:
        return Health(False, "another server answers on this port")
    words = [str(told[key]) for key in ("status", "detail") if told.get(key)]
    if told.get("restarts"):
        words.append(f"restart {told['restarts']} after: {told.get('last_failure', '')}")
    return Health(answer.status == 200, ", ".join(words) or f"status {answer.status}")


class ReadyWatch:
    """Asks on a thread until the server is ready, notes when, and calls `poke` once."""

    def __init__(self, url: str, run_id: str, poke: Callable[[], None]):
        self.ready_at: float | None = None  # time.monotonic()
        self._url, self._run_id, self._poke = url, run_id, poke
        self._stopped = False
        self._look = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped = True
        self._look.set()

    def look(self) -> None:
        """Ask now rather than soon."""
        self._look.set()

    def _watch(self) -> None:
        while True:
            self._look.wait(ASK_EVERY_S)
            self._look.clear()
            if self._stopped:
                return
            if ask_health(self._url, self._run_id).ready and not self._stopped:
                self.ready_at = time.monotonic()
                self._poke()
                return


class Progress:
    """One line on stderr that says how long we wait and for what."""

    def __init__(self):
        self._started = time.monotonic()
        self._told_at = self._started
        self._tty = sys.stderr.isatty()

    def elapsed_s(self) -> int:
        return int(time.monotonic() - self._started)

    def show(self, text: str) -> None:
        line = f"starting, {self.elapsed_s()} s: {printable(text)}"
        if self._tty:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self._told_at >= TELL_EVERY_S:
            self._told_at = time.monotonic()
            print(line, file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._tty:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


class Refused(Exception):
    """The supervisor did not begin at all; the message is its word."""


def wait_for(told_fd: int, url: str, run_id: str, said: Callable[[], str] = lambda: "") -> bool:
    """Wait until the supervisor tells on told_fd that the server is ready; False: it has ended.

    Raises Refused for anything but the newline that means ready.

    Its word and not /health's: a fault before the supervisor has seen the server ready counts
    as a start that failed. said: what it says between two starts, when nothing answers.
    No deadline: each rank has one (JOIN_TIMEOUT, HANDSHAKE_TIMEOUT, LOAD_TIMEOUT).
    """
    progress = Progress()
    try:
        while True:
            health = ask_health(url, run_id)
            progress.show(health.text if health.answered else said() or health.text)
            if select.select([told_fd], [], [], ASK_EVERY_S)[0]:
                told = os.read(told_fd, 4096)
                progress.clear()
                if told.strip():
                    raise Refused(told.decode(errors="replace"))
                ready = bool(told)
                if ready:
                    print(f"ready after {progress.elapsed_s()} s", file=sys.stderr)
                return ready
    except KeyboardInterrupt:
        progress.clear()
        raise


def read_said(log: Path, before: Mark) -> str:
    """Why nothing runs now, in the supervisor's words between two starts; "" while one is under
    way."""
    try:
        lines = [line.decode(errors="replace") for line in read_since(log, before, READ_SAID)]
    except OSError:
        return ""
    told = [line.partition(SUPERVISOR)[2] for line in lines if SUPERVISOR in line]
    if not told or "starting again" not in told[-1] and "still no answer" not in told[-1]:
        return ""
    failed = [text for text in told if text.startswith("failed: ")]
    return "; ".join([*failed[-1:], told[-1]])


def read_failure(log: Path, before: Mark) -> list[str]:
    """Return what the log says of the failure, from `before` on.

    That is the line that names the rank that caused it, that rank's last lines, and what
    the supervisor concluded; or, if no rank is named, just the last lines.
    """
    try:
        lines = [printable_line(line).decode() for line in read_since(log, before, READ_BACK)]
    except OSError as error:
        return [f"{log} cannot be read: {error.strerror}"]
    causes = [i for i, line in enumerate(lines) if line.startswith(CAUSE_PREFIX)]
    if not causes:
        return lines[-LAST_LINES:]
    end = causes[-1] + 1
    while end < len(lines) and lines[end].startswith(TAIL_PREFIX):
        end += 1
    return [*lines[causes[-1] : end], *lines[end:][-1:]]
