"""The distributed benchmark as its users run it: bench.sh, and two real ranks."""

import json
import os
import subprocess
import sys

import pytest

from tests.support.paths import ROOT
from tests.support.ports import free_port
from tests.support.tiny_models import tiny_llama

pytestmark = pytest.mark.ranks

BENCH = ROOT / "scripts" / "bench.sh"


def test_two_ranks_are_measured_and_all_figures_fit_together(tmp_path):
    """A header shorter than the engine's once took the last row's token away."""
    env = {
        **os.environ,
        "PYTHON": sys.executable,
        "MODEL_DIR": str(tiny_llama(tmp_path / "Tiny")),
        "CLUSTER_PORT": str(free_port(4)),
    }
    options = ["--raw", "--ignore-eos", "--max-tokens", "5", "--repeats", "2", "--json"]
    done = subprocess.run(
        [BENCH, "--local", "2", "--", *options],
        env=env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    told = [line for line in done.stderr.splitlines() if "jaccl_tps_bench: " in line]
    assert "loading Tiny on 2 ranks" in told[0]
    assert "run 2 of 2" in told[-1]
    *lines, last = done.stdout.splitlines()
    shown = dict(line.split("=", 1) for line in lines)
    result = json.loads(last)
    assert shown["world_size"] == "2"
    assert shown["gen_tokens"] == "5"
    assert [run["gen_tokens"] for run in result["runs"]] == [5, 5]
    for run in result["runs"]:
        assert 0 < run["ttft_seconds"] < run["seconds"]
        assert run["tokens_per_sec"] == 5 / run["seconds"]
