"""What every agent gets: a model that says what the test has written, and a repository to mend."""

import base64
import itertools
import sys
import threading
from pathlib import Path

import pytest

from server.api import responder
from tests.support.agent_model import KEY, AgentModel
from tests.support.fields_seen import Recording, check_kept

BUG, MENDED = "    return a - b\n", "    return a + b\n"
MCP = Path(__file__).with_name("mcp_docs.py")
MCP_ANSWER = "add: add returns the sum of both."
SHOT = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
NO_IMAGE = "[image omitted: this model reads text only]"
# In the words of any shell, as agents call them.
SHOW = "cat add.py"
MEND = "sed -i.bak 's/a - b/a + b/' add.py"
TRY = f'{sys.executable} -c \'import add; assert add.add(1, 2) == 3; print("it " + "holds")\''
HOLDS = "it holds"
END = "The bug is mended."
# The least that an agent's own idle timer is tried with, and a wait that is longer.
IDLE_S = 1.5
WAIT_S = 3 * IDLE_S


@pytest.fixture
def agent_model(tmp_path):
    """family, settings -> an AgentModel, ended afterwards."""
    begun: list[AgentModel] = []

    def begin(family: str, **settings) -> AgentModel:
        one = AgentModel(tmp_path / f"model{len(begun)}", family, API_KEY=KEY, **settings)
        begun.append(one)
        return one

    yield begin
    for one in begun:
        one.end()


@pytest.fixture
def repository(tmp_path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "add.py").write_text("def add(a, b):\n" + BUG)
    return folder


@pytest.fixture(scope="module")
def recordings(request):
    """What the module's AGENT sent in all of its tests is what is written down."""
    seen: list[Recording] = []
    yield seen
    check_kept(request.module.AGENT, seen)


@pytest.fixture
def keep_waiting(monkeypatch):
    """model -> its next request waits for longer than IDLE_S, and is told so often enough."""
    monkeypatch.setattr(responder, "PING_S", IDLE_S / 10)

    def wait(model: AgentModel) -> None:
        model.engine.go.clear()
        threading.Timer(WAIT_S, model.engine.go.set).start()

    return wait


def check_mended(model: AgentModel, repository: Path) -> str:
    """What the model was shown last, once all that was to be done is done."""
    assert (repository / "add.py").read_text() == "def add(a, b):\n" + MENDED
    assert not model.answers
    last = model.prompts_seen[-1]
    assert HOLDS in last
    return last


def check_prefixes(model: AgentModel) -> None:
    """Each prompt goes on from the one before, so that nothing is computed twice."""
    for before, after in itertools.pairwise(model.prompts_seen):
        assert after.startswith(before.removesuffix(model.family.prompt))
