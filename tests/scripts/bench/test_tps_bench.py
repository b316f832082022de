"""The distributed benchmark as its users run it: bench.sh, and two real ranks."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import mlx.core as mx
import pytest

from scripts.lib.bench.tps import make_engine, time_request
from scripts.lib.bench.tps_drafts import Drafting
from server.scheduler.speculation import Speculation
from server.scheduler.step_costs import StepCosts
from server.startup.loading import load_shard
from server.wire.link import Link
from server.wire.messages import Submit
from tests.support.drafting import draft_whatever_it_costs
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
    options = ["--raw", "--ignore-eos", "--max-tokens", "5", "--repeats", "2", "--speculate",
               "--json"]  # fmt: skip
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
        assert run["drafts_right"] <= run["drafted"]
        assert run["tokens_per_step"] == 4 / (4 - run["drafts_right"])


def test_with_drafts_each_run_has_as_many_tokens_in_fewer_steps(tmp_path, monkeypatch):
    """The tiny model soon goes round in circles."""
    draft_whatever_it_costs(monkeypatch)
    link = Link(mx.distributed.init())
    shard = load_shard(tiny_llama(tmp_path / "tiny"), "tensor", link, None, lambda stage: None)
    request = Submit(1, [40] * 20, 150, True)
    drafting = Drafting(Speculation(StepCosts([(1, 0.01), (128, 0.011)])))
    arguments = SimpleNamespace(prefill_step=64)
    engine = make_engine(arguments, link, shard, request, drafting)
    watchdog = SimpleNamespace(progress=lambda stage: None)
    for _ in range(2):
        run = time_request(engine, link, request, watchdog, drafting)
        assert run["gen_tokens"] == 150
        assert 20 < run["drafts_right"] <= run["drafted"]
