"""The supervisor: what it starts again and what not, and that nothing is ever left. No model."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.lib.supervise.clean_hosts import end_ranks_everywhere
from scripts.lib.supervise.restart_policy import HEALTHY_S, Ending, Row, judge
from server.protocol.exit_codes import GARBLED, NOT_JOINED, PEER_LOST, explain
from tests.support.launch_helpers import (
    LIB,
    MODULE,
    StubRanks,
    command_of,
    cpu_seconds,
    wait_until,
)
from tests.support.nodes import loopback_sshd
from tests.support.paths import ROOT

END_RANKS = str(LIB / "supervise" / "end_ranks.sh")


class Server(StubRanks):
    """Stub ranks under a supervisor."""

    def supervise(self, *options: str, ranks=("--lease", "60"), tweak="", launcher=None, **popen):
        """Start supervise.py; `tweak` is Python that changes its modules first."""
        program = [*MODULE, "lib.supervise.supervise"]
        if tweak:
            imports = "from scripts.lib.supervise import restart_policy, supervise, supervisor"
            program = ["-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{imports}\n{tweak}\n"
                       "sys.exit(supervise.main())"]  # fmt: skip
        command = [
            sys.executable, *program,
            "--run-dir", str(self.run_dir), "--run-id", self.run_id, "--log", str(self.log),
            "--health-url", f"http://127.0.0.1:{self.port}/health", *options, "--",
            *(launcher or self.launcher_command("--port", str(self.port), *ranks)),
        ]  # fmt: skip
        return self.start(command, **popen)

    def wait_ready(self, restarts: int = 0) -> dict:
        """Wait until 2 ranks are up after so many restarts, and the supervisor has noticed."""

        def ready() -> dict | None:
            told = self.health()
            noted = self.log_text().count("supervisor: ready") > restarts
            return told if noted and told.get("restarts") == str(restarts) else None

        told = wait_until(ready, f"the server to be ready after {restarts} restarts")
        self.pid(1)  # Rank 1 may be slower, and takes no signal before it has its record.
        return told

    def log_text(self) -> str:
        return self.log.read_text() if self.log.is_file() else ""

    def launcher_pid(self) -> int:
        return int(self.log_text().rpartition("started launcher ")[2].split()[0])


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    yield server
    server.close()


def finish(supervisor: subprocess.Popen) -> tuple[int, str, str]:
    out, err = supervisor.communicate(timeout=60)
    return supervisor.returncode, out.decode(), err.decode()


# -- the policy


def judge_one(code=70, served_s=None, row=(0, 0), asked=False, first=False, away=(), **settings):
    settings = {"may_restart": True, "max_failures": 5} | settings
    return judge(Ending(code, served_s, asked, first, away), Row(*row), **settings)


def test_a_server_that_was_ready_is_started_again():
    verdict = judge_one(served_s=1.0, first=True)
    assert (verdict.start_again, verdict.row, verdict.pause_s) == (True, Row(1, 0), 1)


@pytest.mark.parametrize("code", [1, 70, 75, 78, 137, 255])
def test_a_first_start_that_never_got_ready_is_not_tried_again(code):
    verdict = judge_one(code=code, first=True)
    assert (verdict.start_again, verdict.exit_code) == (False, 78 if code == 78 else 1)


@pytest.mark.parametrize("code", [NOT_JOINED, PEER_LOST, GARBLED])
def test_a_first_start_that_the_network_ended_is_tried_again(code):
    verdict = judge_one(code=code, first=True)
    assert (verdict.start_again, verdict.row, verdict.pause_s) == (True, Row(1, 1), 1)
    assert not judge_one(code=code, first=True, row=(4, 4)).start_again
    assert not judge_one(code=code, first=True, may_restart=False).start_again


def test_a_later_start_that_never_got_ready_is_one_more_failure():
    verdict = judge_one(row=(3, 2))
    assert (verdict.start_again, verdict.row) == (True, Row(4, 3))


def test_pauses_double_up_to_thirty_seconds():
    pauses = [judge_one(served_s=1.0, row=(n, 0)).pause_s for n in range(8)]
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]


def test_starts_in_a_row_that_never_got_ready_are_capped():
    assert judge_one(row=(3, 3)).start_again
    verdict = judge_one(row=(4, 4))
    assert (verdict.start_again, verdict.exit_code) == (False, 1)
    assert "5 failed starts in a row" in verdict.reason


def test_one_that_got_ready_can_start_and_is_never_given_up():
    """Five failures in a minute ended the service for good, although each start had served."""
    row = Row(3, 3)
    for _ in range(100):
        verdict = judge_one(served_s=0.1, row=(row.failures, row.unready))
        row = verdict.row
        assert verdict.start_again
    assert row == Row(103, 0)
    assert judge_one(row=(103, 0)).row == Row(104, 1)


def test_five_minutes_of_service_make_the_pauses_short_again():
    assert judge_one(row=(9, 0), served_s=HEALTHY_S).pause_s == 1
    assert judge_one(row=(9, 0), served_s=HEALTHY_S - 1).pause_s == 30


@pytest.mark.parametrize("served_s", [None, 1.0])
def test_while_a_host_is_away_nothing_counts(served_s):
    verdict = judge_one(code=255, served_s=served_s, row=(4, 4), away=("mac2 (no route)",))
    assert (verdict.start_again, verdict.row) == (True, Row(4, 4))
    assert verdict.reason == "no answer from mac2 (no route)"


@pytest.mark.parametrize("how", [{"first": True}, {"may_restart": False}])
def test_where_nothing_is_tried_again_the_host_that_is_away_is_named(how):
    verdict = judge_one(code=255, away=("mac2 (no route)",), **how)
    assert (verdict.start_again, verdict.exit_code) == (False, 1)
    assert verdict.reason.endswith("; no answer from mac2 (no route)")


@pytest.mark.parametrize(
    ("how", "exit_code"),
    [
        ({"code": 78}, 78),
        ({"code": 78, "away": ("mac2",)}, 78),
        ({"code": 0}, 0),
        ({"may_restart": False}, 1),
        ({"asked": True}, 0),
        ({"asked": True, "code": -9}, 0),
    ],
)
def test_what_is_never_started_again(how, exit_code):
    verdict = judge_one(**how)
    assert (verdict.start_again, verdict.exit_code) == (False, exit_code)


# -- in the foreground


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


def test_a_first_start_that_fails_is_not_tried_again(server):
    supervisor = server.supervise(ranks=("--at-start", "say('no memory'); leave(70)"))
    code, out, _ = finish(supervisor)
    assert code == 1
    assert "the server did not start" in out.splitlines()[-1]
    assert out.count("started launcher") == 1
    assert "  | no memory" in out


JOINS_LATE = "os.environ['SUPERVISOR_RESTARTS'] == '0' and leave(68)"


@pytest.mark.parametrize("code", [NOT_JOINED, PEER_LOST, GARBLED])
def test_a_first_start_that_is_cut_short_by_the_network_is_tried_again(server, code):
    """A stranger who called while they joined cost 15 minutes, and the start."""
    at_start = JOINS_LATE.replace("68", str(code))
    supervisor = server.supervise(ranks=("--lease", "60", "--at-start", at_start))
    told = wait_until(lambda: server.health().get("restarts") == "1" and server.health())
    assert explain(code) in told["last_failure"]
    supervisor.send_signal(signal.SIGTERM)
    assert finish(supervisor)[0] == 0


def test_another_failure_of_the_same_first_start_is_final(server):
    """Nothing was ever ready: that the ranks had not joined before makes no difference."""
    supervisor = server.supervise(ranks=("--at-start", f"{JOINS_LATE}; leave(70)"))
    code, out, _ = finish(supervisor)
    assert (code, out.count("started launcher")) == (1, 2)
    assert "the server did not start" in out.splitlines()[-1]


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


# -- logs and terminals that fail


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


# -- in the background


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
        stays = "time.sleep(3); leave(70)"
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


# -- end_ranks.sh


def start_rank(stubs: StubRanks, rank: int, *options: str) -> subprocess.Popen:
    process = stubs.start(stubs.rank_command(*options), env={**os.environ, "MLX_RANK": str(rank)})
    stubs.pid(rank)
    return process


def run_end_ranks(*arguments) -> subprocess.CompletedProcess:
    command = ["bash", END_RANKS, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_end_ranks_ends_ours_and_says_so(server):
    pids = [start_rank(server, rank).pid for rank in (0, 1)]
    done = run_end_ranks(server.run_dir)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        f"rank {rank} (pid {pid}) ended" for rank, pid in enumerate(pids)
    ]
    assert not server.left()
    assert not list(server.run_dir.glob("rank-*.pid"))


def test_end_ranks_kills_what_does_not_leave(server):
    process = start_rank(server, 0, "--stubborn")
    done = run_end_ranks(server.run_dir, 1)
    assert (done.returncode, done.stdout) == (0, f"rank 0 (pid {process.pid}) killed after 3 s\n")
    assert server.seen(0) == ["SIGTERM", "SIGTERM"]
    assert not list(server.run_dir.glob("rank-*.pid"))


def test_end_ranks_leaves_a_reused_pid_alone(server):
    """The pid of a rank that crashed may by now belong to the user's editor."""
    stranger = server.start(["sleep", "600"])
    record = server.run_dir / "rank-0.pid"
    record.write_text(f"{stranger.pid}\n{server.run_id}\n")
    done = run_end_ranks(server.run_dir)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert stranger.poll() is None
    assert not record.exists()


@pytest.mark.parametrize(
    "record", ["", "12x\nid\n", "1\nid\n", "0\nid\n", "-1\nid\n", "\n\n", "77\n*\n", "7"]
)
def test_end_ranks_survives_a_broken_record(server, record):
    (server.run_dir / "rank-0.pid").write_text(record)
    done = run_end_ranks(server.run_dir)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [((), 2), (("--wrong",), 2), (("x", "5s"), 2), (("x", "1", "2"), 2), (("--help",), 0),
     (("/nowhere",), 0)],
)  # fmt: skip
def test_end_ranks_usage(arguments, code):
    done = run_end_ranks(*arguments)
    assert done.returncode == code
    assert bool(done.stderr) == (code == 2)


# -- other hosts


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


# -- a log in parts


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
