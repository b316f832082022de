"""Files that are wanted whole, and what else may be at their path: to open a pipe would wait for
who writes it.

Standard library alone; Python 3.9.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def no_file(path: Path) -> str:
    """`is a folder, no file`, or whatever it is; nothing for a file, and where nothing is."""
    try:
        kind = KINDS.get(stat.S_IFMT(path.stat().st_mode))
    except (OSError, ValueError):  # it is said when it is read
        return ""
    return f"is {kind}, no file" if kind else ""


def write_whole(path: Path, text: str) -> None:
    """Whole or not at all, as somebody may read it at this moment; makes its folder. OSError where
    that cannot be, and nothing is left beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, "utf-8")
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
