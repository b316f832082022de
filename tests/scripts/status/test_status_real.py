"""status.sh and logs.sh on real ranks that real ssh has started, through a restart and a lost node.

One test, as starting ranks is what takes the time.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.lib.logs.log_files import of_rank
from scripts.lib.status import ask
from scripts.lib.status.judge import report
from scripts.lib.status.servers import read_server
from tests.support.faults import Server
from tests.support.launch_helpers import wait_until
from tests.support.paths import ROOT
from tests.support.tiny_models import tiny_llama

pytestmark = pytest.mark.ranks

KEY = "sk-of-this-test"


class OnNodes(Server):
    """The same server as in the fault tests, with a rank on each of two nodes."""

    def __init__(self, folder: Path, model_dir: Path, nodes, **settings: object) -> None:
        super().__init__(folder, model_dir, **settings)
        self.nodes = nodes
        self.hostfile = nodes.write_hostfile(folder / "hosts.json", ["node-1", "node-2"])

    def script(self, name: str, *options: str, **env: str) -> list:
        """subprocess arguments for a script of ours."""
        env = self.nodes.env | {"PYTHON": sys.executable, "HTTP_PORT": str(self.port)} | env
        return {"args": [ROOT / "scripts" / name, *options], "env": env}

    def start_on_nodes(self) -> None:
        settings = {name: str(value) for name, value in self._settings.items()}
        settings |= {"HOSTFILE": str(self.hostfile), "HTTP_HOST": "127.0.0.1", "API_KEY": KEY}
        how = self.script("run_openai_cluster_server.sh", "--detach", **settings)
        done = subprocess.run(**how, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr + self.log()
        self.run_ids.add(self._recorded("supervisor.pid")[1])

    def status(self) -> tuple[int, dict]:
        """The exit code and what status.sh says."""
        how = self.script("status.sh", "--json")
        done = subprocess.run(**how, capture_output=True, text=True, timeout=240)
        assert done.stderr == ""
        (server,) = json.loads(done.stdout)["servers"]
        return done.returncode, server


def test_status_and_log_through_a_restart_and_a_lost_node(tmp_path, nodes):
    nodes.need_terminals()
    nodes["node-2"].profile("Welcome to node-2!\n")
    one = OnNodes(tmp_path, tiny_llama(tmp_path / "tiny"), nodes, LOG_MAX_MB=0.008)
    with contextlib.closing(one):
        one.start_on_nodes()

        # All well. The key is on rank 0's host alone, and fetched from there.
        code, server = one.status()
        assert (code, server["state"], server["problems"], server["hint"]) == (0, "ok", [], "")
        assert [rank["pid"] for rank in server["ranks"]] == [one.rank(0), one.rank(1)]
        assert [rank["host"] for rank in server["ranks"]] == ["node-1", "node-2"]
        assert all(rank["state"] == "ok" for rank in server["ranks"])
        assert all(rank["rss_bytes"] > 10**7 for rank in server["ranks"])
        assert all(host["memory_used_bytes"] > 10**7 for host in server["hosts"])
        assert (server["restarts"], server["last_failure"]) == (0, None)

        # A rank dies: the log is followed through the restart, and through a new part of it.
        shown = tmp_path / "shown"
        with shown.open("wb") as file:
            how = one.script("logs.sh", "-f", "--since-start")
            follower = subprocess.Popen(**how, stdout=file, stderr=file)
        os.kill(one.rank(1), signal.SIGKILL)
        wait_until(lambda: shown.read_text().count("supervisor: ready") == 2, "the second start")
        follower.send_signal(signal.SIGINT)
        assert follower.wait(30) == 0
        code, server = one.status()
        assert (code, server["state"], server["restarts"]) == (0, "ok", 1)
        assert server["last_failure"].startswith("rank 1 on node-2 exited with code")
        check_log(shown.read_text())
        assert Path(f"{one.log_path}.1").exists()

        # A node is lost with all that ran there, and another says nothing any more.
        nodes["node-2"].down()
        code, server = one.status()
        assert code == 1
        assert server["ranks"][1]["state"] == "unknown"
        assert any(p.startswith("node-2 cannot be reached: ") for p in server["problems"])

        # Until it is back nothing is started, and status.sh says for what it waits.
        waits = "starting again when all hosts answer"
        wait_until(lambda: waits in one.log(), "the supervisor to wait")
        code, server = one.status()
        assert (code, server["state"]) == (1, "restarting")
        assert "no answer from node-2 (ssh: " in server["detail"]
        nodes["node-2"].up()
        wait_until(lambda: one.get("/health")[1].get("restarts", 0) > 1, "service again")
        nodes["node-1"].freeze()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ask, "HOST_WITHIN_S", 1.0)
            patch.setenv("PATH", nodes.env["PATH"])
            began = time.monotonic()
            told = report(ask.gather(read_server(ROOT, one.port), {}))
        assert time.monotonic() - began < 30  # Against one that never ends.
        assert "node-1 cannot be reached: no answer within 1 s" in told["problems"]
        assert not told["well"]
        nodes["node-1"].up()


def check_log(text: str) -> None:
    """Each rank, at each of its two starts: start, load progress, ready; and the reason between."""
    assert text.count("supervisor: starting run") == 1
    assert KEY not in text
    for rank in (0, 1):
        own = [line.decode() for line in of_rank(rank)(text.encode().splitlines())]
        own = [line for line in own if not line.startswith("  | ")]  # Said already.
        for words in ("start: pid", "loaded: ", "ready: "):
            assert len([line for line in own if words in line]) == 2, (rank, words, text)
        assert (
            len([line for line in own if "restart 1 after: rank 1 on node-2 exited" in line]) == 1
        )
    assert "supervisor: failed: rank 1 on node-2 exited with code" in text
    assert "failure 1 in a row: starting again in 1 s" in text
