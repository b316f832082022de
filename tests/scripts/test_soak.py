"""scripts/dev/soak.py: a short soak of two real ranks, and what it says of a server that dies."""

import json
import os
import re
import subprocess
import sys
import threading

import pytest

from tests.support.cluster import ROOT, Cluster
from tests.support.tiny_models import tiny_llama

WARM_S, SECONDS = 8, 25


def soak(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "scripts.dev.soak", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    model = tiny_llama(tmp_path_factory.mktemp("model") / "tiny", context=1024)
    one = Cluster(2, model, tmp_path_factory.mktemp("soak"), {"MAX_BATCH": 4, "QUEUE_MAX": 2})
    one.wait_ready()
    yield one
    one.end()


@pytest.mark.ranks
@pytest.mark.thorough
def test_a_short_soak_finds_the_server_whole(cluster):
    pids = cluster.pids()
    # What is kept (grammars, prefixes, the tokenizer's child) first comes to its size.
    warmed = soak("--url", cluster.url, "--minutes", WARM_S / 60)
    assert "errors=0" in warmed.stdout, warmed.stdout + warmed.stderr
    done = soak("--url", cluster.url, "--minutes", SECONDS / 60, "--run-dir", cluster.run_dir,
                "--json")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr + cluster.log()[-3000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["verdict"] == "ok"
    assert summary["requests"] > 50 and len(summary["requests_by_kind"]) == 23
    assert summary["errors"] == summary["differing"] == 0
    assert summary["restarts"] == [0, 0]
    assert set(summary["rss_mb"]) == {"rank 0", "rank 1"}
    assert summary["left"] == {"running": 0, "queued": 0, "kv_tokens": 0}
    assert re.search(r"requests .* errors .* rss \d+ \d+ MB", done.stderr), "a line of progress"
    assert cluster.pids() == pids


@pytest.mark.ranks
@pytest.mark.thorough
def test_a_rank_that_dies_is_found(cluster):
    """Last in this file: it ends the cluster."""
    threading.Timer(2.0, os.kill, (cluster.pids()[1], 9)).start()
    done = soak("--url", cluster.url, "--minutes", 0.1)
    assert done.returncode == 1
    assert "verdict=the server does not answer any more" in done.stdout
    assert re.search(r"^errors=[1-9]", done.stdout, re.M)


def test_no_server_is_said_in_one_line():
    done = soak("--url", "http://127.0.0.1:1")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and "does not answer" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--url", "http://x", "--port", "1"),
        ("--url", "127.0.0.1:8080"),
        ("--url", "http://x", "--minutes", "0"),
        ("--url", "http://x", "--clients", "0"),
        ("--url", "http://x", "--run-dir", "/nowhere"),
    ],
)
def test_wrong_use_is_told(arguments):
    done = soak(*arguments)
    assert done.returncode == 2 and done.stderr.startswith("soak.py: ") and "--" in done.stderr


def test_help_says_what_the_numbers_mean():
    done = soak("--help")
    assert done.returncode == 0
    for name in ("requests", "busy", "differing", "errors", "restarts", "rss_mb", "verdict"):
        assert re.search(rf"^  {name} ", done.stdout, re.M)
