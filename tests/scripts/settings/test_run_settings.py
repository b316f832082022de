"""The run script and the server agree about the settings, through the one table of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.protocol.settings import SettingError, read_settings
from tests.support.paths import ROOT

SCRIPT = ROOT / "scripts" / "run_openai_cluster_server.sh"

# Not for --env: the supervisor's own, and the keys, which ps would show.
APART = {"SUPERVISOR_RESTARTS", "SUPERVISOR_LAST_FAILURE", "SUPERVISOR_STARTS_AGAIN", "API_KEY"}

TEXTS = {
    "PARALLEL": "pipeline",
    "LOG_LEVEL": "DEBUG",
    "KV_BITS": "8",
    "SPECULATE": "auto",
    "LOG_PROMPTS": "1",
    "TRUST_REMOTE_CODE": "1",
    "HTTP_HOST": "localhost",
    "PREFIX_SHARING": "key",
    "PREFIX_WARM": "/prompt.txt",
    "PREFIX_WARM_WHEN": "after",
    "CHAT_TEMPLATE_KWARGS": '{"enable_thinking": false}',
}


class Recorder(dict):
    """An environment that notes which names were asked for."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.asked: set[str] = set()

    def get(self, name, default=None):
        self.asked.add(name)
        return super().get(name, default)


@pytest.fixture
def names(tmp_path) -> set[str]:
    environment = Recorder({"MODEL_DIR": str(tmp_path)})
    read_settings(environment)
    assert "QUEUE_MAX" in environment.asked
    return environment.asked


def dry_run(tmp_path: Path, **settings: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [SCRIPT, "--local", "1", "--dry-run"],
        env={"PATH": os.environ["PATH"], "PYTHON": sys.executable, "MODEL_DIR": str(tmp_path)}
        | {"CLUSTER_ENV": os.devnull}
        | settings,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_setting_that_the_server_reads_reaches_the_ranks(names, tmp_path):
    """A setting known to the server alone would be lost on remote hosts, and only there."""
    key_file = tmp_path / "keys"
    key_file.write_text("key\n")
    below = tmp_path / "several" / "one"
    below.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (below / name).write_text("{}")
    special = TEXTS | {"MODEL_DIR": str(tmp_path), "API_KEY_FILE": str(key_file)}
    special |= {"MODELS": f"other={below}", "MODELS_DIR": str(below.parent), "PINNED": "other"}
    settings = {name: special.get(name, "64") for name in names - APART}
    done = dry_run(tmp_path, **settings)
    assert done.returncode == 0, done.stderr
    missing = [name for name in settings if f"--env {name}=" not in done.stdout]
    assert missing == ["MODELS_DIR"]  # MODELS has what is below it


def test_help_names_every_setting_that_the_server_reads(names):
    text = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, check=True).stdout
    assert [name for name in names - APART if f"  {name} " not in text] == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTP_PORT", "1"),
        ("HTTP_PORT", "65535"),
        ("QUEUE_MAX", "0"),
        ("QUEUE_MAX", "100000"),
        ("MAX_BATCH", "1"),
        ("MAX_BATCH", "1024"),
        ("PREFILL_STEP", "16"),
        ("PREFILL_PAUSE_MS", "1.5"),
        ("PREFIX_CACHE_PERCENT", "0"),
        ("CONTEXT_MAX", "0"),
        ("REQ_TIMEOUT", "0.1"),
        ("DRAIN_TIMEOUT", "0"),
        ("LOAD_TIMEOUT", "31536000"),
        ("JOIN_TIMEOUT", "0.1"),
    ],
)
def test_both_accept_the_ends_of_a_range(name, value, tmp_path):
    read_settings({"MODEL_DIR": str(tmp_path), name: value})
    assert dry_run(tmp_path, **{name: value}).returncode == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("QUEUE_MAX", "100001"),
        ("MAX_BATCH", "1025"),
        ("PREFILL_STEP", "15"),
        ("PREFILL_PAUSE_MS", "0"),
        ("PREFIX_CACHE_PERCENT", "91"),
        ("REQ_TIMEOUT", "0.05"),
        ("LOAD_TIMEOUT", "31536001"),
        ("JOIN_TIMEOUT", "0.05"),
        ("KV_BUDGET_GB", "100001"),
    ],
)
def test_both_refuse_what_is_beyond_a_range(name, value, tmp_path):
    with pytest.raises(SettingError):
        read_settings({"MODEL_DIR": str(tmp_path), name: value})
    assert dry_run(tmp_path, **{name: value}).returncode == 2
