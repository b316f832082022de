"""Agents over two real ranks: every token is computed by both, and each call is forced, since the
weights are random."""

import json
from pathlib import Path

import pytest

from tests.agents.conftest import BUG, END, HOLDS, MEND, MENDED, SHOW, TRY
from tests.agents.test_claude_code import claude_command, claude_environment
from tests.agents.test_codex import codex_command, codex_environment
from tests.support.agent_programs import run_agent
from tests.support.cluster import Cluster
from tests.support.forcing_proxy import Call, ForcingProxy
from tests.support.tiny_models import tiny_llama

pytestmark = pytest.mark.ranks

CONTEXT = 2**17  # by length an agent's own prompt might have so many tokens
# An agent's long prompt would take these ranks minutes; what a tool has returned is what matters.
LAST_TURN = (
    "<|im_start|>{{ messages[-1]['role'] }}\n{{ messages[-1]['content'][:400] }}<|im_end|>\n"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def last_turn_model(folder: Path, hidden: int = 64) -> Path:
    """Its weights are random; of a conversation it sees the beginning of the last turn alone."""
    model = tiny_llama(folder, context=CONTEXT, hidden=hidden)
    path = model / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"chat_template": LAST_TURN}
    path.write_text(json.dumps(config))
    return model


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """-> their cluster; not begun where the agent is missing."""
    begun: list[Cluster] = []

    def begin() -> Cluster:
        if not begun:
            folder = tmp_path_factory.mktemp("two")
            model = last_turn_model(folder / "model")
            begun.append(Cluster(2, model, folder / "run", {}))
            begun[0].wait_ready()
        return begun[0]

    yield begin
    for one in begun:
        one.end()


@pytest.fixture
def force(ranks):
    """calls -> a ForcingProxy in front of the ranks."""
    begun: list[ForcingProxy] = []

    def begin(calls: list[Call]) -> ForcingProxy:
        begun.append(ForcingProxy(ranks().url, calls, END))
        return begun[0]

    yield begin
    for one in begun:
        one.close()


def check(proxy: ForcingProxy, repository: Path, done) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert (repository / "add.py").read_text() == "def add(a, b):\n" + MENDED
    assert not proxy.calls and END in done.stdout
    # What each call has returned came back with the next request.
    _, shown, _, tried = [json.dumps(body) for body in proxy.seen]
    assert BUG.strip() in shown and HOLDS in tried and HOLDS not in shown


def test_codex_finishes_its_task(force, repository, tmp_path):
    command, home = codex_command(), tmp_path / "home"
    proxy = force([("exec_command", {"cmd": told}) for told in (SHOW, MEND, TRY)])
    done = run_agent(command, repository, home, **codex_environment(proxy.root, home))
    check(proxy, repository, done)


def test_claude_code_finishes_its_task(force, repository, tmp_path):
    command, file = claude_command(), str(repository / "add.py")
    calls = [
        ("Read", {"file_path": file}),
        ("Edit", {"file_path": file, "old_string": "a - b", "new_string": "a + b"}),
        ("Bash", {"command": TRY}),
    ]
    proxy = force(calls)
    done = run_agent(command, repository, tmp_path / "home", **claude_environment(proxy.root))
    check(proxy, repository, done)
