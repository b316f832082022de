"""codex itself, against the whole front end: it mends a bug with what a scripted model says.

No network: its home is empty but for a configuration that knows this server alone.
"""

import sys
from pathlib import Path

import pytest

from tests.agents.conftest import (
    END,
    IDLE_S,
    MCP,
    MCP_ANSWER,
    MEND,
    NO_IMAGE,
    SHOT,
    SHOW,
    TRY,
    check_mended,
    check_prefixes,
)
from tests.support.agent_model import KEY, AgentModel, Step
from tests.support.agent_programs import program, run_agent
from tests.support.agent_troubles import line_fills, little_room, rank_ends

AGENT = "codex"
CONFIG = """
model = "{name}"
model_provider = "cluster"
model_context_window = {window}
approval_policy = "never"
sandbox_mode = "danger-full-access"

[model_providers.cluster]
name = "MLX cluster"
base_url = "{url}"
env_key = "CLUSTER_API_KEY"
wire_api = "responses"
stream_idle_timeout_ms = {idle_ms}
request_max_retries = {retries}
stream_max_retries = {retries}

[mcp_servers.docs]
command = "{python}"
args = ["{mcp}"]
"""
WINDOW = 200_000
PATCH = """*** Begin Patch
*** Update File: add.py
@@
-    return a - b
+    return a + b
*** End Patch
"""
SUMMARY = "In short: add.py is to be mended."


def codex_command() -> list[str]:
    return [program("codex"), "exec", "--skip-git-repo-check", "Mend add.py"]


def codex_environment(
    root: str,
    home: Path,
    name: str = "demo",
    window: int = WINDOW,
    retries: int = 0,
    idle_s: float = 300,
) -> dict[str, str]:
    """Of a run whose configuration is written into the new home."""
    config = CONFIG.format(
        url=root + "/v1", idle_ms=int(idle_s * 1000), python=sys.executable, mcp=MCP,
        name=name, window=window, retries=retries,
    )  # fmt: skip
    home.mkdir()
    (home / "config.toml").write_text(config)
    return {"CODEX_HOME": str(home), "CLUSTER_API_KEY": KEY}


@pytest.fixture
def run(repository, tmp_path, recordings):
    """model -> what it says in the end, and on the way, of a run that ends well or with a failure
    as asked."""

    def run(model: AgentModel, *, fails: bool = False, **settings) -> tuple[str, str]:
        home = tmp_path / "home"
        environment = codex_environment(model.root, home, **settings)
        done = run_agent(codex_command(), repository, home, **environment)
        recordings.append(model.recording)
        assert (done.returncode != 0) is fails, done.stderr
        return done.stdout, done.stderr

    return run


def steps(model: AgentModel) -> list[Step]:
    """Read, edit, try, end."""
    return [
        model.thought("What does it say?") + model.call("exec_command", cmd=SHOW),
        model.thought("A sum.") + "I mend it.\n" + model.call("exec_command", cmd=MEND),
        model.thought("Try it.") + model.call("exec_command", cmd=TRY),
        model.thought("Good.") + END,
    ]


def numbers(model: AgentModel, n: int) -> Step:
    """A call for some 5,000 tokens."""
    return model.thought("How many?") + model.call("exec_command", cmd=f"seq {n}000 {n}800")


def test_it_mends_a_bug_with_an_mcp_server_and_goes_on_after_a_screenshot(
    agent_model, repository, run
):
    (repository / "shot.png").write_bytes(SHOT)
    model = agent_model("qwen3.5")
    model.answers = [
        model.thought("How does it look?") + model.call("view_image", path="shot.png"),
        model.thought("And the docs?")
        + "I look it up.\n"
        + model.call("mcp__docs__search", q="add"),
        *steps(model),
    ]
    assert END in run(model)[0]
    last = check_mended(model, repository)
    # All of it came back: what was thought, said, called and found.
    for told in ("What does it say?", "I look it up.", "return a - b", MCP_ANSWER, NO_IMAGE):
        assert told in last
    check_prefixes(model)


def test_as_a_model_that_it_knows_it_searches_for_tools_and_writes_patches(
    agent_model, repository, run
):
    """It shows no tool of an MCP server before the model has searched for it."""
    model = agent_model("glm-4.x", MODEL_ALIASES="*")
    look, _, *others = steps(model)
    model.answers = [
        look,
        model.thought("Docs?") + model.call("tool_search", query="search the documentation"),
        model.call("mcp__docs__search", q="add"),
        model.thought("A sum.") + model.call("apply_patch", input=PATCH),
        *others,
    ]
    assert END in run(model, name="gpt-5.5")[0]
    assert MCP_ANSWER in check_mended(model, repository)
    check_prefixes(model)


@pytest.mark.thorough
def test_it_waits_in_a_queue_that_is_longer_than_its_timer_and_for_a_place_in_it(
    agent_model, repository, run, tmp_path, keep_waiting
):
    model = agent_model("glm-4.x", MAX_BATCH="1", QUEUE_MAX="1")
    keep_waiting(model)
    full = tmp_path / "full"
    model.answers = steps(model)
    tries = model.call("exec_command", cmd=f"until [ -e {full} ]; do sleep 0.1; done; {TRY}")
    model.answers[2] = line_fills(model, model.thought("Try it.") + tries, full)
    assert END in run(model, retries=4, idle_s=IDLE_S)[0]
    check_mended(model, repository)
    assert model.refused(429) and len(model.prompts_seen) == 4


@pytest.mark.sweep(2)
@pytest.mark.parametrize("said", ("", "I mend"))
def test_it_goes_on_after_the_end_of_a_rank(agent_model, repository, run, said):
    model = agent_model("kimi-k2")
    first, *others = steps(model)
    model.answers = [first, rank_ends(model, model.thought("A sum.") + said), *others]
    assert END in run(model, retries=10)[0]
    check_mended(model, repository)
    assert model.refused(503) >= 2


def test_it_knows_that_the_context_is_full(agent_model, run):
    model = agent_model("qwen3.5")
    model.answers = [little_room(model, numbers(model, 1), 2_000)]
    assert "ran out of room in the model's context window" in run(model, fails=True)[1]


def test_it_goes_on_with_a_summary_before_the_context_is_full(agent_model, repository, run):
    """By the usage that it was told, which is all that it goes by."""
    model = agent_model("qwen3.5")
    summary = model.thought("Sum up.") + SUMMARY
    model.answers = [*(numbers(model, n) for n in (1, 2, 3)), summary, *steps(model)]
    assert END in run(model, window=50_000)[0]
    assert SUMMARY in check_mended(model, repository)
    assert model.refused(400) == 0
