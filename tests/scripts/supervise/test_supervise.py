"""The supervisor: what it starts again and what not, and that nothing is ever left. No model."""

import os
import signal
import sys

import pytest

from server.protocol.exit_codes import CONFIG, GARBLED, INTERNAL, NOT_JOINED, PEER_LOST, explain
from tests.support.launch_helpers import (
    command_of,
    wait_until,
)
from tests.support.supervised import finish


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_drains_and_leaves_nothing(server, signum):
    supervisor = server.supervise()
    server.wait_ready()
    assert (server.run_dir / "supervisor.pid").read_text() == (
        f"{supervisor.pid}\n{server.run_id}\n"
    )
    supervisor.send_signal(signum)
    code, out, err = finish(supervisor)
    assert (code, err) == (0, "")
    assert "draining; again to end at once" in out
    assert "rank 0 is up" in out
    assert out == server.log_text()
    assert server.seen(0)[-1] == server.seen(1)[-1] == "SIGTERM"
    assert not (server.run_dir / "supervisor.pid").exists()
    assert not server.left()


def test_ctrl_c_in_a_terminal_reaches_the_supervisor_alone(server):
    """The terminal signals every process of its group: ranks would drain twice, that is, not."""
    supervisor = server.supervise(start_new_session=True)
    server.wait_ready()
    os.killpg(supervisor.pid, signal.SIGINT)
    assert finish(supervisor)[0] == 0
    assert server.seen(0)[-2:] == ["lease", "SIGTERM"]


def test_second_signal_ends_at_once(server):
    supervisor = server.supervise(ranks=("--stubborn",), env={**os.environ, "DRAIN_TIMEOUT": "99"})
    server.wait_ready()
    for count in (1, 2):
        supervisor.send_signal(signal.SIGTERM)
        wait_until(lambda n=count: server.seen(0).count("SIGTERM") == n)
    code, out, _ = finish(supervisor)
    assert code == 0
    assert "ending at once" in out
    assert not server.left()


def test_a_rank_that_dies_is_replaced_with_all_the_others(server):
    supervisor = server.supervise()
    server.wait_ready()
    before = {server.pid(0), server.pid(1)}
    os.kill(server.pid(1), signal.SIGKILL)
    told = server.wait_ready(restarts=1)
    assert before.isdisjoint({server.pid(0), server.pid(1)})
    assert not any(command_of(pid) for pid in before)
    failure = "rank 1 on 127.0.0.1 exited with code 137 (ended by SIGKILL)"
    assert told["last_failure"].startswith(failure)
    assert f"failed: {failure}" in server.log_text()
    supervisor.send_signal(signal.SIGTERM)
    assert finish(supervisor)[0] == 0
    assert not server.left()


def test_a_killed_launcher_is_replaced_and_its_ranks_are_ended(server):
    """These ranks know no lease: end_ranks.sh has to find them by their records."""
    supervisor = server.supervise(ranks=())
    server.wait_ready()
    before = [server.pid(0), server.pid(1)]
    os.kill(server.launcher_pid(), signal.SIGKILL)
    told = server.wait_ready(restarts=1)
    assert told["last_failure"].startswith("the launcher ended with code 137 (ended by SIGKILL)")
    assert not any(command_of(pid) for pid in before)
    assert f"127.0.0.1: rank 0 (pid {before[0]}) ended" in server.log_text()
    supervisor.send_signal(signal.SIGTERM)
    assert finish(supervisor)[0] == 0
    assert not server.left()


def test_a_killed_supervisor_takes_everything_with_it(server):
    supervisor = server.supervise(ranks=())
    server.wait_ready()
    supervisor.kill()
    server.wait_for_none()
    assert server.seen(0) == server.seen(1) == ["SIGTERM"]


