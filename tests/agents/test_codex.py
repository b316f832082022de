"""codex itself, against the whole front end: it mends a bug with what a scripted model says.

Needs `codex` on PATH (npm package @openai/codex, 0.171 when this was written); nothing else, and
no network: its home is empty but for a configuration that knows this server alone.
"""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from server.api import responder
from tests.support.agent_model import AgentModel, call, thought

CODEX = shutil.which("codex")
pytestmark = pytest.mark.skipif(CODEX is None, reason="codex is not installed (@openai/codex)")
DEADLINE_S = 120  # against a hang
IDLE_S = 1.5  # after which codex gives a silent stream up
CONFIG = """
model = "demo"
model_provider = "cluster"
model_context_window = 200000
approval_policy = "never"
sandbox_mode = "danger-full-access"

[model_providers.cluster]
name = "MLX cluster"
base_url = "{url}"
env_key = "CLUSTER_API_KEY"
wire_api = "responses"
stream_idle_timeout_ms = {idle_ms}
stream_max_retries = 0
request_max_retries = 0

[mcp_servers.docs]
command = "{python}"
args = ["{mcp}"]
"""
MEND = "sed -i.bak 's/a - b/a + b/' add.py"
TRY = f"{sys.executable} -c 'import add; assert add.add(1, 2) == 3; print(\"it holds\")'"


@pytest.fixture
def model(tmp_path):
    one = AgentModel(tmp_path / "model", API_KEY="right")
    one.answers = [
        thought("What does it say?") + call("exec_command", cmd="cat add.py"),
        thought("And the docs?") + "I look it up.\n" + call("mcp__docs__search", q="add"),
        thought("A sum.") + call("exec_command", cmd=MEND),
        thought("Try it.") + call("exec_command", cmd=TRY),
        thought("Good.") + "The bug is mended.",
    ]
    yield one
    one.end()


@pytest.fixture
def repository(tmp_path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "add.py").write_text("def add(a, b):\n    return a - b\n")
    return folder


def run_codex(model: AgentModel, repository: Path) -> str:
    """What it says in the end."""
    home = repository.parent / "home"
    home.mkdir()
    mcp = Path(__file__).with_name("mcp_docs.py")
    config = CONFIG.format(
        url=model.url, idle_ms=int(IDLE_S * 1000), python=sys.executable, mcp=mcp
    )
    (home / "config.toml").write_text(config)
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "CODEX_HOME": str(home)}
    done = subprocess.run(
        [CODEX, "exec", "--skip-git-repo-check", "Mend add.py"],
        cwd=repository,
        env=env | {"CLUSTER_API_KEY": "right"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_mended(model: AgentModel, repository: Path) -> None:
    assert (repository / "add.py").read_text() == "def add(a, b):\n    return a + b\n"
    assert not model.answers
    last = model.prompts_seen[-1]
    # All of it came back: what was thought, called and found.
    for told in ("What does it say?", "return a - b", "mcp__docs__search", "it holds"):
        assert told in last
    assert "add: add returns the sum of both." in last


def test_codex_mends_a_bug_with_the_help_of_an_mcp_server(model, repository):
    assert "The bug is mended." in run_codex(model, repository)
    check_mended(model, repository)


def test_codex_waits_in_a_queue_that_is_longer_than_its_idle_timer(model, repository, monkeypatch):
    monkeypatch.setattr(responder, "PING_S", IDLE_S / 10)
    model.engine.go.clear()
    threading.Timer(3 * IDLE_S, model.engine.go.set).start()
    assert "The bug is mended." in run_codex(model, repository)
    check_mended(model, repository)
