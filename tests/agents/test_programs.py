"""Where an agent is missing its tests say so."""

import pytest

from tests.support import agent_programs
from tests.support.agent_programs import program


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The only one that programs are looked for in."""
    monkeypatch.setattr(agent_programs, "INSTALLED", tmp_path / "nothing")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def install(folder, name: str, first_line: str) -> None:
    (folder / name).write_text(f"{first_line}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("ci", "outcome"), [("false", pytest.skip.Exception), ("true", pytest.fail.Exception)]
)
def test_a_missing_one_is_skipped_with_the_reason_and_fails_in_ci(folder, monkeypatch, ci, outcome):
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="codex is not installed .npm install in tests/agents"):
        program("codex")
    install(folder, "codex", "#!/usr/bin/env node")
    with pytest.raises(outcome, match="node is not installed, which codex needs"):
        program("codex")


def test_one_on_path_will_do(folder):
    install(folder, "claude", "#!/bin/sh")
    assert program("claude") == str(folder / "claude")
    install(folder, "codex", "#!/usr/bin/env node")
    install(folder, "node", "#!/bin/sh")
    assert program("codex") == str(folder / "codex")