def test_a_new_supervisor_ends_what_a_killed_one_left(server):
    supervisor = server.supervise(ranks=())
    server.wait_ready()
    before = [server.pid(0), server.pid(1)]
    launcher = server.launcher_pid()
    os.kill(launcher, signal.SIGSTOP)  # Or it would see to its ranks itself.
    supervisor.kill()
    supervisor.wait()
    os.kill(launcher, signal.SIGKILL)
    again = server.supervise()
    wait_until(lambda: server.log_text().count("supervisor: ready") == 2)
    assert f"127.0.0.1: rank 1 (pid {before[1]}) ended" in server.log_text()
    assert not any(command_of(pid) for pid in before)
    again.send_signal(signal.SIGTERM)
    assert finish(again)[0] == 0


def test_code_78_is_never_started_again(server):
    supervisor = server.supervise()
    server.wait_ready()
    server.pid(1)
    server.order(1, "leave(78)")
    code, out, _ = finish(supervisor)
    assert code == 78
    assert "starting again cannot help" in out.splitlines()[-1]
    assert "rank 1 on 127.0.0.1 exited with code 78" in out.splitlines()[-1]
    assert not server.left()


def test_no_restart_ends_with_the_reason(server):
    supervisor = server.supervise("--no-restart")
    server.wait_ready()
    server.order(0, "leave(75)")
    code, out, _ = finish(supervisor)
    assert code == 1
    assert "restarts are off; the last: rank 0" in out.splitlines()[-1]
    assert not server.left()


def test_ranks_that_end_as_planned_end_the_supervisor(server):
    supervisor = server.supervise()
    server.wait_ready()
    server.order(0, "leave(0)")
    server.order(1, "leave(0)")
    code, out, _ = finish(supervisor)
    assert code == 0
    assert "the ranks ended as planned" in out


def test_a_first_start_that_cannot_even_begin_is_not_tried_again(server):
    supervisor = server.supervise(ranks=("--at-start", "say('no pydantic'); leave(1)"))
    code, out, _ = finish(supervisor)
    assert code == 1
    assert "the server did not start" in out.splitlines()[-1]
    assert out.count("started launcher") == 1
    assert "  | no pydantic" in out


JOINS_LATE = "os.environ['SUPERVISOR_RESTARTS'] == '0' and leave(68)"


@pytest.mark.parametrize("code", [NOT_JOINED, PEER_LOST, GARBLED, INTERNAL])
def test_a_first_start_that_fails_is_tried_again(server, code):
    """A stranger who called while they joined cost 15 minutes, and the start."""
    at_start = JOINS_LATE.replace("68", str(code))
    supervisor = server.supervise(ranks=("--lease", "60", "--at-start", at_start))
    told = wait_until(lambda: server.health().get("restarts") == "1" and server.health())
    assert explain(code) in told["last_failure"]
    supervisor.send_signal(signal.SIGTERM)
    assert finish(supervisor)[0] == 0


def test_a_wrong_setting_ends_it_whatever_was_before(server):
    supervisor = server.supervise(ranks=("--at-start", f"{JOINS_LATE}; leave(78)"))
    code, out, _ = finish(supervisor)
    assert (code, out.count("started launcher")) == (CONFIG, 2)
    assert "starting again cannot help" in out.splitlines()[-1]


@pytest.mark.parametrize("own", [INTERNAL, CONFIG])
@pytest.mark.parametrize("rank", [0, 1])
def test_the_rank_with_the_fault_is_named_and_not_the_one_that_missed_it(server, rank, own):
    """Rank 0 had no device, and rank 1, which lost its connection to it, was blamed."""
    joins = f"leave(68) if RANK != {rank} else (time.sleep(1), leave({own}))"
    code, out, _ = finish(server.supervise("--no-restart", ranks=("--at-start", joins)))
    assert code == (CONFIG if own == CONFIG else 1)
    assert f"; the last: rank {rank} on 127.0.0.1" in out.splitlines()[-1]


def test_a_link_that_garbles_every_start_comes_to_an_end(server):
    supervisor = server.supervise("--max-failures", "2", ranks=("--at-start", "leave(76)"))
    code, out, _ = finish(supervisor)
    assert (code, out.count("started launcher")) == (1, 2)
    assert "2 failed starts in a row; the last: rank" in out.splitlines()[-1]
    assert not server.left()


