"""Which files make up the checkout, and which of an earlier one a host has still.

Ours are the files that git knows, and new ones among the code. Without git, all but what the
checkout makes when needed. Nothing else is copied, and nothing else is ever removed: a host keeps
its own run/, logs/, models/, hostfiles/*.local.json, cluster.env, .git, and whatever its user put
there.

A host remembers in run/sync/files what it was given, so that a file which has since been removed
or renamed here goes away there: an old module beside the new ones would make the ranks differ.
"""

import os
import shlex
import subprocess
from pathlib import Path, PurePosixPath

from scripts.lib.sync.probe import MARK

STATE = "run/sync"  # ours on every host; git ignores run/
REMEMBERED = f"{STATE}/files"
CODE = ("server/", "scripts/")
SIGNS = "scripts/run_openai_cluster_server.sh run/sync"  # a folder with one of these is a checkout
SOMETHING_ELSE = ("pyvenv.cfg", "conda-meta", ".git")
NOT_OURS = {".git", ".venv", ".python", "run", "logs", "models"}  # at the top
NOT_OURS_ANYWHERE = {
    "__pycache__", ".DS_Store", ".pytest_cache", ".ruff_cache", ".hypothesis", "node_modules",
}  # fmt: skip


def list_files(root: Path) -> list[str]:
    """The files of the checkout, relative, sorted. Links are files."""
    names = _from_git(root)
    if names is None:
        names = _walk(root)
    return sorted({name for name in names if is_ours(name)})


def is_ours(name: str) -> bool:
    """Whether a name can be that of a file which is copied, or removed."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts:
        return False
    if parts[0] in NOT_OURS or NOT_OURS_ANYWHERE & set(parts) or name.endswith(".pyc"):
        return False
    if parts[0].startswith("cluster.env"):  # and what an editor leaves beside it: keys
        return False
    return not (parts[0] == "hostfiles" and name.endswith(".local.json"))


def _walk(root: Path) -> list[str]:
    names = []
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        # Another environment or a clone in a subfolder is its user's, and may be huge.
        folders[:] = [
            name
            for name in folders
            if is_ours(str((here / name).relative_to(root)))
            and not any((here / name / sign).exists() for sign in SOMETHING_ELSE)
        ]
        names += [str((here / name).relative_to(root)) for name in files]
    return names


def _from_git(root: Path) -> list[str] | None:
    """What git knows, and code that it does not know yet; None without git."""
    if not (root / ".git").exists():
        return None
    names = []
    for more in ([], ["--others", "--exclude-standard", "--", *CODE]):
        command = ["git", "-C", str(root), "ls-files", "-z", *more]
        try:
            listed = subprocess.run(command, capture_output=True, check=True, timeout=60)
        except (OSError, subprocess.SubprocessError):
            return None
        names += listed.stdout.decode("utf-8", "surrogateescape").split("\0")
    # A file that was deleted here but not yet from git is none.
    return [name for name in names if name and (root / name).is_file()]


GIT = "@@git@@"


def remembered_program(root: Path) -> str:
    """Shell that prints which files the host has of ours, and of a git checkout of its own."""
    return f"""
cd {shlex.quote(str(root))} 2>/dev/null || exit 0
cat {REMEMBERED} 2>/dev/null
echo '{GIT}'
[ ! -e .git ] || git ls-files 2>/dev/null
"""


# Removes what stdin lists (NUL between), then remembers $2, one name a line.
FORGET_PROGRAM = f"""
mkdir -p "$1/{STATE}" && cd "$1" && xargs -0 rm -f -- && printf '%s' "$2" >{REMEMBERED}.new &&
mv {REMEMBERED}.new {REMEMBERED} && echo '{MARK}'
"""


def what_changes(printed: str, files: list[str]) -> tuple[list[str], bool]:
    """The files to remove there, and whether it has to remember anything new.

    printed: by remembered_program. Names that cannot be ours are left alone.
    """
    remembered, _, git = printed.partition(GIT + "\n")
    old = {name for name in (remembered + git).splitlines() if is_ours(name)}
    stale = sorted(old - set(files))
    return stale, bool(stale) or remembered != file_list(files)


def file_list(files: list[str]) -> str:
    """What a host remembers of a copy of these files."""
    return "".join(f"{name}\n" for name in files)
