"""opencode itself, against the whole front end: it mends a bug with what a scripted model says.

No network: its home is empty but for the configuration that docs/clients.md has, and its list of
models on the web is not asked for.
"""

import base64
import json
import sys
from pathlib import Path

import pytest

from tests.agents.conftest import END, HOLDS, IDLE_S, MCP, MCP_ANSWER, TRY, check_mended
from tests.support.agent_model import KEY, AgentModel, Step
from tests.support.agent_programs import program, run_agent
from tests.support.agent_troubles import line_fills, little_room, rank_ends
from tests.support.client_snippets import snippet

AGENT = "opencode"
CONTEXT = 100_000  # of which it knows; from about that on it sums up by itself
SHOT = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAACAAAAAgCAIAAAD8GO2jAAAALUlEQVR42u3NMQEAAAgDoC251a3gHlpgkqk+"
    "qqqqqqqqqqqqqqqqqqqqqqr6sgCHAwCJ+fZPDgAAAABJRU5ErkJggg=="
)
TITLE, IS_TITLE = "A bug in add", "You are a title generator"
OFFLINE = {
    "OPENCODE_DISABLE_MODELS_FETCH": "1",
    "OPENCODE_DISABLE_AUTOUPDATE": "1",
    "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
    "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
}


@pytest.fixture
def titles() -> list[str]:
    """The prompts in which it asked for a title."""
    return []


@pytest.fixture
def run(repository, tmp_path, recordings, titles):
    """model -> what it says in the end. code: that it ends with. idle_s: when it gives up a server
    that says nothing."""

    def run(model: AgentModel, code: int = 0, idle_s: float | None = None, **more) -> str:
        def title(ticket):
            titles.append(model.front.prompts.decode(ticket.prompt))
            return model.speak(model.thought("Short.") + TITLE, ticket)

        model.aside[IS_TITLE] = title
        text = snippet("opencode", "json").filled(
            url=model.root, model="demo", key=KEY, context=str(CONTEXT)
        )
        config = json.loads(text) | more
        if idle_s is not None:
            idle = dict.fromkeys(("headerTimeout", "chunkTimeout"), int(idle_s * 1000))
            config["provider"]["cluster"]["options"] |= idle
        (repository / "opencode.json").write_text(json.dumps(config))
        home = tmp_path / "home"
        command = [program("opencode"), "run", "--print-logs", "Mend add.py"]
        done = run_agent(command, repository, home, **OFFLINE)
        recordings.append(model.recording)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    return run


def steps(model: AgentModel, repository: Path) -> list[Step]:
    """Read, edit, try, end."""
    file = str(repository / "add.py")
    return [
        model.thought("What does it say?") + model.call("read", filePath=file),
        model.thought("A sum.")
        + "I mend it.\n"
        + model.call("edit", filePath=file, oldString="a - b", newString="a + b"),
        model.thought("Try it.") + model.call("bash", command=TRY),
        model.thought("Good.") + END,
    ]


def test_it_mends_a_bug_with_an_mcp_server_and_goes_on_after_a_screenshot(
    agent_model, repository, run, titles
):
    shot = repository / "shot.png"
    shot.write_bytes(SHOT)
    model = agent_model("qwen3.5")
    model.answers = [
        model.thought("How does it look?") + model.call("read", filePath=str(shot)),
        model.thought("And the docs?") + model.call("docs_search", q="add"),
        *steps(model, repository),
    ]
    docs = {"type": "local", "command": [sys.executable, str(MCP)], "enabled": True}
    assert END in run(model, mcp={"docs": docs})
    last = check_mended(model, repository)
    # All of it came back: what was thought, said, called and found.
    for told in ("What does it say?", "I mend it.", "return a - b", MCP_ANSWER):
        assert told in last
    assert titles and "Mend add.py" in titles[0]
    assert all(one.error is None for one in model.closed)


@pytest.mark.thorough
@pytest.mark.parametrize("family", ["mistral", "glm-4.x"])
def test_another_family_does_it_too(agent_model, repository, run, titles, family):
    model = agent_model(family)
    model.answers = steps(model, repository)
    assert END in run(model)
    check_mended(model, repository)
    assert titles


@pytest.mark.thorough
def test_it_waits_in_a_queue_that_is_longer_than_its_timer_and_for_a_place_in_it(
    agent_model, repository, run, tmp_path, keep_waiting
):
    model = agent_model("qwen3.5", MAX_BATCH="1", QUEUE_MAX="2")
    keep_waiting(model)
    full = tmp_path / "full"
    model.answers = steps(model, repository)
    tries = model.call("bash", command=f"until [ -e {full} ]; do sleep 0.1; done; {TRY}")
    model.answers[2] = line_fills(model, model.thought("Try it.") + tries, full)
    assert END in run(model, idle_s=IDLE_S)
    assert HOLDS in check_mended(model, repository)
    assert model.refused(429)


@pytest.mark.thorough
@pytest.mark.parametrize("said", ["", "I mend"])
def test_it_goes_on_after_the_end_of_a_rank(agent_model, repository, run, said):
    model = agent_model("kimi-k2")
    first, *others = steps(model, repository)
    model.answers = [first, rank_ends(model, model.thought("A sum.") + said), *others]
    assert END in run(model)
    check_mended(model, repository)
    assert model.refused(503) >= 2


@pytest.mark.thorough
def test_it_goes_on_with_a_summary_when_the_context_is_full(agent_model, repository, run):
    model = agent_model("qwen3.5")
    first, *others = steps(model, repository)
    numbers = [model.call("bash", command=f"seq {n}000 {n}800") for n in range(1, 4)]
    model.answers = [
        little_room(model, first, 14_000),
        *numbers,
        model.thought("Sum up.") + "add.py is to be mended.",
        *others,
    ]
    # That it has heard of an error at all is what its code tells.
    assert END in run(model, code=1)
    check_mended(model, repository)
    assert model.refused(400) == 1