def test_failed_starts_in_a_row_come_to_an_end(server):
    """Ready once; then each start dies before it is."""
    dies = "(RUN := ARGS.run_dir / f'again-{RANK}').exists() and leave(70); RUN.touch()"
    supervisor = server.supervise("--max-failures", "2", ranks=("--at-start", dies))
    server.wait_ready()
    server.order(1, "leave(70)")
    code, out, _ = finish(supervisor)
    assert code == 1
    assert out.count("started launcher") == 3
    assert "2 failed starts in a row; the last: rank" in out.splitlines()[-1]
    assert not server.left()


@pytest.mark.thorough
def test_one_that_gets_ready_each_time_is_not_given_up(server):
    tweak = """
import dataclasses
plain = supervisor.judge
supervisor.judge = lambda *a, **k: dataclasses.replace(plain(*a, **k), pause_s=0.0)
"""
    supervisor = server.supervise("--max-failures", "2", tweak=tweak)
    for restarts in range(4):
        server.wait_ready(restarts)
        server.order(1, "leave(70)")
    server.wait_ready(4)
    supervisor.send_signal(signal.SIGTERM)
    assert finish(supervisor)[0] == 0
    assert not server.left()


def test_one_that_ends_as_soon_as_it_is_ready_was_ready(server):
    """The supervisor asks every half second only; but rank 0 says when it serves."""
    tweak = "from scripts.lib.supervise import wait_ready; wait_ready.ASK_EVERY_S = 1000"
    supervisor = server.supervise(tweak=tweak)
    server.pid(0), server.pid(1)
    wait_until(server.health)
    server.order(0, "say('2026-01-01 00:00:00,000 [rank 0] INFO ready: tiny on 2 ranks')")
    server.wait_ready()
    supervisor.send_signal(signal.SIGTERM)
    assert finish(supervisor)[0] == 0


def test_asked_to_stop_during_the_pause_it_does_not_start_again(server):
    tweak = """
import dataclasses
plain = supervisor.judge
supervisor.judge = lambda *a, **k: dataclasses.replace(plain(*a, **k), pause_s=60.0)
"""
    supervisor = server.supervise(tweak=tweak)
    server.wait_ready()
    server.order(0, "leave(70)")
    wait_until(lambda: "starting again in 60 s" in server.log_text())
    supervisor.send_signal(signal.SIGTERM)
    code, out, _ = finish(supervisor)
    assert code == 0
    assert out.count("started launcher") == 1


def test_a_launcher_that_does_not_end_is_killed_and_cleaned_up_after(server, tmp_path):
    stuck = tmp_path / "stuck.py"
    stuck.write_text(
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "subprocess.Popen(sys.argv[1:], env={'MLX_RANK': '0'}, start_new_session=True)\n"
        "time.sleep(600)\n"
    )
    launcher = [sys.executable, str(stuck), *server.rank_command("--port", str(server.port))]
    supervisor = server.supervise(
        tweak="supervisor.STUCK_AFTER_S = 0.5",
        launcher=launcher,
        env={**os.environ, "DRAIN_TIMEOUT": "0"},
    )
    wait_until(lambda: "supervisor: ready" in server.log_text())
    supervisor.send_signal(signal.SIGTERM)
    code, out, _ = finish(supervisor)
    assert "the launcher does not end: SIGKILL" in out
    assert code == 0
    assert not server.left()


def test_a_run_folder_that_takes_nothing_is_named_at_the_start(server):
    server.run_dir = server.run_dir / "file" / "run"
    server.run_dir.parent.write_text("")
    code, out, err = finish(server.supervise(launcher=["true"]))
    assert (code, out) == (1, "")
    assert err == f"supervise: cannot write {server.run_dir}: Not a directory\n"


def test_only_one_supervisor_at_a_time(server):
    first = server.supervise()
    server.wait_ready()
    second = server.supervise()
    code, _, err = finish(second)
    assert code == 1
    assert f"already running (pid {first.pid})" in err
    assert server.health()
    first.send_signal(signal.SIGTERM)
    assert finish(first)[0] == 0


