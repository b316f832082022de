"""A supervisor whose ranks are on other hosts, which may be away."""

import os
import signal
import time

import pytest

from scripts.lib.supervise.clean_hosts import end_ranks_everywhere
from tests.support.launch_helpers import (
    command_of,
    cpu_seconds,
    wait_until,
)
from tests.support.nodes import loopback_sshd
from tests.support.supervised import finish, start_rank


def test_ranks_are_ended_on_every_host(server, tmp_path, monkeypatch):
    process = start_rank(server, 1)
    (server.run_dir / "hosts").write_text("node-gone\nnode-a\nnode-a\n")
    said = []
    with loopback_sshd(tmp_path / "ssh") as env:
        monkeypatch.setenv("PATH", env["PATH"])
        cleaned = end_ranks_everywhere(server.run_dir, 5, said.append)
    assert process.wait(60) == 0
    assert f"node-a: rank 1 (pid {process.pid}) ended" in said
    assert "node-gone: cannot be reached to look for left ranks" in said
    assert not cleaned.no_rank_left
    assert cleaned.away[0].startswith("node-gone (ssh: ")
    assert len(cleaned.away) == 1


def test_a_remote_rank_is_replaced_too(server, tmp_path):
    with loopback_sshd(tmp_path / "ssh", banner="Welcome!") as env:
        hosts = ("127.0.0.1", "node-a")
        (server.run_dir / "hosts").write_text("\n".join(hosts))
        launcher = server.launcher_command("--port", str(server.port), "--lease", "60", hosts=hosts)
        supervisor = server.supervise(launcher=launcher, env=env)
        server.wait_ready()
        before = server.pid(1)
        os.kill(server.launcher_pid(), signal.SIGKILL)
        server.wait_ready(restarts=1)
        assert not command_of(before)
        supervisor.send_signal(signal.SIGTERM)
        assert finish(supervisor)[0] == 0
        wait_until(lambda: not server.left())


# Every look for hosts that are away is noted, and the next comes soon.
LOOKS = """
supervisor.AWAY_PAUSE_S = supervisor.AWAY_LONGEST_PAUSE_S = 0.1
plain = supervisor.find_away
def find_away(run_dir):
    away = plain(run_dir)
    with open(run_dir / "looked", "a") as file:
        file.write(f"{len(away)}\\n")
    return away
supervisor.find_away = find_away
"""


@pytest.fixture
def far(server, nodes):
    """A server with its second rank on node-2, that was ready. (server, node, supervisor)"""
    nodes.need_terminals()
    hosts = ("127.0.0.1", "node-2")
    (server.run_dir / "hosts").write_text("\n".join(hosts))
    command = server.launcher_command("--port", str(server.port), "--lease", "60", hosts=hosts)
    supervisor = server.supervise(launcher=command, env=nodes.env, tweak=LOOKS)
    server.wait_ready()
    yield server, nodes["node-2"], supervisor
    server.close()


def test_a_host_that_is_away_is_waited_for_without_limit(far):
    """A switch that rebooted for a minute used up the five failures, and the service was over."""
    server, node, supervisor = far
    looked = server.run_dir / "looked"
    node.down()
    wait_until(lambda: looked.exists() and looked.read_text().count("1\n") > 10)
    assert "no answer from node-2 (ssh: " in server.log_text()
    assert server.log_text().count("started launcher") <= 2  # It may have been tried once.
    node.up()
    told = server.wait_ready(restarts=int(server.log_text().count(": starting again ")))
    assert "exited with code 255" in told["last_failure"]
    assert "all hosts answer again" in server.log_text()
    supervisor.send_signal(signal.SIGTERM)
    assert finish(supervisor)[0] == 0
    wait_until(lambda: not server.left())


def test_asked_to_stop_while_a_host_is_away_it_stops(far):
    server, node, supervisor = far
    node.down()
    wait_until(lambda: ": starting again when all hosts answer" in server.log_text())
    supervisor.send_signal(signal.SIGTERM)
    code, out, _ = finish(supervisor)
    assert code == 1  # What runs on node-2 nobody knows.
    assert "over: stopped as asked" in out
    assert "some ranks may be left" in out
    assert out.count("started launcher") == 1


def test_an_idle_supervisor_sleeps(server):
    supervisor = server.supervise()
    server.wait_ready()
    before = cpu_seconds(supervisor.pid)
    time.sleep(3)
    assert cpu_seconds(supervisor.pid) - before < 0.09  # 3% of a core.
    supervisor.send_signal(signal.SIGTERM)
    assert finish(supervisor)[0] == 0


def test_stub_processes_are_found_by_their_run_id(server):
    """The other tests' `nothing is left` would be worth nothing otherwise."""
    process = start_rank(server, 0)
    assert server.left() == [process.pid]
