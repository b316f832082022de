"""What the tests of the launcher and of the supervisor share: processes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.ports import free_port
from tests.support.processes import processes

REPO = ROOT
LIB = REPO / "scripts" / "lib"
MODULE = [str(LIB / "module.py")]
STUB_RANK = REPO / "tests" / "support" / "stub_rank.py"
PATIENCE_S = 240.0  # Deadlines are for tests that would hang, not for slow machines.


def wait_until(condition: Callable[[], object], what: str = "") -> object:
    """Poll until `condition()` is true and return it; fail the test after PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited in vain: {what or condition}")
        time.sleep(0.05)
    return found


def command_of(pid: int) -> str:
    """Return a process's command line; empty if there is none or it is a zombie."""
    ps = ["ps", "-ww", "-p", str(pid), "-o", "stat=,command="]
    found = subprocess.run(ps, capture_output=True, text=True).stdout.strip()
    return "" if found.startswith("Z") else found


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a running process has used."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.exists():
        fields = stat.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    ps = ["ps", "-p", str(pid), "-o", "time="]
    clock = subprocess.run(ps, capture_output=True, text=True, check=True).stdout.strip()
    minutes, seconds = clock.split(":")[-2:]
    return int(minutes) * 60 + float(seconds)


class StubRanks:
    """Stub ranks in a RUN_DIR, and whatever started them; nothing outlives `close`."""

    def __init__(self, tmp_path: Path):
        self.run_dir = tmp_path / "run"
        self.run_dir.mkdir(exist_ok=True)
        self.run_id = uuid.uuid4().hex[:12]
        self.log = tmp_path / "server.log"
        self.port = free_port()
        self.started: list[subprocess.Popen] = []

    def rank_command(self, *options: str) -> list[str]:
        record = ["--run-dir", str(self.run_dir), "--run-id", self.run_id]
        return [sys.executable, str(STUB_RANK), *record, *options]

    def launcher_command(
        self, *options: str, ranks: int = 2, tweak: str = "", hosts: tuple[str, ...] = ()
    ) -> list[str]:
        """Return the command line; `tweak` is Python that changes the launcher's modules first."""
        launcher = [*MODULE, "lib.launch.mlx_launch"]
        if tweak:
            imports = "from scripts.lib.launch import launch_ranks, mlx_launch"
            launcher = ["-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{imports}\n{tweak}\n"
                        "sys.exit(mlx_launch.main())"]  # fmt: skip
        where = ["-n", str(ranks)]
        if hosts:
            # On paper each rank has an address here: the stub never talks to the others.
            hostfile = self.run_dir / "hostfile.json"
            listed = [{"ssh": host, "ips": ["127.0.0.1"]} for host in hosts]
            hostfile.write_text(json.dumps(listed))
            where = ["--hostfile", str(hostfile)]
        port = ["--starting-port", str(free_port(2))]
        return [sys.executable, *launcher, *where, "--backend", "ring", *port, "--",
                *self.rank_command(*options)]  # fmt: skip

    def start(self, command: list[str], **popen) -> subprocess.Popen:
        popen.setdefault("stdin", subprocess.PIPE)
        popen.setdefault("stdout", subprocess.PIPE)
        popen.setdefault("stderr", subprocess.PIPE)
        process = subprocess.Popen(command, **popen)
        self.started.append(process)
        return process

    def launch(self, *options: str, env: dict[str, str] | None = None, **how) -> subprocess.Popen:
        command = self.launcher_command(*options, **how)
        return self.start(command, env={**os.environ, **(env or {})})

    def order(self, rank: int, statements: str) -> None:
        fresh = self.run_dir / f"new-{rank}"
        fresh.write_text(statements)
        fresh.replace(self.run_dir / f"do-{rank}")

    def pid(self, rank: int) -> int:
        """Return a rank's pid, once it has recorded it."""
        record = self.run_dir / f"rank-{rank}.pid"

        def read() -> int | None:
            with contextlib.suppress(OSError, IndexError):
                pid, run_id = record.read_text().split()
                return int(pid) if self.run_id == run_id and command_of(int(pid)) else None
            return None

        return wait_until(read, f"rank {rank} to come up")

    def seen(self, rank: int) -> list[str]:
        path = self.run_dir / f"seen-{rank}"
        return path.read_text().splitlines() if path.exists() else []

    def health(self) -> dict:
        url = f"http://127.0.0.1:{self.port}/health"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with (
            contextlib.suppress(OSError, ValueError, HTTPException),
            opener.open(url, timeout=5) as answer,
        ):
            return json.load(answer)
        return {}

    def left(self) -> list[int]:
        """Return the processes of this run that are still there."""
        return list(processes(self.run_id))

    def wait_for_none(self) -> None:
        wait_until(lambda: not self.left(), "every process of the run to end")

    def close(self) -> None:
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe:
                    pipe.close()
        for pid in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
