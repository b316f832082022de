"""What every agent gets: a model that says what the test has written, and a repository to mend."""

import sys
from pathlib import Path

import pytest

from tests.support.agent_model import AgentModel

# In the words of any shell, as agents call them.
MEND = "sed -i.bak 's/a - b/a + b/' add.py"
TRY = f"{sys.executable} -c 'import add; assert add.add(1, 2) == 3; print(\"it holds\")'"


@pytest.fixture
def agent_model(tmp_path):
    """family, settings -> an AgentModel, ended afterwards."""
    begun: list[AgentModel] = []

    def begin(family: str, **settings) -> AgentModel:
        one = AgentModel(tmp_path / f"model{len(begun)}", family, API_KEY="right", **settings)
        begun.append(one)
        return one

    yield begin
    for one in begun:
        one.end()


@pytest.fixture
def repository(tmp_path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "add.py").write_text("def add(a, b):\n    return a - b\n")
    return folder
