"""Before any work, all ranks introduce themselves and compare what must be the same.

Called once on the main thread of every rank. Every rank sees every introduction, so all of them
come to the same verdict and leave together.
"""

import json
import os
import platform
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from server.observe.fleet import Machine, Member, PairSpeed
from server.observe.machine import describe_machine
from server.observe.versions import code_fingerprint
from server.protocol.fingerprint import fingerprint_files
from server.protocol.settings import Settings
from server.wire.link import Link

PACKAGES = ("mlx", "mlx-lm", "transformers")


@dataclass(frozen=True)
class Met:
    """What the handshake tells: the name of what all have the same, how many ranks this machine
    has, and the bytes that each rank may use."""

    system: str
    ranks_here: int
    memories: list[int | None]


class Mismatch(Exception):
    """Ranks differ in something that must be the same. Restarting would not help."""


def promised_group(env: Mapping[str, str]) -> tuple[str, int]:
    """The backend and the number of ranks that the launcher's files promise; ("any", 1) if none.

    mx.distributed.init() silently makes a world of one when a backend cannot start, and with
    "any" a stray MLX_HOSTFILE would turn a JACCL job into a ring.
    """
    files = (("jaccl", "JACCL_IBV_DEVICES"), ("jaccl", "MLX_IBV_DEVICES"), ("ring", "MLX_HOSTFILE"))
    for backend, name in files:
        path = env.get(name)
        if not path:
            continue
        try:
            text = Path(path).read_text().strip()
            return backend, max(1, len(json.loads(text))) if text else 1
        except (OSError, ValueError, TypeError) as error:
            raise Mismatch(f"{name}={path!r} cannot be read: {error}") from None
    return "any", 1


def introduce(settings: Settings, link: Link, pairs: Sequence[PairSpeed] = ()) -> dict[str, Any]:
    """This rank's introduction: who it is, how fast its links are, and under "same" what all must
    share.

    A file that this rank cannot read is a difference like any other: all ranks see it and leave.
    """
    try:
        files = fingerprint_files(settings.model_dir)
    except OSError as error:
        files = {f"(rank {link.rank})": f"unreadable: {error}"}
    return {
        "rank": link.rank,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "model_dir": str(settings.model_dir),
        "machine": asdict(describe_machine()),
        "pairs": [asdict(pair) for pair in pairs],
        "same": {
            "ranks": link.size,
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
            "server code": code_fingerprint(),
            "PARALLEL": settings.parallel,
            "MAX_BATCH": settings.max_batch,
            "PREFILL_STEP": settings.prefill_step,
            "KV_BITS": settings.kv_bits,
            "KV_BITS_FROM": settings.kv_bits_from,
            "PREFIX_DISK_GB": settings.prefix_disk_gb,
            "SPECULATE": settings.speculate,
            "DRAFT_MODEL_DIR": "not set" if settings.draft_model_dir is None else "set",
            **_others(settings),
            **{f"model file {name}": value for name, value in files.items()},
        },
    }


def _others(settings: Settings) -> dict[str, str]:
    """Which more models there are. Their files are compared when they are loaded."""
    names = [f"{one.name}={one.folder}" for one in settings.models[1:]]
    return {"MODELS": ", ".join(names)} if names else {}


def compare_files(model: str, files: dict[str, str], link: Link) -> None:
    """The same for the files of one more model. Raises Mismatch, on every rank alike."""
    mine = {
        "rank": link.rank,
        "host": socket.gethostname(),
        "same": {f"file {name} of {model}": value for name, value in files.items()},
    }
    compare([json.loads(data) for data in link.gather_bytes(json.dumps(mine).encode())])


def shake_hands(mine: dict[str, Any], link: Link) -> tuple[Member, ...]:
    """Gathers all introductions. Raises Mismatch, naming the rank and both values."""
    gathered = [json.loads(data) for data in link.gather_bytes(json.dumps(mine).encode())]
    compare(gathered)
    return tuple(
        Member(
            g["rank"],
            g["host"],
            g["pid"],
            g["model_dir"],
            Machine(**g.get("machine", {})),
            tuple(PairSpeed(**pair) for pair in g.get("pairs", ())),
        )
        for g in gathered
    )


def rank_memories(members: Sequence[Member]) -> list[int | None]:
    """Bytes that each rank may use: of its GPU, or of its host, shared by the ranks there. What is
    free at the moment does not count, or layers would be dealt otherwise at every start."""
    ranks_of = Counter(member.host for member in members)
    limits = [one.machine.gpu_limit or one.machine.memory_total for one in members]
    return [
        limit and limit // ranks_of[member.host]
        for member, limit in zip(members, limits, strict=True)
    ]


def compare(gathered: list[dict[str, Any]]) -> None:
    """Raises Mismatch for the differences to rank 0, the first few of them."""
    first = gathered[0]["same"]
    differences = []
    for other in gathered[1:]:
        theirs = other["same"]
        for name in sorted({*first, *theirs}):
            if first.get(name) != theirs.get(name):
                differences.append(
                    f"rank {other['rank']} ({other['host']}) has {name} = "
                    f"{theirs.get(name, 'missing')}, rank 0 ({gathered[0]['host']}) has "
                    f"{first.get(name, 'missing')}"
                )
    if differences:
        more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise Mismatch("the ranks differ: " + "; ".join(differences[:5]) + more)
