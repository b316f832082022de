"""Opens the ranks' folders of kept prefixes, and agrees on what is in all of them.

Called on the main thread of every rank, where PREFIX_DISK_GB is set, when the model is loaded. A
folder that one rank cannot use turns it off for all: a line in the log, and all goes on without.
"""

import json
import logging
import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from server.disk.entry_file import MAGIC
from server.disk.folder import Folder, Found, Lock, Unusable
from server.engine.kept_caches import PLAIN, WORDS, Apart, Unkeepable
from server.engine.prefix_disk import PrefixDisk
from server.protocol.fingerprint import fingerprint, fingerprint_files
from server.protocol.settings import Settings
from server.startup.loading import Shard
from server.startup.piece_pace import AllAtOnce, Pace
from server.wire.link import Link

SUMS_TOGETHER, SUMMED_BYTES = 64, 2**29  # arrays, and of how many bytes: between two turns

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """disk: this rank's; None: there is none. On every rank alike: name, base, start, end and each
    rank's KiB of what all have; found: this rank's view of it. labels: see PrefixDisk."""

    disk: PrefixDisk | None = None
    entries: tuple[tuple[str, str, int, int, tuple[int, ...]], ...] = ()
    found: dict[str, Found] = field(default_factory=dict)
    labels: dict[str, bytes] = field(default_factory=dict)
    problem: str = ""  # why there is none


def open_disk(
    settings: Settings,
    link: Link,
    shard: Shard,
    tell: Callable[[str], None],
    model_dir: Path | None = None,
    lock: Lock | None = None,
    pace: Pace | None = None,
) -> Generator[None, None, Opened]:
    """All ranks together. model_dir: of another model than the first; lock: what the folders of
    other models hold, too. Gives way in between; pace: as load_pieces() has it."""
    pace = pace or AllAtOnce()
    folder: Folder | None = None
    found: dict[str, Found] = {}
    problem = ""
    totals = yield from sums(shard.model, link)
    caches = make_prompt_cache(shard.model)

    def look() -> None:
        nonlocal folder, found, problem
        try:
            Apart(caches, 0, 1)  # or every attempt to write would fail
            maker = name_maker(model_dir or settings.model_dir, link, shard, totals)
            limit = int(settings.prefix_disk_gb * 1e9)
            folder = Folder(_root(settings), link.rank, maker, limit, lock)
            found = folder.scan(labels=link.rank == 0)
        except (Unusable, Unkeepable, OSError) as error:
            problem = str(error)

    tell("looking at the prefixes on disk")
    yield from pace.aside(link, look)
    rows = [(n, f.place.base, f.place.start, f.place.end, f.kib) for n, f in found.items()]
    mine = json.dumps({"problem": problem, "entries": rows}).encode()
    told = [json.loads(data) for data in link.gather_bytes(mine)]
    problems = [f"rank {rank}: {one['problem']}" for rank, one in enumerate(told) if one["problem"]]
    if problems:
        if folder is not None:
            folder.close()
        return Opened(problem="; ".join(problems))
    entries = on_all([one["entries"] for one in told])
    names = {name for name, *_ in entries}
    folder.places = {name: found[name].place for name in names}

    def clear() -> None:
        try:
            folder.remove(found.keys() - names)
            folder.make_room()
        except OSError as error:
            log.warning("prefixes on disk: what nobody needs stays: %s", error)

    yield from pace.aside(link, clear)
    log.info(
        "prefixes on disk: %d are whole on all ranks, %d here were not; in %s",
        len(names), len(found) - len(names), folder.path,
    )  # fmt: skip
    labels: dict[str, bytes] = {}
    disk = PrefixDisk(link, folder, partial(make_prompt_cache, shard.model), labels)
    return Opened(disk, entries, found, labels)


def on_all(ranks: list[list[list]]) -> tuple[tuple[str, str, int, int, tuple[int, ...]], ...]:
    """Of each rank's entries those that all have alike, with all that they are based on."""
    first, *others = [{tuple(row[:4]): row[4] for row in rows} for rows in ranks]
    whole = {key for key in first if all(key in other for other in others)}
    ends = {key[0]: key[3] for key in whole}
    while lost := {k for k in whole if k[1] and ends.get(k[1], -1) < k[2]}:
        whole -= lost
        ends = {key[0]: key[3] for key in whole}
    return tuple(
        (*key, (first[key], *(other[key] for other in others))) for key in first if key in whole
    )


def name_maker(model_dir: Path, link: Link, shard: Shard, totals: list[tuple]) -> str:
    """Of all that a kept cache depends on but for its text: who has the same may use it. totals: of
    its weights, as sums() has them."""
    caches = [
        (type(c).__name__, {k: v for k, v in vars(c).items() if type(v) in PLAIN})
        for c in make_prompt_cache(shard.model)
    ]
    return fingerprint(
        MAGIC.decode(), link.rank, link.size, str(shard.arrangement), version("mlx-lm"),
        fingerprint_files(model_dir), list(map(str, totals)), caches,
        *([str(shard.last.ways.quantised)] if shard.last.ways.quantised else []),
    )  # fmt: skip


def sums(model: Any, link: Link) -> Generator[None, None, list[tuple]]:
    """Of each array of weights its name, shape, type, and the sum of its words: a model that was
    trained on has the same names and sizes, and other numbers. Sums of whole numbers come out the
    same in any order. Gives way after some, on every rank as often."""
    parts = list(_in_parts(tree_flatten(model.parameters())))
    count = max(map(int, link.gather_bytes(str(len(parts)).encode())))
    found: list[tuple] = []
    for some in [*parts, *[[]] * (count - len(parts))]:
        totals = [mx.sum(array.view(WORDS[array.dtype.size])) for _, array in some]
        mx.eval(totals)
        found += [
            (name, array.shape, str(array.dtype), total.item())
            for (name, array), total in zip(some, totals, strict=True)
        ]
        yield
    return found


def _in_parts(weights: list[tuple[str, mx.array]]) -> Iterator[list[tuple[str, mx.array]]]:
    some: list[tuple[str, mx.array]] = []
    for one in weights:
        some.append(one)
        if len(some) == SUMS_TOGETHER or sum(array.nbytes for _, array in some) >= SUMMED_BYTES:
            yield some
            some = []
    if some:
        yield some


def _root(settings: Settings) -> Path:
    if settings.prefix_disk_dir:
        return Path(settings.prefix_disk_dir)
    # On a Mac this one is in no backup.
    caches = "Library/Caches" if sys.platform == "darwin" else ".cache"
    try:
        return Path.home() / caches / "mlx-cluster"
    except RuntimeError as error:
        raise Unusable(f"{error}; set PREFIX_DISK_DIR") from None
