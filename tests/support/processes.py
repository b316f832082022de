"""The processes of this machine, by their command lines."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path


def processes(text: str) -> dict[int, str]:
    """Command lines, by pid, of the living processes that have text in them."""
    found = _of_proc() if Path("/proc/self/cmdline").exists() else _of_ps()
    return {pid: command for pid, command in found if text in command}


def _of_proc() -> Iterator[tuple[int, str]]:
    """This is asked many times a second, and to start a ps takes as long as a rank's answer."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if command := file.read_bytes():  # else a zombie, or the kernel's
                yield int(file.parent.name), command.replace(b"\0", b" ").decode(errors="replace")


def _of_ps() -> Iterator[tuple[int, str]]:
    ps = ["ps", "-Aww", "-o", "pid=,stat=,command="]
    listed = subprocess.run(ps, capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        pid, state, command = [*line.split(None, 2), ""][:3]
        if not state.startswith("Z"):
            yield int(pid), command