def test_a_second_start_leaves_the_records_of_the_first_alone(server):
    """It had overwritten hosts, drain_timeout and started_with when the lock stopped it."""
    mine = ("--host", "127.0.0.1", "--started-with", "MODEL_ID=mine", "--started-with", "URL=u")
    first = server.supervise(*mine, env=os.environ | {"DRAIN_TIMEOUT": "2.5"})
    server.wait_ready()
    names = ("hosts", "started_with", "drain_timeout", "supervisor.pid")
    records = {name: (server.run_dir / name).read_text() for name in names}
    assert records["hosts"] == "127.0.0.1\n" and records["drain_timeout"] == "2.5\n"
    assert records["started_with"] == "MODEL_ID=mine\nURL=u\n"
    theirs = ("--host", "elsewhere", "--started-with", "MODEL_ID=other", "--keys-to", "elsewhere")
    log = server.log_text()
    for how in ((), ("--detach",)):
        code, _, err = finish(server.supervise(*how, *theirs))
        assert (code, err) == (1, f"supervise: already running (pid {first.pid})\n")
    assert {name: (server.run_dir / name).read_text() for name in names} == records
    assert "already running" not in server.log_text().removeprefix(log)
    first.send_signal(signal.SIGTERM)
    assert finish(first)[0] == 0


def stub_ssh(tmp_path, body: str) -> dict[str, str]:
    """An environment in which ssh is this shell script; it finds the command in $command."""
    program = tmp_path / "stubs" / "ssh"
    program.parent.mkdir()
    program.write_text(
        "#!/usr/bin/env bash\nset -e\nfor word; do command=$word; done\n"
        f'echo "$*" >>"{tmp_path}/ssh-calls"\n{body}\n'
    )
    program.chmod(0o755)
    return os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}"}


def test_keys_travel_on_stdin_into_a_private_file_and_no_further(server, tmp_path):
    environment = stub_ssh(tmp_path, 'exec bash -c "$command"') | {"API_KEY": "sk-one,sk-two"}
    show = "say('key: ' + os.environ.get('API_KEY', 'none'))"
    supervisor = server.supervise(
        "--keys-to", "mac0", ranks=("--lease", "60", "--at-start", show), env=environment
    )
    server.wait_ready()
    file = server.run_dir / "api_key"
    assert file.read_text() == "sk-one\nsk-two\n" and file.stat().st_mode & 0o777 == 0o600
    assert "mac0 umask 077" in (tmp_path / "ssh-calls").read_text()
    assert "sk-one" not in (tmp_path / "ssh-calls").read_text()
    assert "key: none" in server.log_text() and "sk-" not in server.log_text()
    supervisor.send_signal(signal.SIGTERM)
    assert finish(supervisor)[0] == 0


@pytest.mark.parametrize("how", [(), ("--detach",)])
def test_keys_that_cannot_be_brought_end_the_start(server, tmp_path, how):
    environment = stub_ssh(tmp_path, "echo 'no route to host' >&2; exit 255") | {"API_KEY": "sk"}
    code, _, err = finish(server.supervise(*how, "--keys-to", "mac0", env=environment))
    assert code == 1
    assert "the API keys could not be brought to mac0 (rank 0): no route to host" in err
    assert "started launcher" not in server.log_text()
    assert not (server.run_dir / "supervisor.pid").exists()


def test_ranks_on_hosts_of_the_last_run_are_ended_before_they_are_forgotten(server, tmp_path):
    (server.run_dir / "hosts").write_text("mac7\nmac8\n127.0.0.1\n")
    environment = stub_ssh(tmp_path, "exit 0")
    supervisor = server.supervise("--host", "127.0.0.1", "--host", "mac8", env=environment)
    wait_until(lambda: "started launcher" in server.log_text())
    calls = (tmp_path / "ssh-calls").read_text().splitlines()
    assert ["mac7" in line for line in calls] == [True, False]
    assert all(f"end_ranks.sh {server.run_dir}" in line for line in calls)
    assert (server.run_dir / "hosts").read_text() == "127.0.0.1\nmac8\n"
    supervisor.send_signal(signal.SIGTERM)
    finish(supervisor)
