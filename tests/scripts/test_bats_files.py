"""Runs each bats file, the tests of one script, as one test here."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

FILES = sorted((ROOT / "tests" / "bats").glob("*.bats"))
# What these scripts work out is Python's, and tried there.
THOROUGH = (
    "bench", "bench_compare", "bench_link", "install_service", "kept_settings", "logs",
    "run_hosts_and_keys", "several_models", "sync_model",
)  # fmt: skip
LIMIT_S = 600  # against a hang


@pytest.mark.sweep(1)
@pytest.mark.parametrize(
    "file",
    [
        pytest.param(file, marks=pytest.mark.thorough if file.stem in THOROUGH else ())
        for file in FILES
    ],
    ids=lambda path: path.stem,
)
def test_script_behaves(file):
    bats = shutil.which("bats")
    if bats is None:
        reason = "bats is not installed"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    environment = {
        name: value
        for name, value in os.environ.items()
        # The scripts read these; and none of their small processes needs a fast BLAS.
        if name not in ("LD_PRELOAD", "PYTHON", "ENV_NAME", "HOSTFILE", "MODEL_DIR", "API_KEY")
    }
    environment["TEST_PYTHON"] = sys.executable
    done = subprocess.run(
        [bats, "--tap", file],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout
