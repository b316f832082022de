"""Is a recorded pid ours? Python and bash give the same answer, for any record and any process."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.lib.doctor.probe import from_proc, look_for_ranks
from scripts.lib.doctor.processes import living_processes
from scripts.lib.hosts.on_hosts import Answer
from scripts.lib.hosts.our_process import command_of, is_of_run, recorded_pid, signal_if
from scripts.lib.status.facts import read_facts
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


# What there is instead of ps: nothing, or one that takes no -p and no -o, as busybox has it.
LESSER_PS = '#!/bin/sh\necho "ps: unrecognized option: p" >&2\nexit 1\n'


@pytest.fixture(params=["ps", "no ps", "a lesser ps"])
def tools(request, tmp_path, monkeypatch):
    """PATH with a ps, or as in slim containers."""
    if request.param == "ps":
        return
    if not Path("/proc/self/stat").exists():
        pytest.skip("no /proc")
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("bash", "sh", "tr", "sed", "awk", "cat", "dirname", "sleep", "uname", "getconf"):
        (folder / name).symlink_to(shutil.which(name))
    if request.param == "a lesser ps":
        (folder / "ps").write_text(LESSER_PS)
        (folder / "ps").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


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
def test_a_record_is_judged_alike(tmp_path, tools, process, record, ours):
    file: Path = tmp_path / "rank-0.pid"
    file.write_text(record.format(pid=process.pid))
    assert (recorded_pid(file) == process.pid) is ours
    assert (bash('ours "$1"', file) == 0) is ours


def test_a_process_that_is_gone_and_a_file_that_is_none_are_not_ours(tmp_path, tools, process):
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
    tmp_path, tools, locale, words, others
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


def test_what_status_and_doctor_see_of_a_process_is_the_same_without_ps(tmp_path, tools, process):
    """State, age, memory and command line, by rank_facts.sh and by the doctor's probe."""
    os.kill(process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    code = ROOT / "scripts/lib/status/rank_facts.sh"
    checkout = tmp_path / "checkout"
    record = checkout / "run/8080/rank-0.pid"
    record.parent.mkdir(parents=True)
    record.write_text(f"{process.pid}\nrun-1\n")
    told = subprocess.run(["bash", code, record.parent], capture_output=True, text=True)
    facts = read_facts(Answer("here", 0, told.stdout, told.stderr, 0.1))
    seen = facts.ranks[0].process
    assert seen.state.startswith("T") and "--run-id run-1" in seen.command
    assert 0 <= seen.age_s < 600 and seen.rss_bytes > 1 << 20
    assert bash('is_stopped "$1"', process.pid) == 0
    job = {"root": "", "checkout": str(checkout)}
    (living,) = living_processes(look_for_ranks(job, None))
    assert (living.kind, living.pid) == ("rank-0", process.pid)
    assert re.fullmatch(r"\d+:\d\d", living.age)
    # The probe asks for ps by its path.
    assert is_of_run(from_proc("", str(process.pid)), "run-1")
    assert from_proc("", "0") == ""


def test_where_no_process_can_be_seen_nothing_is_taken_for_gone(tmp_path, process):
    """stop would say that nothing runs, and delete the records of what does."""
    record = tmp_path / "rank-0.pid"
    record.write_text(f"{process.pid}\nrun-1\n")
    done = subprocess.run(
        [
            "bash",
            "-c",
            f'. {ROOT}/scripts/lib/common.sh; command_of() {{ :; }}; need_processes; rm "$1"',
            "stop.sh",
            record,
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3 and "apt-get install procps" in done.stderr
    assert record.exists()


def test_nobody_else_matches_a_run_id_against_a_command_line():
    """The words would part ways again."""
    found = []
    for path in [*(ROOT / "scripts").rglob("*.py"), *(ROOT / "scripts").rglob("*.sh")]:
        text = path.read_text("utf-8")
        if "--run-id {" in text or "--run-id $" in text:
            found.append(path.name)
    assert sorted(found) == ["common.sh", "our_process.py"]
