"""Claude Code itself, against the whole front end: it mends a bug with what a scripted model says.

No network: its home is empty, and its environment names this server alone.
"""

import json
import sys
from pathlib import Path

import pytest

from tests.agents.conftest import (
    END,
    HOLDS,
    IDLE_S,
    MCP,
    MCP_ANSWER,
    NO_IMAGE,
    SHOT,
    TRY,
    check_mended,
    check_prefixes,
)
from tests.support.agent_model import KEY, AgentModel, Step
from tests.support.agent_programs import program, run_agent
from tests.support.agent_troubles import line_fills, little_room, rank_ends

AGENT = "Claude Code"
PDF = b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n"
SUMMARY = "<analysis>It is short.</analysis><summary>add.py is to be mended.</summary>"


def claude_command() -> list[str]:
    return [program("claude"), "-p", "Mend add.py", "--dangerously-skip-permissions"]


def claude_environment(root: str) -> dict[str, str]:
    return {
        "ANTHROPIC_BASE_URL": root,
        "ANTHROPIC_AUTH_TOKEN": KEY,
        "ANTHROPIC_MODEL": "demo",
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": "demo",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "IS_SANDBOX": "1",  # else root may not skip permissions
    }


@pytest.fixture
def run(repository, tmp_path, recordings):
    """model -> what it says in the end, of a run that ends well."""

    def run(model: AgentModel, *options: str, **env: str) -> str:
        command = [*claude_command(), *options]
        settings = claude_environment(model.root) | env
        done = run_agent(command, repository, tmp_path / "home", **settings)
        recordings.append(model.recording)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def steps(model: AgentModel, repository: Path) -> list[Step]:
    """Read, edit, try, end."""
    file = str(repository / "add.py")
    return [
        model.thought("What does it say?") + model.call("Read", file_path=file),
        model.thought("A sum.")
        + "I mend it.\n"
        + model.call("Edit", file_path=file, old_string="a - b", new_string="a + b"),
        model.thought("Try it.") + model.call("Bash", command=TRY),
        model.thought("Good.") + END,
    ]


def test_it_mends_a_bug_with_an_mcp_server_and_goes_on_after_a_screenshot(
    agent_model, repository, run, tmp_path
):
    (repository / "shot.png").write_bytes(SHOT)
    servers = {"mcpServers": {"docs": {"command": sys.executable, "args": [str(MCP)]}}}
    (tmp_path / "mcp.json").write_text(json.dumps(servers))
    model = agent_model("qwen3.5")
    model.answers = [
        model.thought("How does it look?")
        + model.call("Read", file_path=str(repository / "shot.png")),
        # Tools of MCP servers are held back until they are searched for.
        model.thought("And the docs?") + model.call("ToolSearch", query="select:mcp__docs__search"),
        model.call("mcp__docs__search", q="add"),
        *steps(model, repository),
    ]
    assert END in run(model, "--mcp-config", str(tmp_path / "mcp.json"))
    last = check_mended(model, repository)
    # All of it came back: what was thought, said, called and found.
    for told in ("What does it say?", "I mend it.", "return a - b", MCP_ANSWER):
        assert told in last
    assert NO_IMAGE in last
    check_prefixes(model)


def test_it_goes_on_after_a_search_of_the_web_that_nobody_can_run_and_a_pdf(
    agent_model, repository, run
):
    """The search is a request of its own, with nothing but the tool of Anthropic's servers. As a
    model whose name it knows."""
    (repository / "add.pdf").write_bytes(PDF)
    model = agent_model("glm-4.x", MODEL_ALIASES="*")
    model.answers = [
        model.call("ToolSearch", query="select:WebSearch"),
        model.call("WebSearch", query="what is a sum"),
        "There is nothing to tell.",
        model.call("Read", file_path=str(repository / "add.pdf")),
        *steps(model, repository),
    ]
    assert END in run(model, ANTHROPIC_MODEL="opus")
    last = check_mended(model, repository)
    assert "Web search error: unavailable" in last
    assert "[document omitted: this model reads text only]" in last


def test_it_waits_in_a_queue_that_is_longer_than_its_timer_and_for_a_place_in_it(
    agent_model, repository, run, tmp_path, keep_waiting
):
    model = agent_model("glm-4.x", MAX_BATCH="1", QUEUE_MAX="1")
    keep_waiting(model)
    full = tmp_path / "full"
    model.answers = steps(model, repository)
    tries = model.call("Bash", command=f"until [ -e {full} ]; do sleep 0.1; done; {TRY}")
    model.answers[2] = line_fills(model, model.thought("Try it.") + tries, full)
    # Its idle timer has a least value of 300 s; this one is for the beginning of an answer.
    assert END in run(model, API_TIMEOUT_MS=str(int(IDLE_S * 1000)))
    assert HOLDS in check_mended(model, repository)
    assert model.refused(429) and len(model.prompts_seen) == 4


@pytest.mark.sweep(2)
@pytest.mark.parametrize("said", ("", "I mend"))
def test_it_goes_on_after_the_end_of_a_rank(agent_model, repository, run, said):
    model = agent_model("kimi-k2")
    first, *others = steps(model, repository)
    model.answers = [first, rank_ends(model, model.thought("A sum.") + said), *others]
    assert END in run(model)
    check_mended(model, repository)
    assert model.refused(503) >= 2


def numbers(model: AgentModel, n: int, lines: int) -> Step:
    """A call for five tokens a line."""
    return model.call("Bash", command=f"seq {n}000 {n * 1000 + lines}")


@pytest.mark.thorough
def test_it_goes_on_with_a_summary_when_the_context_is_full(agent_model, repository, run):
    """By what it is told when a prompt is refused; it holds an unknown model's context for a
    million tokens."""
    model = agent_model("qwen3.5")
    first, *others = steps(model, repository)
    model.answers = [
        little_room(model, first, 18_000),
        *(numbers(model, n, 800) for n in range(1, 5)),
        model.thought("Sum up.") + SUMMARY,
        *others,
    ]
    assert END in run(model)
    check_mended(model, repository)
    assert model.refused(400) == 1


def test_it_goes_on_with_a_summary_before_the_context_is_full(agent_model, repository, run):
    """By its own setting, and the usage that it was told."""
    model = agent_model("glm-4.x")
    first, *others = steps(model, repository)
    model.answers = [
        first,
        *(numbers(model, n, 2_400) for n in range(1, 4)),
        model.thought("Sum up.") + SUMMARY,
        *others,
    ]
    assert END in run(model, CLAUDE_CODE_MAX_CONTEXT_TOKENS="100000")
    assert "add.py is to be mended" in check_mended(model, repository)
    assert model.refused(400) == 0
