"""What a host's Python really imports, compared with this machine's.

The server compares the same things when it starts, and refuses; here it is seen before.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from scripts.lib.sync.parallel import Failure
from scripts.lib.sync.probe import MARK, after_mark, ask

IMPORT_WITHIN_S = 180.0  # the first import after a copy compiles some thousand modules
IMPORTS = ("mlx.core", "mlx_lm", "transformers")

# Run by the ranks' interpreter, with the checkout's own modules.
PROGRAM = """
import importlib, json, platform, sys
from importlib.metadata import PackageNotFoundError, version
mark, root, packages, modules = sys.argv[1:5]
sys.path.insert(0, root)
from pathlib import Path
sys.dont_write_bytecode = True  # nothing in the checkout there but what was copied
from server.protocol.fingerprint import code_digests
sys.dont_write_bytecode = False
told = {"python": platform.python_version(), "packages": {}, "failed": {}}
for name in packages.split():
    try:
        told["packages"][name] = version(name)
    except PackageNotFoundError:
        told["packages"][name] = None
for name in modules.split():
    try:
        importlib.import_module(name)
    except BaseException as error:
        told["failed"][name] = f"{type(error).__name__}: {error}"
told["code"] = code_digests(Path(root), ("server", "scripts"))
print(mark)
print(json.dumps(told))
"""


def pinned_packages(requirements: Path) -> list[str]:
    """The names that a requirements file pins, in its order, each once."""
    found = re.findall(r"^([A-Za-z0-9_.-]+)(?:\[[^]]*\])?==", requirements.read_text(), re.M)
    return list(dict.fromkeys(found))


def ask_versions(host: str, python: str, root: Path) -> dict:
    """What that host's interpreter and checkout are. Failure if it cannot import the packages."""
    packages = " ".join(pinned_packages(root / "requirements.txt"))
    words = [python, "-c", PROGRAM, MARK, str(root), packages, " ".join(IMPORTS)]
    answer = ask(host, words, within_s=IMPORT_WITHIN_S)
    try:
        told = json.loads(after_mark(answer))
    except ValueError:
        raise Failure(f"{python} does not run there: {answer.reason}") from None
    for name, reason in told["failed"].items():
        raise Failure(f"{python} cannot import {name} there: {reason}")
    return told


def compare(here: Mapping, there: Mapping) -> list[str]:
    """What differs, a few words each."""
    found = []
    if here["python"] != there["python"]:
        found.append(f"python is {there['python']}, here {here['python']}")
    for name, version in here["packages"].items():
        other = there["packages"].get(name)
        if other != version:
            found.append(f"{name} is {other or 'missing'}, here {version or 'missing'}")
    code, other_code = here["code"], there["code"]
    for name in sorted({*code, *other_code}):
        if name not in code and not name.startswith("server/"):
            continue  # A script of their own is no difference between ranks.
        if name not in code:
            found.append(f"{name} is there and not here: remove it there if nobody needs it")
        elif code[name] != other_code.get(name):
            found.append(f"{name} is {'not the same' if name in other_code else 'missing'}")
    return found


def show(told: Mapping) -> str:
    """The versions that matter most, for a line of the result."""
    packages = told["packages"]
    shown = [f"{name} {packages[name]}" for name in ("mlx", "mlx-lm") if packages.get(name)]
    return ", ".join([f"python {told['python']}", *shown])
