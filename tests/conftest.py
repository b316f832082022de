"""Shared fixtures. Real parts only: the demo model and ranks under the launcher are real."""

import os
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT, ROOT / "scripts" / "lib"):
    sys.path.insert(0, str(folder))

# What the developer keeps for a cluster of theirs has no say here.
os.environ["CLUSTER_ENV"] = os.devnull

# Under nohup it is ignored, and everything that is started here would inherit that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

from tests.support.cluster import Cluster  # noqa: E402
from tests.support.nodes import NODE_NAMES, running_nodes  # noqa: E402


@pytest.fixture(scope="session")
def demo_model_dir() -> Path:
    """The converted demo model; made on first use, which downloads it."""
    import subprocess

    made = subprocess.run(
        [sys.executable, ROOT / "scripts/lib/module.py", "lib.model.demo_model", ROOT / "models"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return Path(made.stdout.strip().splitlines()[-1])


@pytest.fixture
def cluster(tmp_path):
    """start(ranks, model_dir, **settings) -> Cluster; everything is ended afterwards."""
    started: list[Cluster] = []

    def start(ranks: int, model_dir: Path, **settings: object) -> Cluster:
        one = Cluster(ranks, model_dir, tmp_path / f"run{len(started)}", settings)
        started.append(one)
        one.wait_ready()
        return one

    yield start
    for one in started:
        one.end()


@pytest.fixture(scope="module")
def shared_cluster(demo_model_dir, tmp_path_factory):
    """ranks -> a running demo cluster, kept for the module, for tests that leave it whole.

    Not longer: idle ranks meet all the time, and on two cores that slows whatever runs beside.
    """
    running: dict[int, Cluster] = {}

    def get(ranks: int) -> Cluster:
        if ranks not in running:
            one = Cluster(ranks, demo_model_dir, tmp_path_factory.mktemp(f"ranks{ranks}"), {})
            running[ranks] = one
            one.wait_ready()
        return running[ranks]

    yield get
    for one in running.values():
        one.end()


@pytest.fixture(scope="session")
def _all_nodes(tmp_path_factory):
    with running_nodes(tmp_path_factory.mktemp("nodes") / "n", NODE_NAMES) as nodes:
        yield nodes


@pytest.fixture
def nodes(_all_nodes):
    """Several sshd's that stand for the hosts of a cluster; see tests/support/nodes.py."""
    yield _all_nodes
    _all_nodes.reset()


def pytest_configure(config):
    # A shell starts its background jobs with SIGINT ignored, and our children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
