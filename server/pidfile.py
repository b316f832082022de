"""This rank's pid file, by which the scripts find and end the process.

Two lines: the pid and the run id. The run id also stands on the command line, so a script can
check with `ps` that a pid is still ours before it signals it.
"""

import os
from pathlib import Path


def write_pidfile(run_dir: Path, rank: int, run_id: str) -> Path:
    """Writes run_dir/rank-N.pid in one step, so that no reader sees half of it."""
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / f"rank-{rank}.pid"
    fresh = path.with_suffix(f".pid.{os.getpid()}")
    fresh.write_text(f"{os.getpid()}\n{run_id}\n")
    fresh.replace(path)
    return path


def remove_pidfile(path: Path | None) -> None:
    """Removes the file if it still names this process; a successor's file stays."""
    try:
        if path is not None and path.read_text().split()[0] == str(os.getpid()):
            path.unlink()
    except (OSError, IndexError):
        pass  # a stale file is harmless: its pid is checked before it is used
