"""A log in parts: FILE is written to, FILE.1 is the part before it, FILE.4 the oldest.

run_log.py writes and turns it; logs.sh, status.sh and whoever waits for a detached server read
it, while it is written and turned. A part is known by its inode, since its name changes. Lines
are bytes without their ends. Standard library only; no thread of its own.
"""

import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

KEPT = 4  # Older parts. With the one in use, this many and one times the size of a part.
LOOK_EVERY_S = 0.2
RUN_STARTS = b" supervisor: starting run "  # The first line that a run writes; its id follows.
CONTINUES = b" supervisor: continued from "  # What a new part begins with. Readers leave it out.

_NAMED = re.compile(rb"mlx_launch: .*\brank (\d+) on ")
_CAUSE_TAIL = b"  | "  # What the launcher puts before a failed rank's last lines.

Choose = Callable[[Iterable[bytes]], Iterator[bytes]]


def part(log: Path, number: int) -> Path:
    """The name of a part; 0 is the one that is written to."""
    return log.with_name(f"{log.name}.{number}") if number else log


def turn(log: Path) -> None:
    """Move every part one further, so that the name of the log is free; the oldest is gone.

    Nothing if the name is free, as when an earlier try went only so far.
    """
    if not log.exists():
        return
    for number in range(KEPT, 0, -1):
        with suppress(FileNotFoundError):
            os.replace(part(log, number - 1), part(log, number))


@dataclass(frozen=True)
class Mark:
    """A place in a log that stays the same when the log is turned."""

    inode: tuple[int, int] | None  # None: there was no log yet.
    offset: int

    @classmethod
    def at_end(cls, log: Path) -> "Mark":
        try:
            about = log.stat()
        except OSError:
            return cls(None, 0)
        return cls((about.st_dev, about.st_ino), about.st_size)


def inode(file: BinaryIO) -> tuple[int, int]:
    about = os.fstat(file.fileno())
    return about.st_dev, about.st_ino


def open_parts(log: Path, stack: ExitStack) -> list[BinaryIO]:
    """Open every part, newest first, each once.

    In this order, as parts move the same way: if the log is turned meanwhile the same part is met
    twice, and none is missed. Its place is then where it was met last: newer ones, which took its
    first place, may have been met in between. Raises OSError if there is a log, but it may not be
    read.
    """
    files: dict[tuple[int, int], BinaryIO] = {}
    for number in range(KEPT + 1):
        try:
            file = stack.enter_context(open(part(log, number), "rb"))  # noqa: SIM115
        except FileNotFoundError:
            continue
        file = files.pop(inode(file), file)
        files[inode(file)] = file
    return list(files.values())


def read_since(log: Path, mark: Mark, limit: int) -> list[bytes]:
    """Return the lines written after `mark`, of the last `limit` bytes. Raises OSError."""
    data = b""
    with ExitStack() as stack:
        for file in open_parts(log, stack):
            reached = inode(file) == mark.inode
            size = file.seek(0, os.SEEK_END)
            begin = mark.offset if reached and mark.offset <= size else 0
            file.seek(max(begin, size - (limit - len(data))))
            data = file.read(limit) + data
            if reached or len(data) >= limit:
                break
    return list(_joined(data.splitlines()))


def last_lines(files: list[BinaryIO], count: int | None, choose: Choose) -> list[bytes]:
    """Return the last `count` chosen lines (None: all), oldest first; files are newest first."""
    parts: list[list[bytes]] = []
    left = count
    for file in files:
        if left == 0:
            break
        chosen = choose(_joined(line.rstrip(b"\r\n") for line in file))
        parts.append(list(chosen) if left is None else list(deque(chosen, maxlen=left)))
        left = None if left is None else left - len(parts[-1])
    return [line for lines in reversed(parts) for line in lines]


def lines_of_last_run(files: list[BinaryIO], choose: Choose) -> list[bytes]:
    """Return the chosen lines since the last start of a server, its restarts included."""
    parts: list[list[bytes]] = []
    for file in files:
        lines = list(_joined(line.rstrip(b"\r\n") for line in file))
        starts = [number for number, line in enumerate(lines) if RUN_STARTS in line[:80]]
        parts.append(lines[starts[-1] :] if starts else lines)
        if starts:
            break
    return list(choose(line for lines in reversed(parts) for line in lines))


def every_line(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Choose all of them."""
    yield from lines


def of_rank(rank: int) -> Choose:
    """Choose what one rank said, and what the launcher said of it."""
    label = b"[rank %d]" % rank

    def choose(lines: Iterable[bytes]) -> Iterator[bytes]:
        in_tail = False
        for line in lines:
            if line.startswith(_CAUSE_TAIL):
                if in_tail:
                    yield line
                continue
            named = _NAMED.match(line)
            about = named is not None and int(named[1]) == rank
            in_tail = about and line.startswith(b"mlx_launch: cause: ")
            if about or label in line[:40]:
                yield line

    return choose


def follow(log: Path, file: BinaryIO | None, sleep=time.sleep) -> Iterator[bytes]:
    """Yield lines from the place at which `file` stands, for ever, however often it is turned.

    None: from the beginning of the log, which need not exist yet.
    """
    rest = b""
    while True:
        data = file.read(1 << 16) if file is not None else b""
        if not data:
            following = _next_part(log, file)
            if following is None:
                if file is not None and os.fstat(file.fileno()).st_size < file.tell():
                    file.seek(0)  # Somebody has emptied it.
                    rest = b""
                sleep(LOOK_EVERY_S)
                continue
            if file is not None:
                # The old part was complete before the new one had its name, but perhaps
                # not when we last read.
                yield from _joined((rest + file.read()).splitlines())
                file.close()
            file, rest = following, b""
            continue
        *lines, rest = (rest + data).split(b"\n")
        yield from _joined(lines)


def _joined(lines: Iterable[bytes]) -> Iterator[bytes]:
    return (line for line in lines if CONTINUES not in line[:80])


def _next_part(log: Path, file: BinaryIO | None) -> BinaryIO | None:
    """Open the part after this one; None while this one is still the newest."""
    with suppress(OSError):
        about = log.stat()
        if file is not None and inode(file) == (about.st_dev, about.st_ino):
            return None
    with ExitStack() as stack:
        files = open_parts(log, stack)
        inodes = [inode(other) for other in files]
        if not files or (file is not None and not log.exists()):
            return None
        place = len(files)
        if file is None:
            place = 1  # A log that has just come into being: its newest part.
        elif inode(file) in inodes:
            place = inodes.index(inode(file))
        if place == 0:
            return None
        found = os.dup(files[place - 1].fileno())
    return os.fdopen(found, "rb")
