"""Is a recorded pid ours? Python and bash give the same answer, for any record and any process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.lib.doctor.processes import living_processes
from scripts.lib.hosts.our_process import command_of, is_of_run, recorded_pid, signal_if
from tests.support.paths import ROOT

COMMANDS = [
    ("python server.py --run-id run-1", "run-1", True),
    ("python server.py --run-id run-1 --more", "run-1", True),
    ("1:02 python server.py --run-id run-1", "run-1", True),
    ("python server.py --run-id run-12", "run-1", False),
    ("python server.py --run-id xrun-1", "run-1", False),
    ("python server.py --not-run-id run-1", "run-1", False),
    ("python server.py x--run-id run-1", "run-1", False),
    ("python server.py --run-id", "", False),
    ("", "run-1", False),
    ("python server.py", "", False),
]


def bash(code: str, *arguments: object) -> int:
    text = f". {ROOT}/scripts/lib/common.sh; {code}"
    return subprocess.run(["bash", "-c", text, "test", *map(str, arguments)]).returncode


@pytest.mark.parametrize(("command", "run_id", "ours"), COMMANDS)
def test_a_command_line_is_judged_alike(command, run_id, ours):
    assert is_of_run(command, run_id) is ours
    assert (bash('is_of_run "$1" "$2"', command, run_id) == 0) is ours
    entry = {"file": "/run/8080/rank-0.pid", "pid": "7", "run": run_id, "ps": {"out": command}}
    assert bool(living_processes([entry])) is ours


@pytest.fixture
def process():
    words = [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(600)"]
    child = subprocess.Popen([*words, "--run-id", "run-1"], stdout=subprocess.PIPE)
    child.stdout.readline()
    yield child
    child.kill()
    child.wait()


@pytest.mark.parametrize(
    ("record", "ours"),
    [
        ("{pid}\nrun-1\n", True),
        ("{pid}\nrun-1", True),
        ("{pid}\nrun-2\n", False),
        ("{pid}\n", False),
        ("{pid}", False),
        ("", False),
        ("0\nrun-1\n", False),
        ("-{pid}\nrun-1\n", False),
        ("{pid} 1\nrun-1\n", False),
        ("x\nrun-1\n", False),
        ("{pid}\nrun 1\n", False),
        ("1\nrun-1\n", False),
    ],
)
def test_a_record_is_judged_alike(tmp_path, process, record, ours):
    file: Path = tmp_path / "rank-0.pid"
    file.write_text(record.format(pid=process.pid))
    assert (recorded_pid(file) == process.pid) is ours
    assert (bash('ours "$1"', file) == 0) is ours


def test_a_process_that_is_gone_and_a_file_that_is_none_are_not_ours(tmp_path, process):
    file = tmp_path / "supervisor.pid"
    assert recorded_pid(file) is None and bash('ours "$1"', file)
    file.write_text(f"{process.pid}\nrun-1\n")
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while command_of(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert recorded_pid(file) is None and bash('ours "$1"', file)


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
@pytest.mark.parametrize("words", ['Jörg\'s "x" (2)/*[a]?/server.py', "ü", "plain"])
@pytest.mark.parametrize("others", [False, True])
def test_a_far_process_is_known_by_its_words_whatever_the_locale_there(
    tmp_path, locale, words, others
):
    """Over ssh there is often none, and ps shows question marks: its signals never came."""
    command = ["sh", "-c", 'trap "exit 7" TERM; while :; do sleep 0.1; done', words]
    running = subprocess.Popen(command)
    file = tmp_path / "pid"
    file.write_text(f"{running.pid}\n")
    try:
        line = signal_if(str(file), "another's" if others else f"sleep 0.1; done {words}", "KILL")
        environment = os.environ | {"LC_ALL": locale}
        subprocess.run(["sh", "-c", line], env=environment, check=True)
        if others:
            assert running.poll() is None
        else:
            assert running.wait(60) == -signal.SIGKILL
    finally:
        running.kill()
        running.wait()


def test_nobody_else_matches_a_run_id_against_a_command_line():
    """The words would part ways again."""
    found = []
    for path in [*(ROOT / "scripts").rglob("*.py"), *(ROOT / "scripts").rglob("*.sh")]:
        text = path.read_text("utf-8")
        if "--run-id {" in text or "--run-id $" in text:
            found.append(path.name)
    assert sorted(found) == ["common.sh", "our_process.py"]
