"""The program that looks after one model on its host. Sent there over ssh and run from memory.

A host needs nothing for it but a Python: no checkout, no package. It gets a JOB on stdin and
prints one line of JSON. Nothing of an earlier copy is thrown away but what is not the model's.

    look     what is there, at the model's name and at NAME.partial, and how much space is left
    prepare  make NAME.partial of what is there, so that only what is missing must be sent
    check    which files are missing or have another size or hash
             and, if none is and `finish` is set, give NAME.partial its name: the very last step

JOB: do, folder, token, items ([name, size, sha256]), bad (names), place ("final" or "partial"),
finish, known (names of the model's files beside those of items).
"""

import getpass
import hashlib
import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

THREADS = 4
CHUNK = 1 << 22  # bytes


def partial_of(folder: Path) -> Path:
    """Where a copy lies until it is whole and checked."""
    return folder.with_name(folder.name + ".partial")


def look(job: dict) -> dict:
    """See the module's docstring."""
    folder = Path(job["folder"])
    parent = folder.parent
    # Not Path.is_dir, which fails where a folder above is another user's.
    while not os.path.isdir(parent):
        parent = parent.parent
    return {
        "shared": os.path.exists(job["token"]),
        "rsync": shutil.which("rsync") is not None,
        "state": state_of(folder),
        "final": sizes_in(folder),
        "partial": sizes_in(partial_of(folder)),
        "free": free_bytes(parent),
        "disk": os.stat(parent).st_dev,
        "user": getpass.getuser(),
        "denied": "" if os.access(parent, os.W_OK | os.X_OK) else str(parent),
    }


def state_of(folder: Path) -> str:
    """none, model, or other: something that must not be touched."""
    if not os.path.lexists(folder):
        return "none"
    if not folder.is_dir() or folder.is_symlink():
        return "other"
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    known = [name for name in names if name == "config.json" or name.endswith(".safetensors")]
    return "model" if known or not names else "other"


def sizes_in(folder: Path) -> dict:
    """Size by name of the files below a folder, hidden ones apart."""
    sizes = {}
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith("."):
                path = Path(here) / name
                sizes[str(path.relative_to(folder))] = path.lstat().st_size
    return sizes


def free_bytes(folder: Path) -> int:
    """What df says, as every other check of ours does; -1 if it says nothing."""
    try:
        told = subprocess.run(
            ["df", "-Pk", str(folder)], capture_output=True, text=True, timeout=10
        ).stdout
        return int(told.splitlines()[-1].split()[3]) * 1024
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return -1


def prepare(job: dict) -> dict:
    """What can be used moves from the model's name to NAME.partial; the name goes."""
    folder = Path(job["folder"])
    partial = partial_of(folder)
    partial.mkdir(parents=True, exist_ok=True)
    if state_of(folder) == "model":
        for name, size, _ in job["items"]:
            here, there = folder / name, partial / name
            if name in job["bad"] or not here.is_file():
                continue
            # Of two beginnings of the same file the longer one.
            kept = there.stat().st_size if there.is_file() else -1
            if kept != size and min(here.stat().st_size, size) > min(kept, size):
                there.parent.mkdir(parents=True, exist_ok=True)
                here.replace(there)
        shutil.rmtree(folder)
    return {}


def check(job: dict) -> dict:
    """The files that are not what they should be, each with the reason."""
    folder = Path(job["folder"])
    place = partial_of(folder) if job["place"] == "partial" else folder

    def judge(item: list) -> str:
        name, size, digest = item
        try:
            actual = (place / name).stat().st_size
            if actual != size:
                return f"{actual} bytes of {size}"
            return "" if hash_file(place / name) == digest else "another content"
        except FileNotFoundError:
            return "missing"
        except OSError as error:
            return f"unreadable: {error.strerror}"

    with ThreadPoolExecutor(THREADS) as pool:
        verdicts = list(pool.map(judge, job["items"]))
    names = [name for name, _, _ in job["items"]]
    bad = {name: verdict for name, verdict in zip(names, verdicts) if verdict}  # noqa: B905
    if not bad and job["finish"]:
        os.rename(place, folder)  # Whoever looks sees no model, or a whole one.
        return {"bad": {}, "extra": []}
    extra = sorted(set(sizes_in(place)) - {*names, *job["known"]})
    return {"bad": bad, "extra": extra}


def hash_file(path: Path) -> str:
    """The sha256 of a file in hex."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while data := file.read(CHUNK):
            digest.update(data)
    return digest.hexdigest()


def run(job: dict) -> None:
    """Do what the job says and print the answer."""
    does = {"look": look, "prepare": prepare, "check": check}[job["do"]]
    try:
        answer = does(job)
    except OSError as error:
        answer = {"error": f"{error.filename}: {error.strerror}"}
    print(job["mark"])
    print(json.dumps(answer), flush=True)


if "JOB" in globals():
    run(globals()["JOB"])
