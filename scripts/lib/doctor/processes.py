"""Processes of ours that live, from the pid files that the probe read. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scripts.lib.hosts.our_process import is_of_run


@dataclass(frozen=True)
class OurProcess:
    """A process that one of our pid files names and that lives. kind: rank-0, supervisor..."""

    kind: str
    port: str
    pid: int
    run_id: str
    age: str


def living_processes(entries: Sequence[Mapping[str, Any]]) -> tuple[OurProcess, ...]:
    """Those of probe.look_for_ranks that still are what their pid file says."""
    return tuple(_living(entry) for entry in entries if _lives(entry))


def _lives(entry: Mapping[str, Any]) -> bool:
    """ps says how old it is, and then its command line."""
    return is_of_run(entry["ps"].get("out", ""), entry["run"])


def _living(entry: Mapping[str, Any]) -> OurProcess:
    *_, port, name = entry["file"].split("/")
    age = (entry["ps"]["out"].split() or ["?"])[0]
    return OurProcess(name.removesuffix(".pid"), port, int(entry["pid"]), entry["run"], age)
