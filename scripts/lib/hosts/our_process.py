"""Is the process that a pid file of ours names still the one that wrote it?

A pid alone may by now be somebody else's, so the command line of a process must carry the id of its
run: `--run-id ID`. The pid file holds the pid, and below it that id. Bash has the same in common.sh
(ours, is_run), for hosts on which no Python is sure. Standard library alone; Python 3.9.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

RUN_ID = re.compile(r"[A-Za-z0-9._-]+")


def is_of_run(command: str, run_id: str) -> bool:
    """Whether a command line, perhaps with other words of ps before it, is of this run."""
    return bool(run_id) and f" --run-id {run_id} " in f" {command.strip()} "


def is_service(command: str) -> bool:
    """The same of what a service runs, which belongs to no run: it starts them."""
    return "service_run" in command


def read_record(path: Path) -> tuple[int, str] | None:
    """The pid and the run's id in a pid file; None if it is none of ours, or half written."""
    lines = read_lines(path)
    if (
        len(lines) < 2
        or not re.fullmatch("[1-9][0-9]*", lines[0])
        or not RUN_ID.fullmatch(lines[1])
    ):
        return None
    return int(lines[0]), lines[1]


def recorded_pid(path: Path) -> int | None:
    """The pid in a pid file, if that process runs here and is the one that wrote it."""
    record = read_record(path)
    if record is None or not is_of_run(command_of(record[0]), record[1]):
        return None
    return record[0]


def command_of(pid: int | str) -> str:
    """The command line of a process of this machine; empty if there is none.

    Slim containers have no ps, or one that does not take this; there Linux's /proc tells."""
    ps = ["ps", "-ww", "-p", str(pid), "-o", "command="]
    try:
        done = subprocess.run(ps, capture_output=True, text=True, errors="replace")
        if done.returncode == 0:
            return done.stdout.strip()
    except OSError:
        pass
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:
        return ""
    return words.decode(errors="replace").strip()


def signal_if(pidfile: str, words: str, signal: str) -> str:
    """Shell for the far end of ssh: the recorded process gets the signal if its command line has
    these words; and SIGCONT, without which a stopped one would not hear it.

    ps shows what is no ASCII as the far locale has it, or as question marks: it may be anything."""
    like = "*".join(shlex.quote(part) for part in re.split(r"[^ -~]+", words) if part)
    return (
        f"pid=$(cat {shlex.quote(pidfile)}) || exit 0; "
        'case "$(ps -ww -p "$pid" -o command= 2>/dev/null || '
        """tr '\\0' ' ' 2>/dev/null <"/proc/$pid/cmdline")" in """
        f'*{like}*) kill -{signal} "$pid"; kill -CONT "$pid" ;; esac'
    )


def read_lines(path: Path) -> list[str]:
    """The lines of a small file; none if it cannot be read."""
    try:
        return [line.strip() for line in path.read_text(errors="replace").splitlines()]
    except OSError:
        return []
