"""CPU time and memory of a process, from /proc, or from ps where there is none (macOS)."""

import os
import subprocess
from pathlib import Path

from scripts.lib.hosts.our_process import command_of

PROC = Path("/proc")


def cpu_seconds(pid: int) -> float:
    """CPU time that all threads of a process have used. Raises OSError if it is gone."""
    if PROC.joinpath("self").exists():
        # The name, in brackets, may hold anything.
        fields = PROC.joinpath(str(pid), "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return parse_ps_time(_ps(pid, "time"))


def resident_mb(pid: int) -> float:
    """Resident memory in 10^6 bytes. Raises OSError if it is gone."""
    if PROC.joinpath("self").exists():
        pages = int(PROC.joinpath(str(pid), "statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    return int(_ps(pid, "rss")) * 1024 / 1e6


def parse_ps_time(text: str) -> float:
    """Seconds of ps's time column: 1:02.50, 10:00:00 or 2-03:04:05."""
    days, _, clock = text.strip().rpartition("-")
    seconds = 0.0
    for part in clock.split(":"):
        seconds = seconds * 60 + float(part)
    return seconds + 86_400 * int(days or 0)


def _ps(pid: int, column: str) -> str:
    done = subprocess.run(
        ["ps", "-ww", "-o", f"{column}=", "-p", str(pid)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or not done.stdout.strip():
        raise ProcessLookupError(f"no process {pid}")
    return done.stdout.strip()


def alive(pid: int, marker: str) -> bool:
    """Whether a process lives whose command line holds marker: a pid alone may be another's."""
    return marker in command_of(pid)
