"""A small model beside the large one, on real ranks: the side requests of agents name it, as
docs/clients.md has it, and the work goes to the large one."""

import json
import re

import pytest

from tests.agents.conftest import END
from tests.agents.test_claude_code import claude_command, claude_environment
from tests.agents.test_opencode import OFFLINE
from tests.agents.test_two_ranks import CONTEXT, last_turn_model
from tests.support.agent_programs import program, run_agent
from tests.support.client_snippets import snippet
from tests.support.cluster import Cluster
from tests.support.forcing_proxy import ForcingProxy

pytestmark = pytest.mark.ranks

SECTION = "A small model for side requests"
LARGE, SMALL = "large", "small"
FIND = {"description": "Look", "prompt": "Find add.py", "subagent_type": "finder"}
FINDER = "---\nname: finder\ndescription: Finds files.\nmodel: haiku\n---\nYou are the finder.\n"
JUDGE = {"type": "prompt", "prompt": "Is all of it done? $ARGUMENTS"}


@pytest.fixture(scope="module")
def two_models(tmp_path_factory):
    """-> a cluster with both; not begun where the agent is missing."""
    begun: list[Cluster] = []

    def begin() -> Cluster:
        if not begun:
            folder = tmp_path_factory.mktemp("small")
            folders = []
            for name, hidden in ((LARGE, 128), (SMALL, 64)):
                folders.append(last_turn_model(folder / f"{name}, of two", hidden))
            env = {"MODEL_ID": LARGE, "MODELS": f"{SMALL}={folders[1]}", "PINNED": SMALL}
            begun.append(Cluster(1, folders[0], folder / "run", env))
            begun[0].wait_ready()
        return begun[0]

    yield begin
    for one in begun:
        one.end()


@pytest.fixture
def force(two_models):
    """calls -> a ForcingProxy in front of the ranks."""
    begun: list[ForcingProxy] = []

    def begin(*calls) -> ForcingProxy:
        begun.append(ForcingProxy(two_models().url, list(calls), END))
        return begun[0]

    yield begin
    for one in begun:
        one.close()


def asked(proxy: ForcingProxy, says: str) -> set[str]:
    """The models of the requests that are told this before all else."""
    chat = (body for body in proxy.seen if "system" not in body)
    told = [(body, body["system"]) for body in proxy.seen if "system" in body]
    told += [(body, body["messages"][0]) for body in chat]
    return {body["model"] for body, first in told if says in json.dumps(first)}


def test_claude_codes_side_requests_and_sub_agents_of_haiku_ask_the_small_one(
    force, two_models, repository, tmp_path
):
    agents = repository / ".claude" / "agents"
    agents.mkdir(parents=True)
    (agents / "finder.md").write_text(FINDER)
    hooks = {"hooks": {"Stop": [{"hooks": [JUDGE]}]}}
    (repository / ".claude/settings.json").write_text(json.dumps(hooks))
    command = claude_command()
    proxy = force(("Agent", FIND))
    text = snippet(SECTION, "sh").filled(model=LARGE, small=SMALL)
    told = claude_environment(proxy.root) | dict(re.findall(r"(ANTHROPIC_\w+)=(\S+)", text))
    done = run_agent(command, repository, tmp_path / "home", **told)
    assert done.returncode == 0 and END in done.stdout, done.stdout + done.stderr
    assert not proxy.calls
    assert proxy.seen[0]["model"] == LARGE
    assert asked(proxy, "You are the finder.") == {SMALL}
    assert asked(proxy, "You are evaluating a stop") == {SMALL}
    assert {body["model"] for body in proxy.seen} == {LARGE, SMALL}
    check_answered(two_models())


def test_opencodes_title_asks_the_small_one(force, two_models, repository, tmp_path):
    command = [program("opencode"), "run", "Mend add.py"]
    proxy = force()
    text = snippet(SECTION, "json").filled(
        url=proxy.root, model=LARGE, small=SMALL, key="none", context=str(CONTEXT)
    )
    (repository / "opencode.json").write_text(text)
    done = run_agent(command, repository, tmp_path / "home", **OFFLINE)
    assert done.returncode == 0 and END in done.stdout, done.stdout + done.stderr
    assert asked(proxy, "You are a title generator") == {SMALL}
    assert {body["model"] for body in proxy.seen} == {LARGE, SMALL}
    check_answered(two_models())


def check_answered(cluster: Cluster) -> None:
    """By both, in the same ranks."""
    cards = {card["id"]: card for card in cluster.get("/cluster")[1]["models"]}
    assert [cards[name]["state"] for name in (LARGE, SMALL)] == ["loaded", "loaded"]
    assert cards[SMALL]["loads"] == 1
