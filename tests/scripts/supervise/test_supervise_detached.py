"""A supervisor in the background, and the script that waits for it."""

import os
import signal
import subprocess
import sys

from tests.support.launch_helpers import (
    MODULE,
    command_of,
)
from tests.support.supervised import Server, finish


def test_detach_returns_when_the_server_is_ready(server):
    code, out, err = finish(server.supervise("--detach"))
    assert (code, out) == (0, "")
    assert "ready after" in err
    assert server.health()["run_id"] == server.run_id
    pid = int((server.run_dir / "supervisor.pid").read_text().split()[0])
    assert f"--run-id {server.run_id}" in command_of(pid)
    os.kill(pid, signal.SIGTERM)
    server.wait_for_none()
    assert "over: stopped as asked" in server.log_text()


def test_detach_shows_why_the_server_did_not_start(server):
    server.log.write_text("mlx_launch: cause: a failure of last week\n  | old line\n")
    tell = "say(f'rank {RANK} finds no weights'); time.sleep(RANK * 60); leave(78)"
    code, _, err = finish(server.supervise("--detach", ranks=("--at-start", tell)))
    assert code == 1
    lines = err.splitlines()
    assert lines[0] == (
        "mlx_launch: cause: rank 0 on 127.0.0.1 exited with code 78 "
        "(wrong setting or model, or the ranks do not match)"
    )
    assert lines[1] == "  | rank 0 finds no weights"
    assert "starting again cannot help" in lines[2]
    assert str(server.log) in lines[3]
    assert not server.left()


def test_detach_shows_the_launchers_own_complaint(server):
    launcher = [sys.executable, "-c", "import sys; sys.exit('the hostfile is malformed')"]
    code, _, err = finish(server.supervise("--detach", launcher=launcher))
    assert code == 1
    assert "the hostfile is malformed" in err


def test_detach_beside_a_running_server_says_so(server):
    assert finish(server.supervise("--detach"))[0] == 0
    pid = (server.run_dir / "supervisor.pid").read_text().split()[0]
    ours, server.run_id = server.run_id, "another-run"
    code, _, err = finish(server.supervise("--detach"))
    server.run_id = ours
    assert code == 1
    assert f"already running (pid {pid})" in err
    os.kill(int(pid), signal.SIGTERM)
    server.wait_for_none()


def test_interrupting_the_wait_ends_the_server(server):
    waiter = server.supervise("--detach", ranks=("--at-start", "time.sleep(1000)"))
    server.pid(0), server.pid(1)
    waiter.send_signal(signal.SIGINT)
    assert finish(waiter)[0] == 1
    assert not server.left()


def test_another_server_on_the_port_is_not_taken_for_ours(server, tmp_path):
    (tmp_path / "other").mkdir()
    other = Server(tmp_path / "other")
    try:
        other.supervise()
        other.wait_ready()
        server.port = other.port
        stays = "time.sleep(3); leave(78)"
        code, _, err = finish(server.supervise("--detach", ranks=("--at-start", stays)))
        assert code == 1
        assert "ready after" not in err
    finally:
        other.close()


def test_help_is_the_header():
    command = [sys.executable, *MODULE, "lib.supervise.supervise", "--help"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "--max-failures N" in told
    assert "Exit codes:" in told
