"""anna's checkout on the first of two Macs, and the scripts that she runs in it."""

import json
import shlex
import shutil
import urllib.request
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.ports import free_port
from tests.support.tiny_models import tiny_llama
from tests.support.two_users import TwoUsers

GENERATED = shutil.ignore_patterns("__pycache__", ".*")


class Desk:
    """folder: where in Users it is. Its small environment imports the packages of the tests."""

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
            " for site in .venv/lib/*/site-packages; do"
            f" echo {self.macs.packages} >$site/there.pth; done",
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
    with urllib.request.urlopen(request, timeout=240) as answer:
        return json.load(answer)["choices"][0]["text"]
