"""This rank's pid file, by which the scripts find and end the process.

Two lines: the pid and the run id. The run id also stands on the command line, so a script can
check with `ps` that a pid is still ours before it signals it.

A disk that takes no file is no reason not to serve: the launcher ends its ranks without it, and a
rank whose launcher is gone leaves by itself. So the rank says what is wrong, and tries again.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

TRY_AGAIN_S = 10.0


def write_pidfile(run_dir: Path, rank: int, run_id: str) -> Path:
    """Writes run_dir/rank-N.pid in one step, so that no reader sees half of it. Raises OSError."""
    path = name_pidfile(run_dir, rank)
    fresh = path.with_suffix(f".pid.{os.getpid()}")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        fresh.write_text(f"{os.getpid()}\n{run_id}\n")
        fresh.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
    return path


def name_pidfile(run_dir: Path, rank: int) -> Path:
    return run_dir / f"rank-{rank}.pid"


def keep_pidfile(run_dir: Path, rank: int, run_id: str, tell: Callable[[str], None]) -> Path:
    """Writes the file now or, where the disk refuses, as soon as it takes it. tell hears why there
    is none, and an empty text once it is written, on the thread that tries again."""
    path = name_pidfile(run_dir, rank)

    def attempt() -> str:
        try:
            write_pidfile(run_dir, rank, run_id)
        except OSError as error:
            return f"cannot write {path}: {error.strerror}"
        return ""

    def try_again() -> None:
        while attempt():
            time.sleep(TRY_AGAIN_S)
        tell("")

    if problem := attempt():
        tell(problem)
        threading.Thread(target=try_again, name="pidfile", daemon=True).start()
    return path


def remove_pidfile(path: Path | None) -> None:
    """Removes the file if it still names this process; a successor's file stays."""
    try:
        if path is not None and path.read_text().split()[0] == str(os.getpid()):
            path.unlink()
    except (OSError, IndexError):
        pass  # a stale file is harmless: its pid is checked before it is used
