"""One rsync to one host: what it copies, how far it is, and when it is given up.

It asks nothing of rsync that macOS's openrsync lacks: no --info, no --stats, no --mkpath. How far
it is follows from the names that -v prints and from --progress where that can be understood.
The shell there makes the far directory and goes to it. What tells it so passes openrsync first,
which cuts it at blanks and takes every quote out, without knowing of backslashes; so the path has
none (far_path).

A copy ends when the other side is silent for stall_s (rsync's --timeout), when the connection
dies (ssh's ServerAlive), or after the time that SLOWEST_BYTES_S would need.
"""

import re
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from scripts.lib.hosts.on_hosts import SSH_OPTIONS
from scripts.lib.sync.parallel import Failure

SLOWEST_BYTES_S = 4_000_000  # a poor Wi-Fi; anything slower is a fault
PROGRESS = re.compile(r"\s*([\d,.']+)\s+(\d+)%")

_running: set[subprocess.Popen] = set()


def copy(
    host: str,
    source: Path,
    target: Path,
    options: Sequence[str],
    *,
    sizes: Mapping[str, int],
    stall_s: float,
    ssh_options: Sequence[str] = (),
    on_progress: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """Copy what is in `source` into `target` there; the names of the files that were sent.

    sizes: of the files that may be sent, by name relative to source. on_progress gets the number
    of bytes dealt with so far. Raises Failure.
    """
    words = rsync_command(host, target, options, stall_s, ssh_options)
    limit_s = stall_s + 60 + sum(sizes.values()) / SLOWEST_BYTES_S
    process = subprocess.Popen(
        words,
        cwd=source,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    _running.add(process)
    timer = threading.Timer(limit_s, process.terminate)
    timer.start()
    errors: deque[str] = deque(maxlen=20)
    reader = threading.Thread(target=_read_errors, args=(process, errors), daemon=True)
    reader.start()
    began = time.monotonic()
    try:
        sent = _follow(process, sizes, on_progress)
        code = process.wait()
        reader.join(5)
    finally:
        timer.cancel()
        _running.discard(process)
    if code != 0:
        over = time.monotonic() - began >= limit_s
        raise Failure(explain(code, list(errors), stall_s, over))
    return sent


def end_all() -> None:
    """Ask every running rsync to leave, as they would go on without us."""
    for process in list(_running):
        process.terminate()


def rsync_command(
    host: str, target: Path, options: Sequence[str], stall_s: float, ssh_options: Sequence[str]
) -> list[str]:
    """The command line; run in the source's directory."""
    # Not quoted: openrsync cuts this at its spaces and knows no quotes. Nothing in it has any.
    ssh = " ".join(["ssh", *SSH_OPTIONS, *ssh_options])
    there = far_path(str(target))
    return [
        "rsync", "-v", "--progress", f"--timeout={max(1, round(stall_s))}", *options,
        "-e", ssh, f"--rsync-path=mkdir -p {there} && cd {there} && rsync", "./", f"{host}:./",
    ]  # fmt: skip


def far_path(path: str) -> str:
    """The path as a word of a shell that has neither quotes nor anything else that openrsync, or
    rsync, would change. Raises Failure."""
    if found := re.search(r"[\x00-\x1f\x7f]", path):
        raise Failure(f"its path holds {found[0]!r}, which rsync cannot be told: {path!r}")

    def escaped(character: re.Match) -> str:
        # Of a quote openrsync would look for the other one, with a backslash before it or not.
        return (
            rf"$(printf \\{ord(character[0]):03o})"
            if character[0] in "'\""
            else "\\" + character[0]
        )

    return re.sub(r"[ -~](?<![\w@%+=:,./-])", escaped, path)


def _follow(process, sizes: Mapping[str, int], on_progress: Callable[[int], None]) -> list[str]:
    """Read what rsync prints, to its end; the names of the files that it sent."""
    sent: list[str] = []
    done = 0  # bytes of the files before the last one
    for piece in _pieces(process.stdout):
        if piece in sizes:
            done += sizes[sent[-1]] if sent else 0
            sent.append(piece)
            on_progress(done)
        elif sent and (found := PROGRESS.match(piece)):
            on_progress(done + sizes[sent[-1]] * min(100, int(found[2])) // 100)
    return sent


def _pieces(stream):
    """What comes between line ends, \\r being one, as soon as it is there."""
    rest = b""
    while data := stream.read1(65536):
        *pieces, rest = re.split(rb"[\r\n]+", rest + data)
        yield from (piece.decode("utf-8", "surrogateescape") for piece in pieces)
    if rest:
        yield rest.decode("utf-8", "surrogateescape")
    stream.close()


def _read_errors(process, errors: deque[str]) -> None:
    for line in process.stderr:
        if text := line.decode("utf-8", "replace").strip():
            errors.append(text)
    process.stderr.close()


def explain(code: int, errors: list[str], stall_s: float, over: bool = False) -> str:
    """Why a copy ended, for the user. The first line that rsync wrote tells more than the last."""
    first = errors[0] if errors else f"rsync ended with code {code}"
    if over:
        return "the copy took longer than any network should need; run it again to go on with it"
    if code == 30 or any("timeout" in line for line in errors):
        return f"the copy stood still for {stall_s:.0f} s; run it again to go on with it"
    if code in (10, 12, 255) or any("connection" in line.lower() for line in errors):
        return f"the connection broke off ({first}); run it again to go on with the copy"
    if any("No space left" in line for line in errors):
        return f"its disk is full ({first}); free some space, then run it again to go on"
    return f"the copy failed ({first})"
