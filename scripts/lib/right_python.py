"""A program started with an older Python than it needs goes on with a newer one, or says so.

For programs that people start themselves: `python3` on a Mac is Apple's 3.9. Called before anything
else is imported, so it has to be what any Python 3 takes. Standard library only.
"""

import os
import subprocess
import sys

LEAST = (3, 11)
NAMES = ("python3.11", "python3.12", "python3.13", "python3.14", "python3")
FOLDERS = ("/opt/homebrew/bin", "/usr/local/bin")  # of Homebrew, which a shell may not look into
AGAIN = "MLX_CLUSTER_PYTHON"  # who went on already; two that send each other on would never end
TEST = "import sys; sys.exit(sys.version_info < (3, 11))"
WITHIN_S = 20


def ensure(root, module=None):
    """Returns only under a Python that is new enough. root: the checkout. module: what `-m` named;
    else the program is the first word."""
    if sys.version_info >= LEAST:
        return
    found = None if AGAIN in os.environ else find(root)
    if found is None:
        version = ".".join(str(part) for part in sys.version_info[:3])
        sys.stderr.write(
            f"this needs Python 3.11 or later, and {sys.executable} is {version}; none was found: "
            "install one (macOS: brew install python@3.12), or start the server once, which makes "
            ".venv, and use .venv/bin/python\n"
        )
        sys.exit(3)
    os.environ[AGAIN] = sys.executable or "python3"
    program = ["-m", module] if module else [sys.argv[0]]
    os.execv(found, [found] + program + sys.argv[1:])


def find(root):
    """The checkout's own, which has the packages, else the first that will do; None without one."""
    folders = os.environ.get("PATH", "").split(os.pathsep) + list(FOLDERS)
    places = [os.path.join(folder, name) for name in NAMES for folder in folders if folder]
    for place in [os.path.join(root, ".venv", "bin", "python")] + places:
        if os.access(place, os.X_OK) and is_new(place):
            return place
    return None


def is_new(python):
    if os.path.realpath(python) == "/usr/bin/python3" and sys.platform == "darwin":
        return False  # Apple's own, which may be but a window that asks for its developer tools
    try:
        quiet = subprocess.DEVNULL
        code = subprocess.call(
            [python, "-c", TEST], stdin=quiet, stdout=quiet, stderr=quiet, timeout=WITHIN_S
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return code == 0
