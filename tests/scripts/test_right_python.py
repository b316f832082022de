"""Programs that people start with the Python they have: macOS's own is 3.9."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.lib import right_python
from tests.support.paths import ROOT

STARTED = [
    ("scripts/bench_serving.py",), ("scripts/read_answer.py",),
    *(("-m", f"scripts.dev.{name}") for name in
      ("soak", "fault_table", "bench_constrained", "step_profile", "batch_profile")),
]  # fmt: skip


def old_python() -> str | None:
    """A real one of 3.9 or so, if this machine has any that runs."""
    kept = sorted(Path.home().glob(".pyenv/versions/3.[6-9]*/bin/python"), reverse=True)
    named = filter(None, (shutil.which(f"python3.{minor}") for minor in (9, 8, 10)))
    for python in (*map(str, kept), *named):
        done = subprocess.run([python, "-c", "import sys; sys.exit(sys.version_info >= (3, 11))"])
        if done.returncode == 0:
            return python
    return None


@pytest.mark.parametrize("program", STARTED, ids=lambda words: words[-1])
def test_under_an_old_python_it_goes_on_with_a_right_one(program):
    """It was a traceback: "unsupported operand", or a syntax error."""
    python = old_python()
    if python is None:
        pytest.skip("no Python older than 3.11 is installed")
    done = subprocess.run(
        [python, *program, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: " in done.stdout


class Executed(Exception):
    pass


@pytest.fixture
def old(monkeypatch, tmp_path):
    """This process, as an old Python with nothing else on its PATH."""
    monkeypatch.setattr(sys, "version_info", (3, 9, 6))
    monkeypatch.setattr(sys, "argv", ["prog.py", "--minutes", "1"])
    monkeypatch.setattr(right_python, "FOLDERS", ())
    monkeypatch.delenv(right_python.AGAIN, raising=False)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    def execv(program, words):
        raise Executed(program, *words)

    monkeypatch.setattr(os, "execv", execv)
    return tmp_path


def put(path: Path, code: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\nexit {code}\n")
    path.chmod(0o755)
    return str(path)


def test_the_checkouts_own_goes_first_then_the_first_that_is_new_enough(old, monkeypatch):
    put(old / "bin" / "python3", 1)
    put(old / "bin" / "python3.11", 1)  # that of a version manager, which is none
    right = put(old / "bin" / "python3.12", 0)
    with pytest.raises(Executed, match=f"{re.escape(right)}.*'prog.py', '--minutes', '1'"):
        right_python.ensure(str(old))
    own = put(old / ".venv" / "bin" / "python", 0)
    monkeypatch.delenv(right_python.AGAIN)
    with pytest.raises(Executed, match=f"{re.escape(own)}.*'-m', 'scripts.dev.soak', '--minutes'"):
        right_python.ensure(str(old), "scripts.dev.soak")


@pytest.mark.parametrize("again", [False, True])
def test_without_one_it_says_which_is_needed_and_never_goes_round(old, monkeypatch, capsys, again):
    if again:
        put(old / "bin" / "python3", 0)
        monkeypatch.setenv(right_python.AGAIN, "/usr/bin/python3")
    with pytest.raises(SystemExit) as ended:
        right_python.ensure(str(old))
    assert ended.value.code == 3
    words = capsys.readouterr().err
    assert "needs Python 3.11 or later" in words and "is 3.9.6" in words and "brew" in words


def test_it_is_what_any_python_3_can_read():
    text = (ROOT / "scripts/lib/right_python.py").read_text()
    compile(text, "right_python.py", "exec", flags=0, dont_inherit=True)
    assert not re.search(r":=|\bmatch\b|->|: (str|int)\b", text.split('"""', 2)[2])
