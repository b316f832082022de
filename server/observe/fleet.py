"""What rank 0 knows of each rank: who it is, its memory, how far it has loaded, when it was heard.

Told by rank 0's main thread; read by its HTTP threads, as a view that never changes. The ranks
move in lockstep, so a collective that ends has heard from all of them. One that does not end says
only that some rank is missing, not which: then every rank but rank 0, which still answers, counts
as silent.
"""

import time
from dataclasses import dataclass, field, replace
from typing import Any

SILENT_S = 10.0


@dataclass(frozen=True)
class Machine:
    """What does not change. Sizes in bytes; gpu_limit: what Metal lets a process wire."""

    chip: str = ""
    os: str = ""
    memory_total: int | None = None
    gpu_limit: int | None = None


@dataclass(frozen=True)
class PairSpeed:
    """The link of a rank to a higher one, other. latency: seconds that a short message takes one
    way; bandwidth: bytes a second of a long one."""

    other: int
    latency: float
    bandwidth: float


@dataclass(frozen=True)
class Member:
    """One rank as it introduced itself in the handshake."""

    rank: int
    host: str
    pid: int
    model_dir: str
    machine: Machine = field(default=Machine(), compare=False)
    pairs: tuple[PairSpeed, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Vitals:
    """A rank's memory in bytes: MLX's arrays now and at most so far, and the whole process."""

    memory_used: int
    memory_peak: int
    rss: int


@dataclass(frozen=True)
class Loaded:
    """Bytes of a rank's weights that are in memory, and of all of them."""

    done: int
    total: int


@dataclass(frozen=True)
class Ranks:
    """All ranks at one moment. heard: time.monotonic() of the last collective that ended;
    silent_after: seconds without one."""

    silent_after: float = SILENT_S
    members: tuple[Member, ...] = ()
    vitals: tuple[Vitals, ...] = ()
    loaded: tuple[Loaded, ...] = ()
    heard: float | None = None

    def age(self) -> float | None:
        """Seconds since all ranks were heard."""
        return None if self.heard is None else max(0.0, time.monotonic() - self.heard)

    def silent(self) -> bool:
        """Whether that is too long ago."""
        age = self.age()
        return age is not None and age > self.silent_after

    def states(self, loading: bool) -> list[str]:
        """Of each rank: "loading", "ok" or "silent"."""
        if loading:
            return ["loading" for _ in self.members]
        silent = self.silent()
        alone = len(self.members) == 1
        return ["silent" if silent and (m.rank or alone) else "ok" for m in self.members]

    def describe(self, loading: bool) -> list[dict[str, Any]]:
        """The ranks as GET /cluster shows them."""
        age = self.age()
        described = []
        for member, state in zip(self.members, self.states(loading), strict=True):
            machine, n = member.machine, member.rank
            vitals = self.vitals[n] if n < len(self.vitals) else None
            loaded = self.loaded[n] if n < len(self.loaded) else None
            described.append(
                {
                    "rank": n,
                    "host": member.host,
                    "pid": member.pid,
                    "chip": machine.chip,
                    "os": machine.os,
                    "memory_total_bytes": machine.memory_total,
                    "memory_used_bytes": vitals and vitals.memory_used,
                    "memory_peak_bytes": vitals and vitals.memory_peak,
                    "gpu_limit_bytes": machine.gpu_limit,
                    "rss_bytes": vitals and vitals.rss,
                    "heartbeat_age_s": None if age is None else round(age, 3),
                    "state": state,
                    "loaded_bytes": loaded and loaded.done,
                    "total_bytes": loaded and loaded.total,
                }
            )
        return described


class Fleet:
    """ranks: what is known now. All else is called by the main thread, after a collective that has
    ended."""

    def __init__(self, silent_after: float = SILENT_S) -> None:
        self.ranks = Ranks(silent_after)

    def join(self, members: tuple[Member, ...]) -> None:
        """The ranks have introduced themselves."""
        self._hear(members=members)

    def load(self, loaded: tuple[Loaded, ...]) -> None:
        """Each has come so far."""
        self._hear(loaded=loaded)

    def measure(self, vitals: tuple[Vitals, ...]) -> None:
        """Each has told its memory."""
        self._hear(vitals=vitals)

    def hear(self) -> None:
        """They are there. Once a turn."""
        self._hear()

    def _hear(self, **news: Any) -> None:
        self.ranks = replace(self.ranks, heard=time.monotonic(), **news)
