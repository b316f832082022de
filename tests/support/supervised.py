"""Stub ranks under a real supervisor, and how it ends."""

import os
import subprocess
import sys

from tests.support.launch_helpers import (
    LIB,
    MODULE,
    StubRanks,
    wait_until,
)
from tests.support.paths import ROOT

END_RANKS = str(LIB / "supervise" / "end_ranks.sh")


class Server(StubRanks):
    """Stub ranks under a supervisor."""

    def supervise(self, *options: str, ranks=("--lease", "60"), tweak="", launcher=None, **popen):
        """Start supervise.py; `tweak` is Python that changes its modules first."""
        program = [*MODULE, "lib.supervise.supervise"]
        if tweak:
            imports = "from scripts.lib.supervise import restart_policy, supervise, supervisor"
            program = ["-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{imports}\n{tweak}\n"
                       "sys.exit(supervise.main())"]  # fmt: skip
        command = [
            sys.executable, *program,
            "--run-dir", str(self.run_dir), "--run-id", self.run_id, "--log", str(self.log),
            "--health-url", f"http://127.0.0.1:{self.port}/health", *options, "--",
            *(launcher or self.launcher_command("--port", str(self.port), *ranks)),
        ]  # fmt: skip
        return self.start(command, **popen)

    def wait_ready(self, restarts: int = 0) -> dict:
        """Wait until 2 ranks are up after so many restarts, and the supervisor has noticed."""

        def ready() -> dict | None:
            told = self.health()
            noted = self.log_text().count("supervisor: ready") > restarts
            return told if noted and told.get("restarts") == str(restarts) else None

        told = wait_until(ready, f"the server to be ready after {restarts} restarts")
        self.pid(1)  # Rank 1 may be slower, and takes no signal before it has its record.
        return told

    def log_text(self) -> str:
        return self.log.read_text() if self.log.is_file() else ""

    def launcher_pid(self) -> int:
        return int(self.log_text().rpartition("started launcher ")[2].split()[0])


def finish(supervisor: subprocess.Popen) -> tuple[int, str, str]:
    out, err = supervisor.communicate(timeout=240)
    return supervisor.returncode, out.decode(), err.decode()


def start_rank(stubs: StubRanks, rank: int, *options: str) -> subprocess.Popen:
    process = stubs.start(stubs.rank_command(*options), env={**os.environ, "MLX_RANK": str(rank)})
    stubs.pid(rank)
    return process
