"""What is sent to a host, what runs there, and how its answer is read back."""

import ast
import shutil
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.lib.doctor import checks, probe
from scripts.lib.doctor.ask import (
    TRIAL_PORTS,
    Question,
    Raw,
    expected_connections,
    make_job,
    make_question,
    own_addresses,
    read_answer,
)
from scripts.lib.doctor.facts import read_facts
from scripts.lib.hosts.on_hosts import Answer
from tests.support.machines import Macs
from tests.support.ports import free_port
from tests.support.wiring import Wiring, mesh

DOCTOR = Path(probe.__file__).parent
FALLBACKS = (b"/opt/homebrew/bin/python3", b"/usr/local/bin/python3", b"/usr/bin/python3")


@pytest.fixture
def cluster(tmp_path):
    return Macs(tmp_path, mesh(["studio-1", "studio-2"]))


def run_there(question: Question, place: int = 0) -> Answer:
    """As sshd would: a POSIX shell that reads the question on its stdin."""
    done = subprocess.run(
        ["/bin/sh", "-s", str(place)], input=question.stdin, capture_output=True, timeout=240
    )
    return Answer("studio-1", done.returncode, done.stdout.decode(), done.stderr.decode(), 0.1)


def local_question(cluster: Macs, *needed: str, python: str = sys.executable) -> Question:
    cluster.change(python=python, checkout=str(cluster["studio-1"].root))
    return make_question(cluster.plan, set(needed))


def test_the_probe_runs_on_the_python_of_old_macs():
    """macOS's own /usr/bin/python3 is 3.9; and it gets none of our modules along."""
    tree = ast.parse((DOCTOR / "probe.py").read_text(), feature_version=(3, 9))
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    assert imported <= set(sys.stdlib_module_names)
    assert not any(isinstance(node, ast.ImportFrom) for node in ast.walk(tree))


