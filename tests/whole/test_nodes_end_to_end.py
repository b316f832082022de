"""From a checkout and a model on one machine to answers from several: only what users run.

Every rank runs on a node of its own, through real ssh, in the copy of the checkout and of the model
that the scripts have brought there. One test, as starting ranks is what takes the time.
"""

import json
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.support.launch_helpers import wait_until
from tests.support.paths import ROOT
from tests.support.ports import free_port
from tests.support.processes import processes
from tests.support.tiny_models import tiny_llama

pytestmark = pytest.mark.ranks

REPO = ROOT
GENERATED = shutil.ignore_patterns("__pycache__", ".*")


class Site:
    """A checkout and a model that only rank 0's machine has, and the scripts run in it."""

    def __init__(self, folder: Path, nodes):
        self.root, self.nodes, self.port = folder / "checkout", nodes, free_port()
        for name in ("scripts", "server"):
            shutil.copytree(REPO / name, self.root / name, ignore=GENERATED)
        shutil.copy(REPO / "requirements.txt", self.root)
        (self.root / "hostfiles").mkdir()
        # 6 heads: for 2 and for 3 ranks.
        self.model = tiny_llama(folder / "models" / "Tiny", heads=6, kv_heads=6, hidden=96)
        for path in (self.root, folder / "models"):
            nodes.shadow(path)

    def hosts(self, count: int) -> None:
        hostfile = self.root / "hostfiles" / "test.local.json"
        self.nodes.write_hostfile(hostfile, self.nodes.names[:count])

    def run(self, script: str, *arguments: object, expect: int = 0) -> str:
        """stdout of one of the scripts."""
        env = {
            **self.nodes.env,
            "PYTHON": sys.executable,
            "MODEL_DIR": str(self.model),
            "HTTP_HOST": "127.0.0.1",
            "HTTP_PORT": str(self.port),
            "CLUSTER_PORT": str(free_port(4)),
            "PREFILL_STEP": "32",
        }
        done = subprocess.run(
            [self.root / "scripts" / script, *map(str, arguments)],
            env=env, capture_output=True, text=True, timeout=150,
        )  # fmt: skip
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout

    def complete(self) -> str:
        body = {"prompt": "One, two,", "max_tokens": 12, "temperature": 0}
        url = f"http://127.0.0.1:{self.port}/v1/completions"
        request = urllib.request.Request(url, json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=240) as answer:
            return json.load(answer)["choices"][0]["text"]


def test_nodes_get_everything_answer_together_and_stop(tmp_path, nodes):
    nodes.need_terminals()
    site = Site(tmp_path, nodes)
    site.hosts(3)
    site.run("sync_nodes.sh", "--checkout-only")
    site.run("sync_model.sh", site.model)
    answers = []
    for count in (2, 3):
        site.hosts(count)
        site.run("run_openai_cluster_server.sh", "--detach", "--no-restart")
        answers.append(site.complete())
        status = json.loads(site.run("status.sh", "--json"))["servers"][0]
        assert [rank["host"] for rank in status["ranks"]] == list(nodes.names[:count])
        assert all(rank["state"] == "ok" for rank in status["ranks"])
        # Each in its own copy: rank 1's record is nowhere but on node-2.
        own = nodes["node-2"].view(site.root) / "run" / str(site.port)
        assert (own / "rank-1.pid").exists()
        assert not (site.root / "run" / str(site.port) / "rank-1.pid").exists()
        site.run("stop_openai_cluster_server.sh")
        assert not (own / "rank-1.pid").exists()
        wait_until(lambda: not processes(f"{site.root}/server"), "every rank to be gone")
    # The same model, however many ranks it is split over.
    assert answers[0] == answers[1] != ""
