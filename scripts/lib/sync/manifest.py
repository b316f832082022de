"""A model's files with their sizes and hashes, the measure of every copy.

Hashing hundreds of gigabytes takes minutes, so the hashes of the source are kept in the checkout's
run/sync, and used again for files whose size, time and inode are what they were.
"""

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from scripts.lib.sync.parallel import Failure

THREADS = 4  # hashlib lets go of the interpreter, and one core is slower than a disk
CHUNK = 1 << 22  # bytes


@dataclass(frozen=True)
class Item:
    """One file. name is relative to the model's folder; sha256 in hex."""

    name: str
    size: int
    sha256: str


def list_names(folder: Path) -> list[str]:
    """The model's files. Hidden ones are not the model's. Links count as what they lead to."""
    names = []
    for here, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        place = Path(here).relative_to(folder)
        names += [str(place / name) for name in files if not name.startswith(".")]
    return sorted(names)


def cache_file(state: Path, folder: Path) -> Path:
    """Where the hashes of the model at this path are kept."""
    return state / "hashes" / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}.json"


def read_items(
    folder: Path, cache: Path, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Item]:
    """Every file of the folder; on_progress gets the bytes hashed and those to hash.

    Raises Failure for a file that cannot be read or that changes meanwhile.
    """
    known = _read_cache(cache)
    names = list_names(folder)
    marks = {name: _mark(folder / name) for name in names}
    stale = [name for name in names if known.get(name, [])[:-1] != marks[name]]
    total = sum(marks[name][0] for name in stale)
    done = 0

    def hash_one(name: str) -> None:
        nonlocal done

        def count(size: int) -> None:
            nonlocal done
            done += size
            on_progress(done, total)

        digest = hash_file(folder / name, count)
        if _mark(folder / name) != marks[name]:
            raise Failure(f"{folder / name} changes while it is read: wait until it is finished")
        known[name] = [*marks[name], digest]

    try:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(hash_one, stale))
    except OSError as error:
        raise Failure(f"{error.filename} cannot be read: {error.strerror}") from None
    finally:
        _write_cache(cache, {name: known[name] for name in names if name in known})
    return [Item(name, known[name][0], known[name][-1]) for name in names]


def hash_file(path: Path, count: Callable[[int], None] = lambda size: None) -> str:
    """The sha256 of a file in hex."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while data := file.read(CHUNK):
            digest.update(data)
            count(len(data))
    return digest.hexdigest()


def _mark(path: Path) -> list[int]:
    """What stays the same while the content does."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _read_cache(cache: Path) -> dict[str, list]:
    try:
        kept = json.loads(cache.read_text())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _write_cache(cache: Path, known: dict[str, list]) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        fresh = cache.with_suffix(".new")
        fresh.write_text(json.dumps(known))
        fresh.replace(cache)
    except OSError:
        pass  # It saves time, no more.