def test_the_first_stage_is_plain_posix_shell():
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([shellcheck, DOCTOR / "find_python.sh"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_host_answers_through_its_shell_with_the_wanted_python(cluster):
    question = local_question(cluster, "disk", "environment", "versions")
    raw = read_answer(run_there(question), question)
    assert (raw.trouble, raw.noise, raw.errors) == ("", "", "")
    assert raw.python == sys.executable
    facts = read_facts(raw)
    assert facts.disk_free > 0
    assert facts.python == ".".join(map(str, sys.version_info[:3]))
    assert facts.binary == str(Path(sys.executable).resolve())


def test_an_invented_mac_answers_the_same_through_a_shell_as_in_the_other_tests(cluster):
    needed = checks.needed(cluster.plan) - {"listen", "connect", "addresses", "environment"}
    expected = cluster.look().facts["studio-2"]
    cluster["studio-2"].build()
    root = str(cluster["studio-2"].root)
    question = make_question(cluster.plan, needed, root=root, system="Darwin")
    # The stub of its Python cannot run the probe.
    stdin = question.stdin.replace(FALLBACKS[1], sys.executable.encode())
    question = replace(question, stdin=stdin)
    answer = replace(run_there(question, place=1), host="studio-2")
    facts = read_facts(read_answer(answer, question))
    unlike = {"environment": expected.environment, "disk_free": expected.disk_free}
    assert replace(facts, **unlike) == expected


def test_without_the_wanted_python_another_one_runs_the_probe_and_says_so(cluster):
    question = local_question(cluster, "disk", "versions", python="/none/bin/python")
    other = sys.executable.encode()
    question = replace(question, stdin=question.stdin.replace(FALLBACKS[1], other))
    facts = read_facts(read_answer(run_there(question), question))
    assert facts.disk_free > 0
    assert facts.python is None
    assert facts.why("versions") == "there is no versions"


def test_without_any_python_the_tools_still_answer(cluster, tmp_path):
    """A tool that is missing, one that fails and one that hangs do not silence the others."""
    tool = tmp_path / "tool"
    tool.write_text(
        "#!/bin/sh\ncase $1 in status) echo disabled ;; -g) sleep 30 ;; /models/*) "
        'echo "ls: $1: Operation not permitted" >&2; exit 1 ;; *) exit 3 ;; esac\n'
    )
    tool.chmod(0o755)
    question = local_question(cluster, "rdma_ctl", "pmset", "vm_stat", "sw_vers", "disk", "ls")
    stdin = question.stdin.replace(b"-Darwin)", b"-*)").replace(b"WITHIN_S=48", b"WITHIN_S=1")
    for path in FALLBACKS:
        stdin = stdin.replace(path, b"/none")
    for name in (b"rdma_ctl", b"pmset"):
        stdin = stdin.replace(b"/usr/bin/" + name, bytes(tool))
    stdin = stdin.replace(f"WANTED={sys.executable}".encode(), b"WANTED=/none")
    for path in (b"/usr/bin/vm_stat", b"/bin/ls"):
        stdin = stdin.replace(path, bytes(tool))
    raw = read_answer(run_there(replace(question, stdin=stdin)), question)
    facts = read_facts(raw)
    assert facts.reached and not facts.tasks_ran
    assert facts.rdma == "disabled"
    assert facts.unread == {"model": "Operation not permitted"}
    assert facts.why("pmset") == "pmset did not answer in time"
    assert facts.why("vm_stat") == "vm_stat failed: exit code 3"
    assert facts.why("sw_vers") == "there is no sw_vers"
    found = {f.check: f for f in checks.judge(replace(cluster.look(), facts={"studio-1": facts}))}
    assert found["python"].verdict == "fail"
    assert "nor any other Python" in found["python"].found
    assert (found["ranks"].verdict, found["disk"].verdict) == ("skip", "skip")


def test_what_a_profile_prints_is_told_from_the_answer():
    question = Question(b"", "<<<doctor 1", "doctor 1>>>")
    body = '{"system": "Linux", "python": "p", "commands": {}, "tasks": {}}'
    text = f"Welcome!\n\n<<<doctor 1\n{body}\ndoctor 1>>>\nBye\n"
    raw = read_answer(Answer("a", 0, text, "", 0.1), question)
    assert (raw.noise, raw.trouble, raw.system) == ("Welcome!\nBye", "", "Linux")
    broken = read_answer(Answer("a", None, "Hi\n\n<<<doctor 1\n{", "", 7.2), question)
    assert (broken.noise, broken.trouble) == ("Hi", "no answer within 7 s")
    garbled = read_answer(Answer("a", 0, "<<<doctor 1\n{\ndoctor 1>>>", "", 0.1), question)
    assert garbled.trouble.startswith("its answer is garbled")
    dead = read_answer(Answer("a", 127, "", "sh: not found\n", 0.1), question)
    assert dead.trouble == "the probe ended without an answer: sh: not found"


@pytest.mark.parametrize("garbage", ["", "\0\x1b\udcff", "[]", "null", "{}", "a: b\n" * 99, "}{"])
def test_a_tool_that_prints_something_else_ends_nothing(cluster, garbage):
    for mac in cluster:
        mac.build()
    job = make_job(cluster.plan, checks.needed(cluster.plan) - {"listen", "connect", "addresses"})
    answer = probe.collect(job | {"root": str(cluster["studio-1"].root), "system": "Darwin"}, 0)
    looked = cluster.look()
    for name in answer["commands"]:
        said = {"state": "done", "code": 0, "out": garbage, "err": ""}
        changed = {**answer["commands"], name: said}
        raw = Raw("studio-1", "", "", "", "Darwin", "p", changed, answer["tasks"])
        facts = {**looked.facts, "studio-1": read_facts(raw)}
        assert checks.judge(replace(looked, facts=facts))


# The way over TCP.


def test_with_jaccl_everybody_tries_rank_0_and_in_a_ring_the_next(tmp_path):
    names = ["a", "b", "c"]
    jaccl = Macs(tmp_path / "1", mesh(names)).plan
    assert expected_connections(jaccl) == [("b", "a", "192.0.2.10"), ("c", "a", "192.0.2.10")]
    assert [own_addresses(jaccl, name) for name in names] == [["192.0.2.10"], [], []]
    ring = Macs(tmp_path / "2", Wiring(names), "ring").plan
    assert expected_connections(ring) == [
        ("a", "b", "192.0.2.11"),
        ("b", "c", "192.0.2.12"),
        ("c", "a", "192.0.2.10"),
    ]
    assert own_addresses(ring, "c") == ["192.0.2.12"]
    assert expected_connections(replace(ring, asked=("a", "c"))) == [("c", "a", "192.0.2.10")]


def test_nobody_connects_to_the_ports_where_ranks_meet(cluster):
    for _ in range(20):
        job = make_job(cluster.plan, checks.needed(cluster.plan))
        tried = {target["port"] for host in job["hosts"] for target in host["connect"]}
        assert tried and tried <= set(range(TRIAL_PORTS.start, TRIAL_PORTS.stop + 100))
        assert not tried & {32323, 8080}


def trial(port: int, path_s: float = 5.0, expected: int = 1) -> tuple[dict, dict]:
    target = {"to": "a", "address": "127.0.0.1", "port": port}
    host = {"host": "b", "listen": {"port": port, "expected": expected}, "connect": [target]}
    return {"path_s": path_s, "nonce": "n" * 32}, host


def test_a_listener_that_comes_late_is_reached():
    job, host = trial(free_port())
    heard = {}
    thread = threading.Timer(0.3, lambda: heard.update(probe.listen(job, host)))
    thread.start()
    assert probe.connect(job, host)[0]["error"] == ""
    thread.join()
    assert heard == {"came": ["b"], "error": ""}


def test_a_port_where_nobody_or_somebody_else_answers_is_told_by_name():
    job, host = trial(free_port(), path_s=0.3)
    assert probe.connect(job, host)[0]["error"].startswith("ECONNREFUSED")
    with socket.create_server(("127.0.0.1", 0)) as server:
        job, host = trial(server.getsockname()[1], path_s=0.3)
        server.settimeout(5)

        def answer():
            peer, _ = server.accept()
            peer.recv(256)
            peer.sendall(b"SSH-2.0\r\n")
            peer.close()

        thread = threading.Thread(target=answer)
        thread.start()
        assert probe.connect(job, host)[0]["error"] == "something else answers there"
        thread.join()
        # The port is taken, and the listener says so.
        job, host = trial(server.getsockname()[1], path_s=0.3)
        if sys.platform == "linux":
            assert probe.listen(job, host)["error"].startswith("EADDRINUSE")


def test_addresses_that_are_not_the_hosts_are_named():
    results = probe.try_addresses({}, {"bind": ["127.0.0.1", "192.0.2.1"]})
    assert results["127.0.0.1"] == ""
    assert results["192.0.2.1"].startswith("EADDRNOTAVAIL")


def test_a_listener_is_found_with_its_process(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = probe.look_for_listeners({"root": ""}, {"ports": [port]})
    if sys.platform == "linux":
        assert found[0]["pid"] and "python" in found[0]["command"]
    assert probe.look_for_listeners({"root": ""}, {"ports": [free_port()]}) == []
