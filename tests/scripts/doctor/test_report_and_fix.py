"""What people and programs get to read, and which fixes are done, after which question."""

import json
import subprocess
from pathlib import Path

import pytest

from scripts.lib.doctor import checks, report
from scripts.lib.doctor.findings import FAIL, PASS, SKIP, WARN, Finding, Fix, listed, most_common
from scripts.lib.doctor.fix import ask_and_fix, offered
from tests.support.machines import Macs
from tests.support.wiring import mesh


def finding(check: str, host: str | None, verdict: str = FAIL, fix: Fix | None = None) -> Finding:
    if verdict in (PASS, SKIP):
        return Finding(check, host, verdict, "nothing to see")
    return Finding(check, host, verdict, "it is off", "a hang", fix or Fix("turn it on"))


SLEEP = Fix("or by menu", command="sudo /usr/bin/pmset -a sleep 0", undo="sudo pmset -a sleep 10")


def test_a_finding_without_symptom_or_fix_cannot_be_made():
    with pytest.raises(ValueError, match="rdma: a fail needs"):
        Finding("rdma", "mac0", FAIL, "off", "", Fix("on"))
    with pytest.raises(ValueError, match="rdma: a warn needs"):
        Finding("rdma", "mac0", WARN, "off", "a hang")


def test_the_table_has_a_line_a_check_and_a_column_a_host():
    found = [
        finding("ssh", "mac0", PASS),
        finding("ssh", "mac1", WARN),
        finding("ssh", "mac1", FAIL),
        finding("heads", None, PASS),
        finding("disk", "mac0", SKIP),
    ]
    assert report.table(found, ["mac0", "mac1"]).splitlines() == [
        "check  mac0  mac1",
        "ssh    pass  FAIL",
        "heads  pass  nothing to see",
        "disk   -     -",
    ]


def test_many_long_names_are_numbered_and_listed_above():
    hosts = [f"studio-{n}.machine-room.example" for n in range(5)]
    lines = report.table([finding("ssh", host, PASS) for host in hosts], hosts).splitlines()
    assert lines[0] == f"0  {hosts[0]}"
    assert lines[6] == "check  0     1     2     3     4"


def test_hosts_with_the_same_trouble_share_a_paragraph_and_keep_their_commands():
    found = [finding("sleep", host, WARN, SLEEP) for host in ("mac0", "mac1")]
    text = report.text(found, ["mac0", "mac1"])
    assert text.count("warn  mac0, mac1: sleep: it is off") == 1
    assert "fix, on mac0: sudo /usr/bin/pmset" in text
    assert "fix, on mac1: sudo /usr/bin/pmset" in text
    assert text.endswith("0 failed, 2 warned, 0 passed\n")


def test_json_holds_findings_fixes_and_facts(tmp_path):
    cluster = Macs(tmp_path, mesh(["studio-1", "studio-2"]))
    cluster["studio-1"].edit("pmset", " sleep                0", " sleep                10")
    looked = cluster.look()
    data = json.loads(report.as_json(checks.judge(looked), looked))
    assert data["ok"] is True
    assert data["backend"] == "jaccl"
    (warned,) = [item for item in data["findings"] if item["verdict"] == "warn"]
    assert warned["fix"]["offered"]
    assert warned["fix"]["over_ssh"] == "ssh studio-1 sudo /usr/bin/pmset -a sleep 0"
    assert data["facts"]["studio-2"]["macos"] == ["26.3", "25D125"]
    assert data["facts"]["studio-2"]["thunderbolt"][1]["interface"] == "en3"


class Shell:
    """Takes the place of subprocess.run."""

    def __init__(self, code: int = 0):
        self.calls, self.code = [], code

    def __call__(self, words, **how) -> subprocess.CompletedProcess:
        self.calls.append((words, how["stdin"]))
        return subprocess.CompletedProcess(words, self.code)


def test_only_what_can_be_taken_back_is_offered_and_each_command_once():
    stop = Fix("ends it", command="scripts/stop.sh", here=True, harmless=True)
    found = [
        finding("sleep", "mac0", WARN, SLEEP),
        finding("sleep", "mac1", WARN, SLEEP),
        finding("ranks", "mac0", FAIL, stop),
        finding("ranks", "mac1", FAIL, stop),
        finding("gpu", "mac0", FAIL, Fix("restart it", command="sudo shutdown -r now")),
        finding("ssh", "mac0", FAIL),
    ]
    assert [(f.check, f.host) for f in offered(found)] == [
        ("sleep", "mac0"),
        ("sleep", "mac1"),
        ("ranks", "mac0"),
    ]


def test_a_fix_is_done_after_a_yes_with_a_terminal_for_sudo(capsys):
    questions, shell = [], Shell()
    answers = iter(["y", "no"])
    found = [finding("sleep", host, WARN, SLEEP) for host in ("mac0", "mac1")]
    changed = ask_and_fix(
        found,
        Path("/checkout"),
        yes=False,
        ask=lambda words: questions.append(words) or next(answers),
        run=shell,
    )
    assert changed
    assert [words for words, _ in shell.calls] == [
        ["ssh", "-t", "-o", "ConnectTimeout=5", "mac0", "sudo /usr/bin/pmset -a sleep 0"]
    ]
    told = capsys.readouterr().err
    assert "undo: sudo pmset -a sleep 10" in told
    assert "it runs sudo on mac0" in told
    assert "left as it is" in told


def test_with_yes_sudo_never_waits_for_a_password(capsys):
    shell = Shell(code=1)
    fix = Fix("w", command="sudo a x && sudo a y", undo="sudo b")
    ask_and_fix([finding("bridge", "mac0", FAIL, fix)], Path("/"), yes=True, run=shell)
    ((words, stdin),) = shell.calls
    assert words[-2:] == ["mac0", "sudo -n a x && sudo -n a y"]
    assert stdin == subprocess.DEVNULL
    assert "it failed with exit code 1; do it by hand" in capsys.readouterr().err


def test_nothing_is_done_when_nobody_answers():
    def nobody(words):
        raise EOFError

    shell = Shell()
    found = [finding("sleep", "mac0", WARN, SLEEP)]
    assert not ask_and_fix(found, Path("/"), yes=False, ask=nobody, run=shell)
    assert shell.calls == []


def test_the_usual_value_is_rank_0s_when_there_are_as_many_of_another():
    assert most_common(["b", "a", "a", "b"]) == "b"
    assert most_common(["b", "a", "a"]) == "a"
    assert most_common([]) is None
    assert [listed(words) for words in ([], ["a"], ["a", "b", "c"])] == ["", "a", "a, b and c"]
