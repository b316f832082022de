"""A supervisor whose log or terminal takes nothing, and a log in parts."""

import os
import signal
from pathlib import Path

import pytest

from tests.support.launch_helpers import (
    command_of,
    wait_until,
)
from tests.support.supervised import finish


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is full, on Linux only")
def test_a_full_disk_for_the_log_does_not_stop_the_server(server):
    server.log = Path("/dev/full")
    supervisor = server.supervise()
    wait_until(server.health)
    server.order(0, "say('still here')")
    wait_until(lambda: "still here" in " ".join(server.seen(0)))
    supervisor.send_signal(signal.SIGTERM)
    code, out, _ = finish(supervisor)
    assert code == 0
    assert "cannot write /dev/full" in out
    assert "still here" in out


def test_lost_lines_are_counted_when_the_disk_has_space_again(tmp_path, monkeypatch, capfd):
    from scripts.lib.logs import run_log

    log = run_log.RunLog(tmp_path / "log")
    takes = iter([2, OSError(28, "No space left on device"), 10**6, 10**6])
    plain = os.write

    def write(fd, data):
        if fd != log._fd:
            return plain(fd, data)
        how = next(takes)
        if isinstance(how, OSError):
            raise how
        return plain(fd, data[:how])

    monkeypatch.setattr(run_log.os, "write", write)
    log.write([b"cut", b"lost", b"kept", b"more"])
    log.flush()
    monkeypatch.undo()
    assert (tmp_path / "log").read_text().splitlines() == [
        "cu",
        "(2 lines lost: the disk took none)",
        "kept",
        "more",
    ]
    assert "No space left on device; going on" in capfd.readouterr().out


def test_a_terminal_that_does_not_read_does_not_stop_the_server(server):
    """Ctrl-S, or a selection: the launcher would block, and the ranks miss their lease."""
    supervisor = server.supervise()  # Its stdout is a pipe that nobody reads for now.
    server.wait_ready()
    server.order(0, "[print('x' * 200) for i in range(5000)]; say('all said')")
    wait_until(lambda: "all said" in server.log_text())
    supervisor.send_signal(signal.SIGTERM)
    assert wait_until(lambda: "over: stopped as asked" in server.log_text())
    assert finish(supervisor)[0] == 0


FLOOD = "[print('x' * 200) for i in range(100_000)]; say('all said'); note('all said')"


def test_a_stopped_supervisor_holds_nobody_up(server):
    """Ctrl-Z: once the pipes were full the launcher waited, and with it every rank that logged."""
    supervisor = server.supervise()
    server.wait_ready()
    supervisor.send_signal(signal.SIGSTOP)
    server.order(0, FLOOD)
    wait_until(lambda: "all said" in server.seen(0))
    assert server.health()
    supervisor.send_signal(signal.SIGCONT)
    wait_until(lambda: "lines of the ranks dropped: nobody read them" in server.log_text())
    server.order(0, "say('heard again')")
    wait_until(lambda: "heard again" in server.log_text())
    supervisor.send_signal(signal.SIGTERM)
    assert finish(supervisor)[0] == 0
    assert not server.left()


def test_what_ended_the_ranks_is_kept_for_a_stopped_supervisor(server):
    supervisor = server.supervise()
    server.wait_ready()
    ranks = [server.pid(0), server.pid(1)]
    supervisor.send_signal(signal.SIGSTOP)
    server.order(1, f"{FLOOD}; leave(70)")
    wait_until(lambda: not any(map(command_of, ranks)))
    supervisor.send_signal(signal.SIGCONT)
    told = server.wait_ready(restarts=1)
    assert told["last_failure"].startswith("rank 1 on 127.0.0.1 exited with code 70")
    supervisor.send_signal(signal.SIGTERM)
    assert finish(supervisor)[0] == 0


def test_a_disk_that_hangs_in_a_write_holds_nobody_up(server):
    """A log on a network disk whose server is away: write does not return."""
    os.mkfifo(server.log)
    disk = os.open(server.log, os.O_RDWR)  # Somebody has it open, and nobody reads.
    try:
        supervisor = server.supervise()
        wait_until(server.health)
        server.order(0, FLOOD)
        wait_until(lambda: "all said" in server.seen(0))
        os.kill(server.pid(1), signal.SIGKILL)
        wait_until(lambda: server.health().get("restarts") == "1")  # Its loop goes on.
        supervisor.send_signal(signal.SIGTERM)
        code, out, _ = finish(supervisor)
        assert code == 0
        assert "over: stopped as asked" in out
    finally:
        os.close(disk)


def test_a_log_that_is_turned_loses_no_line_and_tells_each_rank(server):
    supervisor = server.supervise("--log-max-mb", "0.001")
    server.wait_ready()
    server.order(1, "[print(f'line {i}') for i in range(150)]; say('all said')")
    wait_until(lambda: "all said" in server.log_text())
    supervisor.send_signal(signal.SIGTERM)
    code, out, _ = finish(supervisor)
    assert code == 0
    parts = [server.log.with_name(f"server.log.{number}") for number in (4, 3, 2, 1)]
    kept = "".join(path.read_text() for path in [*parts, server.log] if path.exists())
    assert kept.count("supervisor: continued from server.log.1") > 1
    shown = [line for line in kept.splitlines(keepends=True) if "continued from" not in line]
    assert "".join(shown) == out
    assert [line for line in shown if " line " in line] == [
        f"[rank 1] line {number}\n" for number in range(150)
    ]


def test_a_start_that_fails_is_explained_although_the_log_was_turned(server):
    tell = "[print('x' * 100) for i in range(60)]; say('no memory'); leave(78)"
    options = ("--detach", "--log-max-mb", "0.01")
    code, _, err = finish(server.supervise(*options, ranks=("--at-start", tell)))
    assert code == 1
    assert server.log.with_name("server.log.1").exists()
    assert err.startswith("mlx_launch: cause: rank ")
    assert "  | no memory" in err


def test_a_wrong_size_for_the_log_is_a_usage_error(server):
    code, _, err = finish(server.supervise("--log-max-mb", "-1"))
    assert code == 2
    assert "--log-max-mb is -1.0; it must be MB from 0 to 1000000" in err
