"""Who is wired to whom, as the launcher told this rank: for the proof of pairs, and for its words.

Read once on the main thread of every rank from the files that MLX itself reads. Hosts are known by
the names in RANK_HOSTS, which our launcher hands on; without them by their addresses, or by rank.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Devices = tuple[tuple[tuple[str, ...], ...], ...]  # [rank][peer]: the devices that lead there


@dataclass(frozen=True)
class Wiring:
    """hosts: a name a rank, "" where none is known. devices: of JACCL alone. around: the ranks form
    a ring, in which only neighbours have a link."""

    hosts: tuple[str, ...]
    devices: Devices = ()
    around: bool = True

    @property
    def size(self) -> int:
        return len(self.hosts)

    def peers(self, rank: int) -> list[int]:
        """Those to which this rank has a link."""
        others = [other for other in range(self.size) if other != rank]
        if not self.around:
            return others
        return [other for other in others if (other - rank) % self.size in (1, self.size - 1)]

    @property
    def cables(self) -> int:
        """The most between any two ranks; 1 where nobody knows."""
        return max((len(names) for row in self.devices for names in row), default=1)

    def device_count(self, rank: int) -> int:
        """That this rank opens."""
        peers = self.peers(rank) if self.devices else []
        return sum(len(self.devices[rank][peer]) for peer in peers)

    def host(self, rank: int) -> str:
        return f"rank {rank} ({self.hosts[rank]})" if self.hosts[rank] else f"rank {rank}"

    def end(self, rank: int, peer: int) -> str:
        """One end of the link between the two: `rank 1 (mac1: rdma_en3)`."""
        names = ", ".join(self.devices[rank][peer]) if self.devices else ""
        told = ": ".join(filter(None, (self.hosts[rank], names)))
        return f"rank {rank} ({told})" if told else f"rank {rank}"


def read_wiring(env: Mapping[str, str], ranks: int) -> Wiring:
    """What the launcher's files and RANK_HOSTS say. Never raises: where they say nothing that can
    be used, MLX itself complains."""
    hosts = tuple(env.get("RANK_HOSTS", "").split(","))
    named = hosts if len(hosts) == ranks and len({*hosts}) == ranks else ("",) * ranks
    matrix = _read(env.get("JACCL_IBV_DEVICES") or env.get("MLX_IBV_DEVICES"))
    if matrix:
        devices = _devices(matrix, ranks)
        asked = env.get("MLX_JACCL_RING") or env.get("JACCL_RING")
        return Wiring(named, devices, around=bool(asked) or not _is_mesh(devices))
    addresses = _read(env.get("MLX_HOSTFILE"))
    if not any(named) and isinstance(addresses, list) and len(addresses) == ranks:
        named = tuple(str(of[0]) if isinstance(of, list) and of else "" for of in addresses)
    return Wiring(named)


def _read(path: str | None) -> Any:
    try:
        return json.loads(Path(path).read_text()) if path else None
    except (OSError, ValueError):
        return None


def _devices(matrix: Any, ranks: int) -> Devices:
    """() for a matrix of another form than MLX's."""
    rows = matrix if isinstance(matrix, list) and len(matrix) == ranks else []
    if not all(isinstance(row, list) and len(row) == ranks for row in rows):
        return ()
    return tuple(tuple(_names(cell) for cell in row) for row in rows)


def _names(cell: Any) -> tuple[str, ...]:
    return tuple(map(str, cell)) if isinstance(cell, list) else (str(cell),) if cell else ()


def _is_mesh(devices: Devices) -> bool:
    """Whether each two ranks have a link, as MLX judges; it makes a ring of others."""
    return bool(devices) and all(
        bool(names) != (rank == peer)
        for rank, row in enumerate(devices)
        for peer, names in enumerate(row)
    )
