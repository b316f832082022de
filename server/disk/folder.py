"""A rank's folder of kept prefixes: whose it is, what is in it, and what is cleared away.

    PREFIX_DISK_DIR/rank-N/lock          held by the rank that uses the folder, as long as it lives
    PREFIX_DISK_DIR/rank-N/MAKER/NAME    files (entry_file.py); a maker is a model and a rank of it

Opened at the start, on the main thread of every rank; then used by the disk's threads. Which files
stay is rank 0's to say, but for those of other models, which give way when they are too many.
"""

import contextlib
import fcntl
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from server.disk.entry_file import (
    ENDING,
    UNFINISHED,
    Broken,
    Span,
    path_of,
    read_header,
    read_label,
    sync_folder,
)

LOCK_WAIT_S = 3.0  # for a rank before this one to be gone
POLL_S = 0.1
MOST_ENTRIES = 8192
KIB = 1024
MAKER = re.compile("[0-9a-f]{16}")  # as a fingerprint is

log = logging.getLogger(__name__)


class Unusable(Exception):
    """The folder cannot be used. Says why."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a file has: the tokens from start to end, of which those before are base's."""

    base: str
    start: int
    end: int


@dataclass(frozen=True)
class Found:
    """A file that was there at the start. kib: its size; used: when, by the wall clock; label: on
    rank 0."""

    place: Place
    kib: int
    used: float
    label: bytes = b""


