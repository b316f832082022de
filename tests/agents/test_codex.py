"""codex itself, against the whole front end: it mends a bug with what a scripted model says.

No network: its home is empty but for a configuration that knows this server alone.
"""

import sys
import threading
from pathlib import Path

import pytest

from server.api import responder
from tests.agents.conftest import MEND, TRY
from tests.support.agent_model import AgentModel
from tests.support.agent_programs import program, run_agent

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


@pytest.fixture
def model(agent_model):
    one = agent_model("qwen3.5")
    one.answers = [
        one.thought("What does it say?") + one.call("exec_command", cmd="cat add.py"),
        one.thought("And the docs?") + "I look it up.\n" + one.call("mcp__docs__search", q="add"),
        one.thought("A sum.") + one.call("exec_command", cmd=MEND),
        one.thought("Try it.") + one.call("exec_command", cmd=TRY),
        one.thought("Good.") + "The bug is mended.",
    ]
    return one


def run_codex(model: AgentModel, repository: Path) -> str:
    """What it says in the end."""
    home = repository.parent / "home"
    home.mkdir()
    mcp = Path(__file__).with_name("mcp_docs.py")
    config = CONFIG.format(
        url=model.url, idle_ms=int(IDLE_S * 1000), python=sys.executable, mcp=mcp
    )
    (home / "config.toml").write_text(config)
    command = [program("codex"), "exec", "--skip-git-repo-check", "Mend add.py"]
    done = run_agent(command, repository, home, CODEX_HOME=str(home), CLUSTER_API_KEY="right")
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
