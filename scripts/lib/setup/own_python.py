#!/usr/bin/env python3
"""Give the checkout a Python of its own, .python, and make .venv one of that Python's.

Usage: module.py lib.setup.own_python

For hosts that have another Python than this one, or none at its path: sync_nodes.sh copies .python
with the rest, so that all hosts run the very same. It takes the Python that .venv was made with, if
that stands alone: all that it loads is in its own folder or the system's. Else, with uv installed,
one of uv's of the same x.y (it downloads them from python-build-standalone's releases, and knows
their hashes). The packages in .venv stay.

Exit codes: 0 done, 1 no Python here stands alone, 3 there is no .venv. Standard library alone.
"""

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from scripts.lib.settings.interpreter import ROOT, VENV_PYTHON
from scripts.lib.sync.environment import OWN_PYTHON
from scripts.lib.verbs.exit_codes import DONE, FAILED, MISSING

PROGRAM = "own_python"
# Nothing runs there that needs these; they are most of its size.
LEFT_OUT = shutil.ignore_patterns("__pycache__", "site-packages", "test", "idlelib", "*.a", "man")
SYSTEM = ("/usr/lib/", "/lib/", "/usr/lib64/", "/lib64/", "/System/")
# Every part that links to a library; then what was loaded, of which macOS's loader tells.
LOADED = """
import importlib, json, sys
missing = []
for name in ("ssl", "hashlib", "sqlite3", "ctypes", "zlib", "bz2", "lzma", "socket", "select"):
    try:
        importlib.import_module(name)
    except ImportError:
        missing.append(name)
if sys.platform == "darwin":
    import ctypes
    dyld = ctypes.CDLL(None)
    dyld._dyld_get_image_name.restype = ctypes.c_char_p
    images = [dyld._dyld_get_image_name(i).decode() for i in range(dyld._dyld_image_count())]
else:
    with open("/proc/self/maps") as maps:
        code = [line for line in maps if " r-xp " in line and "/" in line]
    images = [line.split(None, 5)[5].strip() for line in code]
print(json.dumps({"base": sys.base_prefix, "missing": missing, "images": images}))
"""


class NotAlone(Exception):
    """Why a Python cannot be copied, in words."""


def main(arguments: list[str]) -> int:
    """See the module's docstring."""
    if not VENV_PYTHON.exists():
        return say(f"there is no {VENV_PYTHON}: make it first", MISSING)
    version = tuple(answer(str(VENV_PYTHON), "list(sys.version_info[:2])"))
    reasons = []
    for source in sources(version):
        try:
            put(Path(source), f"python{version[0]}.{version[1]}")
            return DONE
        except NotAlone as error:
            reasons.append(str(error))
    for reason in reasons:
        say(reason)
    if not shutil.which("uv"):
        say("no Python here stands alone: install uv (macOS: brew install uv), whose Pythons do")
    return FAILED


def sources(version: tuple[int, int]):
    """The folders of Pythons to try."""
    yield answer(str(VENV_PYTHON), "sys.base_prefix")
    if uv := shutil.which("uv"):
        name = f"{version[0]}.{version[1]}"
        say(f"asking uv for Python {name}")
        if subprocess.run([uv, "python", "install", name], stdout=sys.stderr).returncode == 0:
            found = subprocess.run(
                [uv, "python", "find", "--managed-python", name], capture_output=True, text=True
            ).stdout.strip()
            if found:
                yield answer(found, "sys.base_prefix")


def put(source: Path, name: str) -> None:
    """Copies it, sees that the copy stands alone, and gives it .venv. Raises NotAlone; then nothing
    has changed."""
    own = ROOT / OWN_PYTHON
    if source != own:
        if source in (Path("/usr"), Path("/usr/local"), Path("/")):
            raise NotAlone(f"{source}/bin/{name} is the system's, whose parts are everywhere")
        draft = ROOT / "run" / "python.partial"
        shutil.rmtree(draft, ignore_errors=True)
        draft.parent.mkdir(exist_ok=True)
        say(f"copying {source} to {own}")
        shutil.copytree(source, draft, symlinks=True, ignore=LEFT_OUT)
        try:
            stands_alone(draft, name, source)
        except NotAlone:
            shutil.rmtree(draft)
            raise
        shutil.rmtree(own, ignore_errors=True)
        draft.rename(own)
    adopt(own / "bin" / name)


def stands_alone(folder: Path, name: str, source: Path) -> None:
    """Raises NotAlone unless the Python in this folder needs nothing outside it."""
    python = folder / "bin" / name
    there = f"{source}/bin/{name}"
    if not python.exists():
        raise NotAlone(f"{there} is not there")
    told = subprocess.run([str(python), "-I", "-S", "-c", LOADED], capture_output=True, text=True)
    try:
        loaded = json.loads(told.stdout)
    except ValueError:
        last = (told.stderr.strip().splitlines() or [f"exit code {told.returncode}"])[-1]
        raise NotAlone(f"a copy of {there} does not run: {last}") from None
    if Path(loaded["base"]).resolve() != folder.resolve():
        raise NotAlone(f"a copy of {there} takes its library from {loaded['base']}")
    outside = [
        image
        for image in loaded["images"]
        if not image.startswith(SYSTEM)
        and not Path(image).resolve().is_relative_to(folder.resolve())
    ]
    if outside:
        raise NotAlone(f"a copy of {there} needs {outside[0]}, which other hosts may not have")
    if loaded["missing"]:
        raise NotAlone(f"a copy of {there} lacks {', '.join(loaded['missing'])}")


def adopt(python: Path) -> None:
    """.venv becomes one of this Python's; its packages stay, as x.y is the same."""
    folder = VENV_PYTHON.parent
    for link in folder.glob("python*"):
        link.unlink()
    words = [str(python), "-m", "venv", "--without-pip", "--upgrade", str(folder.parent)]
    subprocess.run(words, check=True, stdout=sys.stderr)
    say(f"{folder.parent} is made with {python}, {platform.system()} {platform.machine()}")


def answer(python: str, what: str):
    """What this expression is in that Python."""
    words = [python, "-c", f"import json, sys; print(json.dumps({what}))"]
    return json.loads(subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout)


def say(text: str, code: int = DONE) -> int:
    print(f"{PROGRAM}: {text}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
