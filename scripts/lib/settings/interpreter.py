#!/usr/bin/env python3
"""Which Python the ranks run with, the same absolute path on every host, and whether it will do.

Usage: module.py lib.settings.interpreter path
       module.py lib.settings.interpreter problem PATH

path       What PYTHON names, else that of the conda environment ENV_NAME, else the checkout's
.venv,
           which need not exist yet.
problem    Nothing, or why the ranks cannot run with this one.

Read from the environment, where check_settings has put what holds. The first line is `interpreter`.
Exit codes: 0 done, 3 a program is missing, in words. Standard library alone; Python 3.9.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from scripts.lib.verbs.exit_codes import MISSING

ROOT = Path(__file__).resolve().parents[3]
VENV_PYTHON = ROOT / ".venv" / "bin" / "python"
# mlx for macOS is built for arm64 alone; a python under Rosetta finds no wheel.
RUNS = (
    "import platform, sys; sys.exit(sys.version_info < (3, 11) or "
    "(sys.platform, platform.machine()) == ('darwin', 'x86_64'))"
)
HAS_PACKAGES = "import importlib.util, sys; sys.exit(not importlib.util.find_spec('mlx_lm'))"


class NoInterpreter(Exception):
    """There is none; the message says what to do."""


def rank_python(env: Mapping[str, str]) -> str:
    """Its path. Raises NoInterpreter."""
    if named := env.get("PYTHON"):
        found = shutil.which(named, path=env.get("PATH"))
        if found is None:
            raise NoInterpreter(f"PYTHON='{named}': no such program")
        return os.path.abspath(found)
    if env_name := env.get("ENV_NAME"):
        return conda_python(env_name, env.get("CONDA_EXE") or "conda")
    return str(VENV_PYTHON)


def conda_python(env_name: str, conda: str) -> str:
    """The interpreter of a conda environment. Raises NoInterpreter."""
    if shutil.which(conda) is None:
        raise NoInterpreter(
            f"{conda} is not installed: put conda on PATH, set CONDA_EXE, or use PYTHON instead of "
            "ENV_NAME"
        )
    command = [conda, "run", "-n", env_name, "python", "-c", "import sys; print(sys.executable)"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = done.stdout.split()
    if done.returncode or not lines:
        raise NoInterpreter(f"ENV_NAME='{env_name}': conda has no such environment with a python")
    return done.stdout.splitlines()[-1]


def problem(python: str) -> str:
    """Why ranks cannot run with it here, or nothing."""
    if python == str(VENV_PYTHON) and not os.access(python, os.X_OK):
        return (
            f"no {python}: make it on every host (docs/from-scratch.md), or set ENV_NAME or PYTHON"
        )
    if not succeeds(python, RUNS):
        return f"{python}: not a Python 3.11 or later (on a Mac: for arm64)"
    if not succeeds(python, HAS_PACKAGES):
        return f"{python} has no mlx-lm: {shlex.quote(python)} -m pip install -r requirements.txt"
    return ""


def succeeds(python: str, code: str) -> bool:
    command = [python, "-c", code]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def main(arguments: list[str]) -> int:
    """See the module's docstring."""
    try:
        if arguments[0] == "path":
            told, code = rank_python(os.environ), 0
        else:
            told = problem(arguments[1])
            code = MISSING if told else 0
    except NoInterpreter as error:
        told, code = str(error), MISSING
    print("interpreter", told, sep="\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
