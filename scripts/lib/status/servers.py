"""The servers that were started from this checkout, as their records in run/PORT tell.

Read by status.sh and logs.sh on the machine where the run script was started, or on another host
of the cluster, where only the records of that host's ranks are. Standard library only; starts
nothing but ps, changes nothing.
"""

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

LOCAL_HOST = "127.0.0.1"


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


def read_lines(path: Path) -> list[str]:
    """The lines of a small file; none if it cannot be read."""
    try:
        return [line.strip() for line in path.read_text(errors="replace").splitlines()]
    except OSError:
        return []


def supervisor_pid(server: Server) -> int | None:
    """The pid of the server's supervisor, if it runs; checked, as pids are given anew."""
    lines = read_lines(server.run_dir / "supervisor.pid")
    if len(lines) < 2 or not lines[0].isdecimal():
        return None
    return int(lines[0]) if is_of_run(command_of(lines[0]), lines[1]) else None


def command_of(pid: str) -> str:
    """The command line of a process of this machine; empty if there is none."""
    ps = ["ps", "-ww", "-p", pid, "-o", "command="]
    return subprocess.run(ps, capture_output=True, text=True, errors="replace").stdout.strip()


def is_of_run(command: str, run_id: str) -> bool:
    """Whether a command line is that of a process of this run."""
    return bool(run_id) and f"--run-id {run_id} " in f"{command} "


def choose_one(servers: Iterable[Server]) -> Server | str:
    """The server that is meant when no port was named; or, in words, why none is."""
    servers = list(servers)
    running = [server for server in servers if supervisor_pid(server)]
    if len(running) > 1:
        ports = ", ".join(str(server.port) for server in running)
        return f"several servers run here, on ports {ports}: name one with --port"
    if running:
        return running[0]
    if not servers:
        return "no server was started from this checkout"
    return max(servers, key=lambda server: server.started)
