"""Which environment the ranks use, and on which hosts a copy of it would be useless.

A virtual environment is a folder of packages and a link to the Python that it was made with; a
conda environment holds its Python too. Both name their own path in many places, so a copy works
at the same path only, and on the same kind of machine. A virtual environment needs its Python at
the same path there, of the same version, unless that lies in the checkout (.python, made by
setup/own_python.py) and is copied with it.
"""

import json
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from scripts.lib.sync.parallel import Failure

ASK = """
import json, os, platform, sys
print(json.dumps({
    "prefix": sys.prefix,
    "own": sys.prefix != sys.base_prefix,
    "base": os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable),
    "version": platform.python_version(),
}))
"""
ROOT = Path(__file__).resolve().parents[3]
OWN_PYTHON = ".python"  # in the checkout
BASE = "@@base@@"  # before the version of the base, in what base_program prints
SIGNS = "pyvenv.cfg conda-meta"  # a folder with one of these is an environment


@dataclass(frozen=True)
class Environment:
    """kind: venv or conda. base: the Python that must be on each host already; None where it goes
    with the copy, in the prefix (conda) or in `own`, the folder of the checkout's own Python."""

    kind: str
    prefix: Path
    version: str
    base: str | None
    own: Path | None = None


def describe(python: str, root: Path = ROOT) -> Environment:
    """The environment of this interpreter. Failure if it is none that could be copied."""
    try:
        asked = subprocess.run([python, "-c", ASK], capture_output=True, text=True, timeout=60)
        told = json.loads(asked.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise Failure(f"{python} does not run: {error}") from None
    prefix = Path(told["prefix"])
    if told["own"] and (prefix / "pyvenv.cfg").exists():
        base, own = base_of(prefix, told["base"]), root / OWN_PYTHON
        if Path(base).is_relative_to(own):
            return Environment("venv", prefix, told["version"], None, own)
        return Environment("venv", prefix, told["version"], base)
    if (prefix / "conda-meta").is_dir():
        if (prefix / "condabin").exists():
            raise Failure(
                f"{python} is conda's base environment, which holds all the others: make one of "
                "its own (docs/from-scratch.md) and name it with ENV_NAME"
            )
        return Environment("conda", prefix, told["version"], None)
    raise Failure(
        f"{python} belongs to no virtual or conda environment, so there is nothing to copy: use "
        ".venv or ENV_NAME, or install the packages on every host and use --checkout-only"
    )


def base_of(prefix: Path, fallback: str) -> str:
    """The Python that a virtual environment links to, by the name it will be looked up with."""
    for name in ("python", "python3"):
        link = prefix / "bin" / name
        for _ in range(10):
            if not link.is_symlink():
                break
            target = link.parent / link.readlink()
            if not target.is_relative_to(prefix):
                return str(target)
            link = target
    return fallback


def base_program(env: Environment) -> str:
    """Shell that prints which version of the environment's base the host has, if any."""
    code = "import platform; print(platform.python_version())"
    base = shlex.quote(env.base or "")
    return f"""echo "{BASE}$({base} -c '{code}' 2>/dev/null)"\n""" if env.base else ""


def list_sizes(prefix: Path) -> dict[str, int]:
    """The files of the environment that are copied, with their sizes in bytes."""
    sizes = {}
    for path in prefix.rglob("*"):
        if "__pycache__" in path.parts or (path.is_dir() and not path.is_symlink()):
            continue
        sizes[str(path.relative_to(prefix))] = path.lstat().st_size
    return sizes


# Compiled modules belong to the Python that runs there, which makes its own.
COPY_OPTIONS = ("-rlpt", "--delete", "--exclude=__pycache__")
