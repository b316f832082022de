#!/usr/bin/env python3
"""The servers that were started from this checkout, as their records in run/PORT tell.

Usage: module.py lib.status.servers [--running] ROOT

Tells bash which server is meant when none is named: the first line is `servers`, then come its port
and a word about it; or an error, with exit code 2. Nothing more if none was ever started, or with
--running if none runs.

Read by status.sh and logs.sh on the machine where the run script was started, or on another host
of the cluster, where only the records of that host's ranks are. Standard library only, Python 3.9;
starts nothing but ps, changes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.lib.hosts.our_process import read_lines, recorded_pid
from scripts.lib.hosts.reach import LOCAL_HOST


@dataclass(frozen=True)
class Server:
    """One server: the last start on its port. hosts: ssh name of each rank, in rank order."""

    port: int
    run_dir: Path
    hosts: tuple[str, ...]  # empty: it was started on another machine
    run_id: str
    model: str
    url: str
    log: Path
    key_file: str  # on the host of rank 0; empty: none
    started: float  # Unix seconds; 0: unknown
    stopped: bool = False  # the stop script has ended what its supervisor did not


def find_servers(root: Path) -> list[Server]:
    """Every server with a record here, running or not, by port."""
    folders = [path for path in (root / "run").glob("[0-9]*") if path.name.isdecimal()]
    servers = (read_server(root, int(path.name)) for path in folders)
    return sorted((s for s in servers if s is not None), key=lambda server: server.port)


def read_server(root: Path, port: int) -> Server | None:
    """The server of one port; None if nothing was ever started on it from here."""
    run_dir = root / "run" / str(port)
    if not run_dir.is_dir() or not any(run_dir.iterdir()):
        return None
    record = run_dir / "started_with"
    told = dict(line.partition("=")[::2] for line in read_lines(record))
    run_id = told.get("RUN_ID", "")
    log = told.get("LOG") or root / "logs" / f"server-{port}.log"
    return Server(
        port=port,
        run_dir=run_dir,
        hosts=tuple(name for name in read_lines(run_dir / "hosts") if name),
        run_id=run_id,
        model=told.get("MODEL_ID", ""),
        url=told.get("URL") or f"http://{LOCAL_HOST}:{port}",
        log=Path(log),
        key_file=told.get("API_KEY_FILE", ""),
        started=record.stat().st_mtime if record.exists() else 0.0,
        stopped=bool(run_id) and read_lines(run_dir / "stopped") == [run_id],
    )


def supervisor_pid(server: Server) -> int | None:
    """The pid of the server's supervisor, if it runs."""
    return recorded_pid(server.run_dir / "supervisor.pid")


def runs(server: Server) -> bool:
    """Whether its supervisor runs, or a rank on this machine that has none any more."""
    records = ("supervisor.pid", *(path.name for path in server.run_dir.glob("rank-*.pid")))
    return any(recorded_pid(server.run_dir / name) is not None for name in records)


def choose_one(servers: Iterable[Server]) -> Server | str:
    """The server that is meant when no port was named; or, in words, why none is."""
    servers = list(servers)
    running = [server for server in servers if runs(server)]
    if len(running) > 1:
        ports = ", ".join(str(server.port) for server in running)
        return f"several servers run here, on ports {ports}: name one with --port"
    if running:
        return running[0]
    if not servers:
        return "no server was started from this checkout"
    return max(servers, key=lambda server: server.started)


def main(arguments: Sequence[str]) -> int:
    """See the module's docstring."""
    *running, root = arguments
    servers = [one for one in find_servers(Path(root)) if not running or runs(one)]
    chosen = choose_one(servers)
    print("servers")
    if isinstance(chosen, Server):
        print(chosen.port)
        print(f"port {chosen.port}: " + ("the one that runs" if runs(chosen) else "the last one"))
    elif servers:
        print(chosen)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