class Lock:
    """Of a rank's folder, held as long as any of its makers' is open in this process. open: those
    that are."""

    def __init__(self) -> None:
        self.open: frozenset[Path] = frozenset()  # replaced under the mutex, read without
        self._holds = 0
        self._file = -1
        self._mutex = threading.Lock()  # a folder is closed by a disk's thread

    def take(self, path: Path, again: bool = False) -> None:
        """Once more. again: the file that is held is gone. Raises OSError, and BlockingIOError for
        one that another process holds."""
        with self._mutex:
            if self._holds and not again:
                self._holds += 1
                return
            self._close()
            file = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
            try:
                _flock(file)
            except BaseException:
                os.close(file)
                raise
            self._file, self._holds = file, self._holds + (not again)

    def enter(self, maker: Path) -> bool:
        """Whether nobody had it open; from now on somebody has."""
        with self._mutex:
            if maker in self.open:
                return False
            self.open |= {maker}
            return True

    def let_go(self, maker: Path | None) -> None:
        """Of a maker that is closed; None: it was not opened."""
        with self._mutex:
            self.open -= {maker}
            self._holds -= 1
            if not self._holds:
                self._close()

    def _close(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


def _flock(file: int) -> None:
    until = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise
        time.sleep(POLL_S)


class Folder:
    """This rank's, for one maker. limit: bytes, of all makers. lock: what other makers' in this
    process hold, too. Raises Unusable."""

    def __init__(
        self, root: Path, rank: int, maker: str, limit: int, lock: Lock | None = None
    ) -> None:
        self._limit = limit
        self._lock = lock or Lock()
        self._rank = root / f"rank-{rank}"
        self.maker = maker
        self.path = self._rank / maker
        self.places: dict[str, Place] = {}  # of what all ranks have, by name
        self._make()
        until = time.monotonic() + LOCK_WAIT_S  # for a disk's thread to close what has just gone
        while not self._lock.enter(self.path):
            if time.monotonic() > until:
                self._lock.let_go(None)
                raise Unusable(f"{self.path} is in use by a model of the same files")
            time.sleep(POLL_S)
        self._open = True

    def _make(self, again: bool = False) -> None:
        try:
            for path in (self._rank.parent, self._rank, self.path):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in (self._rank, self.path):
                path.chmod(0o700)
            self._lock.take(self._rank / "lock", again)
        except BlockingIOError:
            raise Unusable(f"{self._rank} is in use by another server") from None
        except OSError as error:
            raise Unusable(f"{self._rank}: {error.strerror or error}") from None

    def make_again(self) -> None:
        """If somebody has taken it away. Raises OSError."""
        if self.path.is_dir():
            return
        log.warning("prefixes on disk: %s is gone, and is made again", self.path)
        try:
            self._make(again=True)
        except Unusable as error:
            raise OSError(str(error)) from None

    def close(self) -> None:
        if self._open:
            self._open = False
            self._lock.let_go(self.path)

    def scan(self, labels: bool) -> dict[str, Found]:
        """The whole files, by name, the last used ones if they are too many; the others are cleared
        away. labels: read them, too. Raises Unusable."""
        found: dict[str, Found] = {}
        try:
            paths = [path for path in self.path.iterdir() if path.is_file()]
            for path in paths:
                try:
                    found[path.stem] = self._look(path, labels)
                except (Broken, ValueError) as error:
                    if not path.name.endswith(UNFINISHED):
                        log.warning("prefixes on disk: %s %s; it goes", path, error)
                    path.unlink()
            late = sorted(found, key=lambda name: found[name].used)[:-MOST_ENTRIES]
            for name in late:
                path_of(self.path, name).unlink()
                del found[name]
        except OSError as error:
            raise Unusable(f"{self.path}: {error.strerror or error}") from None
        return found

    def _look(self, path: Path, labels: bool) -> Found:
        if path.suffix != ENDING:
            raise Broken("is no kept prefix")
        with path.open("rb") as file:
            part = read_header(file)
            if (part.maker, part.name) != (self.maker, path.stem):
                raise Broken("is of another model, rank or name")
            label = read_label(file, part) if labels else b""
            stat = os.fstat(file.fileno())
        # Not all of the header: of thousands it would be much.
        place = Place(part.base, part.start, part.end)
        return Found(place, -(-stat.st_size // KIB), stat.st_mtime, label)

    def make_room(self, more: int = 0) -> None:
        """Clears away what models have kept that are not loaded, the last used longest, until that
        and what is in use and so many bytes more are within the limit. What goes of loaded ones is
        rank 0's to say. Raises OSError."""
        makers = [path for path in self._rank.iterdir() if MAKER.fullmatch(path.name)]
        sizes = {path: list(_files(path)) for path in makers if path.is_dir()}
        loaded = [sizes.pop(path, ()) for path in {self.path, *self._lock.open}]
        own = sum(size for files in loaded for size, _ in files)
        for path in sorted(sizes, key=lambda path: max((t for _, t in sizes[path]), default=0)):
            if own + more + sum(size for some in sizes.values() for size, _ in some) <= self._limit:
                return
            log.info("prefixes on disk: those of another model go: %s", path)
            for file in path.iterdir():
                if file.suffix in (ENDING, UNFINISHED):
                    file.unlink()
            path.rmdir()
            del sizes[path]

    def free(self) -> int:
        """Bytes that the disk has left."""
        return shutil.disk_usage(self.path).free

    def chain(self, name: str, length: int) -> list[Span]:
        """Where a text's first tokens are, the first first; the last span is of that name, and may
        be empty. Raises Broken."""
        spans: list[Span] = []
        at, end = name, length
        while True:
            place = self.places.get(at)
            if place is None:
                raise Broken(f"{at} is not there")
            if not spans or place.start < end:
                spans.append(Span(at, place.start, max(end, place.start)))
            end = min(end, place.start)
            if not end:
                return spans[::-1]
            at = place.base

    def remove(self, names: Iterable[str]) -> None:
        """Deletes files; those that are not there do not count. Raises OSError."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                path_of(self.path, name).unlink()
        with contextlib.suppress(FileNotFoundError):
            sync_folder(self.path)

    def touch(self, names: Iterable[str]) -> None:
        """Notes that they were of use, for the next start."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.utime(path_of(self.path, name))


def _files(folder: Path) -> Iterable[tuple[int, float]]:
    """Sizes and times of what is kept there."""
    for path in folder.glob("*" + ENDING):
        with contextlib.suppress(OSError):
            stat = path.stat()
            yield stat.st_size, stat.st_mtime
