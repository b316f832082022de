#!/usr/bin/env python3
"""Which hostfile is meant: the one that HOSTFILE names, the usual one, or the only one there is.

Usage: module.py lib.hosts.find_hostfile [FILE]

The first line is `find_hostfile`, then comes its path from the root. Exit codes: 0 done, 2 there
are several, 3 there is none; then in words. Standard library alone; Python 3.9.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from scripts.lib.verbs.exit_codes import MISSING, USAGE
from scripts.lib.verbs.file_kind import no_file
from server.protocol.settings_table import DEFAULT_HOSTFILE

ROOT = Path(__file__).resolve().parents[3]
HINT = (
    "make one with scripts/make_hostfile.sh HOST..., or copy a template and fill it in: cp "
    f"hostfiles/m3-ultra-jaccl.template.json {DEFAULT_HOSTFILE}; or use --local 2 for ranks on "
    "this machine"
)


class NoHostfile(Exception):
    """No hostfile, or no one of several; code is the exit code."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


def find_hostfile(named: str, root: Path = ROOT) -> Path:
    """The hostfile, from the root. Raises NoHostfile."""
    if named:
        path = Path(os.path.abspath(named))
        if not path.is_file():
            problem = no_file(path) or "no such file"
            raise NoHostfile(MISSING, f"HOSTFILE='{path}': {problem}; {HINT}")
        return path
    usual = root / DEFAULT_HOSTFILE
    found = [usual] if usual.is_file() else local_hostfiles(root)
    if not found:
        raise NoHostfile(MISSING, f"no hostfile: {HINT}")
    if len(found) > 1:
        names = "\n".join(map(str, found))
        raise NoHostfile(USAGE, f"several hostfiles; set HOSTFILE to one of:\n{names}")
    return found[0]


def local_hostfiles(root: Path = ROOT) -> list[Path]:
    """Those of this checkout."""
    return sorted(path for path in (root / "hostfiles").glob("*.local.json") if path.is_file())


def main(arguments: list[str]) -> int:
    """See the module's docstring."""
    try:
        told, code = str(find_hostfile("".join(arguments))), 0
    except NoHostfile as error:
        told, code = str(error), error.code
    print("find_hostfile", told, sep="\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
