"""Shared fixtures. Real parts only: the demo model and ranks under the launcher are real."""

import gc
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT, ROOT / "scripts" / "lib"):
    sys.path.insert(0, str(folder))

# What the developer keeps for a cluster of theirs has no say here.
os.environ["CLUSTER_ENV"] = os.devnull

# A version manager's python3.11 is a script that works out, at each start, which one is meant: four
# times the start itself, and the scripts that are tried here start thousands.
PYTHON = Path(sys._base_executable)
if os.path.realpath(shutil.which(PYTHON.name) or "") != os.path.realpath(PYTHON):
    os.environ["PATH"] = f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}"

# Under nohup it is ignored, and everything that is started here would inherit that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# MLX hands its thread one operation after another. Else that thread, woken for each, takes the core
# from the one that is about to hand it the next: a third of the time of an engine's tests.
if hasattr(os, "SCHED_BATCH"):
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))

from tests.support import ring_waits, sweeps  # noqa: E402
from tests.support.cluster import Cluster, blas_environment  # noqa: E402
from tests.support.nodes import NODE_NAMES, running_nodes  # noqa: E402

# For the ranks of all processes of a session: fault_site/kept_names.py, ring_waits.py.
if "NAMES_KEPT" not in os.environ:
    KEPT = tempfile.TemporaryDirectory(prefix="kept-")
    os.chmod(KEPT.name, 0o755)  # other users' programs are tried, too
    os.environ["NAMES_KEPT"] = str(Path(KEPT.name) / "transformers")
    os.environ |= blas_environment()
    ring_waits.prepare(Path(KEPT.name))


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


@pytest.fixture
def uncollected():
    """Python looks for no cycles by itself: it may, or not, before a test sees what is left."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="session")
def _all_nodes(tmp_path_factory):
    with running_nodes(tmp_path_factory.mktemp("nodes") / "n", NODE_NAMES) as nodes:
        yield nodes


@pytest.fixture
def nodes(_all_nodes):
    """Several sshd's that stand for the hosts of a cluster; see tests/support/nodes.py."""
    yield _all_nodes
    _all_nodes.reset()


def pytest_addoption(parser):
    parser.addoption(
        "--all", action="store_true", default=os.environ.get("CI") == "true",
        help="also what is marked thorough, all cases, and half a minute of random walk",
    )  # fmt: skip


def pytest_xdist_auto_num_workers(config):
    """One process more than cores, as many a test waits. Of groups of ranks two at once, or one if
    every rank that waits would take a core from those of the other group."""
    if config.getoption("markexpr") != "ranks":
        return os.cpu_count() + 1
    return 2 if ring_waits.library() else 0


# Begun first, so that no core is left with one of them alone at the end.
LONGEST = (
    "scripts/test_bats_files.py", "house/test_lint.py", "engine/test_engine.py",
    "scheduler/test_walk.py", "startup/test_pairs.py",
    "scripts/supervise/test_supervise.py", "lifecycle/test_watchdog.py",
    "agents/test_claude_code.py", "agents/test_codex.py", "engine/test_conversations.py",
    "whole/test_faults.py", "whole/test_two_users.py", "models/test_company.py",
    "models/test_ranks.py", "whole/test_garbled_link.py", "whole/test_several_models.py",
)  # fmt: skip


def pytest_xdist_make_scheduler(config, log):
    """A file's tests go to one process together, for its fixtures' sake, but each bats file by
    itself. Those of the run script stay together: they have one port, and look whether it is free.
    """
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file, _, test = nodeid.partition("::")
            if not file.endswith("test_bats_files.py"):
                return file
            return "run" if "[run_" in test else test

    return Scheduling(config, log)


def pytest_ignore_collect(collection_path, config):
    """Leaves out the files of which the other part has all the tests: to import them all takes
    longer than many a test."""
    part = config.getoption("markexpr")
    if not collection_path.match("test_*.py") or part not in ("ranks", "not ranks"):
        return None
    text = collection_path.read_text()
    other = "mark.ranks" not in text if part == "ranks" else ALL_RANKS in text
    return True if other else None


ALL_RANKS = "\npytestmark = pytest.mark.ranks\n"


def pytest_collection_modifyitems(config, items):
    """Takes a sample where not all is asked for, and the longest files first."""
    left_out = set() if config.getoption("--all") else set(_beyond_the_sample(items))
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    place = {ROOT / "tests" / name: n for n, name in enumerate(LONGEST)}
    items[:] = sorted(
        (item for item in items if item not in left_out),
        key=lambda item: place.get(item.path, len(place)),  # stable: else as collected
    )


# Of a test's cases the first, then every n-th, are a sample. The house's own are cheap.
FIRST_CASES, THEN_EVERY = 2, 8


def _beyond_the_sample(items):
    cases = Counter()
    for item in items:
        name, _, case = item.nodeid.partition("[")
        before = cases[name]
        cases[name] += 1
        if sweep := item.get_closest_marker("sweep"):
            left_out = before % sweep.args[0] > 0
        elif case and not name.startswith("house/"):
            left_out = before >= FIRST_CASES and before % THEN_EVERY > 0
        else:
            left_out = False
        if left_out or item.get_closest_marker("thorough"):
            yield item


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    # Thousands of tests that stay: every full garbage collection would look through them.
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_configure(config):
    sweeps.whole = config.getoption("--all")
    # A slow machine is no wrong answer.
    settings.register_profile("unhurried", deadline=None)
    settings.load_profile("unhurried")
    # A shell starts its background jobs with SIGINT ignored, and our children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
