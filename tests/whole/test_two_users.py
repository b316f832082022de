"""A cluster of two Macs whose owners have other names: from a checkout to an answer, and its end.

Everything is done by anna at her Mac, as she would; nothing of hers can be read by bjorn.
"""

import json
import shlex
import shutil
import urllib.request
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.ports import free_port
from tests.support.tiny_models import tiny_llama
from tests.support.two_users import TwoUsers, two_users

pytestmark = pytest.mark.ranks

GENERATED = shutil.ignore_patterns("__pycache__", ".*")
HARD_NAME = 'Jörg\'s "mlx" cluster (2)'


@pytest.fixture
def macs():
    with two_users() as both:
        yield both


class Desk:
    """anna's checkout in Users/Shared, with a small environment that imports the real packages."""

    def __init__(self, macs: TwoUsers, folder: Path):
        self.macs, self.root, self.port = macs, folder, free_port()
        here = macs.view(0, folder)
        for name in ("scripts", "server"):
            shutil.copytree(ROOT / name, here / name, ignore=GENERATED)
        shutil.copy(ROOT / "requirements.txt", here)
        (here / "hostfiles").mkdir()
        tiny_llama(here / "models" / "Tiny", heads=6, kv_heads=6, hidden=96)
        macs.give(0, folder)
        self.env = {
            "MODEL_DIR": folder / "models" / "Tiny",
            "HTTP_HOST": "127.0.0.1",
            "HTTP_PORT": self.port,
            "CLUSTER_PORT": free_port(4),
            "PREFILL_STEP": 32,
        }

    def make_venv(self) -> None:
        """What scripts/lib/venv.sh makes, but that the packages are those of the tests."""
        made = self.macs.run(
            f"{self.macs.python} -m venv --without-pip .venv &&"
            f" echo {self.macs.packages} | tee .venv/lib/*/site-packages/there.pth",
            self.root,
        )
        if made.returncode:
            pytest.skip(f"another user cannot run this Python: {made.stderr}")

    def write_hostfile(self) -> None:
        hosts = [{"ssh": name, "ips": ["127.0.0.1"]} for name in self.macs.names]
        file = self.macs.view(0, self.root / "hostfiles" / "ours.local.json")
        file.write_text(json.dumps({"backend": "ring", "hosts": hosts}))

    def run(self, script: str, *arguments: object, expect: int = 0) -> str:
        words = [f"scripts/{script}", *map(str, arguments)]
        done = self.macs.run(shlex.join(words), self.root, env=self.env)
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout + done.stderr


def ask(port: int) -> str:
    body = {"prompt": "One, two,", "max_tokens": 12, "temperature": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode()
    )
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["choices"][0]["text"]


def test_users_of_other_names_make_a_cluster_in_a_folder_that_all_macs_have(macs):
    desk = Desk(macs, macs.shared / HARD_NAME)
    desk.make_venv()
    desk.write_hostfile()
    assert "fail" not in desk.run("sync_nodes.sh")
    desk.run("sync_model.sh", desk.env["MODEL_DIR"])
    assert "\n0 failed, " in desk.run("verify_cluster.sh", "--smoke")
    for name in macs.names:
        assert name in desk.run("check_model.sh", desk.env["MODEL_DIR"])
    desk.run("run_openai_cluster_server.sh", "--detach", "--no-restart")
    assert ask(desk.port)
    told = json.loads(desk.run("status.sh", "--json").splitlines()[-1])["servers"][0]
    assert [(rank["host"], rank["state"]) for rank in told["ranks"]] == [
        (name, "ok") for name in macs.names
    ]
    record = desk.root / "run" / str(desk.port) / "rank-1.pid"
    assert macs.view(1, record).exists() and not macs.view(0, record).exists()
    assert f"rank 1 ({macs.names[1]})" in desk.run("logs.sh")
    desk.run("stop_openai_cluster_server.sh")
    assert not macs.view(1, record).exists()


def test_a_folder_that_is_one_user_s_own_is_refused_with_both_ways_out(macs):
    """rsync's own word was taken for a broken connection, to be tried again."""
    home = macs.people / macs.users[0]
    desk = Desk(macs, home / "mlx-cluster")
    desk.make_venv()
    desk.write_hostfile()
    said = desk.run("sync_nodes.sh", expect=1)
    user = macs.users[1]
    assert f"fail  {macs.names[1]}  {user} may not write in {macs.people}, so {desk.root}" in said
    assert f"sudo mkdir -p {desk.root} && sudo chown {user} {desk.root}" in said
    assert f"ok    {macs.names[0]}" in said and "/Users/Shared" in said
    said = desk.run("sync_model.sh", desk.env["MODEL_DIR"], expect=1)
    assert f"{user} may not write in {macs.people}, so {desk.env['MODEL_DIR']}" in said

    # As its administrator would.
    macs.view(1, desk.root).mkdir(parents=True)
    macs.give(1, desk.root)
    desk.run("sync_nodes.sh")
    desk.run("sync_model.sh", desk.env["MODEL_DIR"])
    assert (macs.view(1, Path(desk.env["MODEL_DIR"])) / "config.json").exists()
