"""The mended mlx.launch: exit codes, sleep, whole lines, nobody left behind. No model."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from tests.support.launch_helpers import (
    PATIENCE_S,
    StubRanks,
    command_of,
    cpu_seconds,
    wait_until,
)
from tests.support.nodes import loopback_sshd
from tests.support.paths import ROOT

# Waits of seconds that a test need not sit through.
QUICK = """
launch_ranks.GRACE_S = 0.5
launch_ranks.STRAGGLE_S = 0.5
launch_ranks.DRAIN_EXTRA_S = 0.5
"""


@pytest.fixture
def stubs(tmp_path):
    stubs = StubRanks(tmp_path)
    yield stubs
    stubs.close()


def finish(launcher: subprocess.Popen) -> tuple[int, str, str]:
    out, err = launcher.communicate(timeout=240)
    return launcher.returncode, out.decode(), err.decode()


# -- exit codes


@pytest.mark.parametrize("code", [1, 70, 75, 78])
def test_exit_code_of_the_failed_rank_is_passed_on(stubs, code):
    """mlx.launch returns 0 even when ranks fail."""
    launcher = stubs.launch()
    stubs.pid(0), stubs.pid(1)
    stubs.order(1, f"say('no good'); leave({code})")
    status, _, err = finish(launcher)
    assert status == code
    assert f"rank 1 on 127.0.0.1 exited with code {code}" in err
    assert "  | no good" in err
    assert not stubs.left()


def test_a_limit_on_native_code_is_told_as_a_failure_to_join(stubs):
    """faulthandler knows no exit code but 1; its own words are all there is to know it by."""
    # Below more frames than the launcher keeps lines: an import deep in a package has as many.
    deep = "deep = lambda n: deep(n - 1) if n else time.sleep(60)"
    limit = f"{deep}; globals().update(deep=deep); import faulthandler, threading; "
    limit += "[threading.Thread(target=deep, args=(90,), daemon=True).start() for _ in range(3)]; "
    limit += "faulthandler.dump_traceback_later(0.5, exit=True); time.sleep(60)"
    launcher = stubs.launch("--at-start", f"RANK or time.sleep(60)\n{limit}")
    status, _, err = finish(launcher)
    assert status == 68
    assert (
        "cause: rank 1 on 127.0.0.1 exited with code 68 (the ranks did not join): "
        "the other ranks did not join it within JOIN_TIMEOUT"
    ) in err


def test_ports_that_nobody_chose_are_the_launchers_until_it_ends(stubs):
    command = stubs.launcher_command("--at-start", "say(open(os.environ['MLX_HOSTFILE']).read())")
    command[command.index("--starting-port") + 1] = "auto"
    launcher = stubs.start(command)
    places = json.loads(launcher.stdout.readline())
    stubs.pid(0), stubs.pid(1)
    ports = [int(place.rpartition(":")[2]) for (place,) in places]
    assert ports[1] == ports[0] + 1
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", ports[0] - 1))
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(60) == 0
    with socket.socket() as other:
        other.bind(("127.0.0.1", ports[0] - 1))


def test_code_zero_only_when_all_ranks_end_with_zero(stubs):
    launcher = stubs.launch("--at-start", "leave(0)")
    status, _, err = finish(launcher)
    assert (status, err) == (0, "")


def test_a_full_disk_is_named_with_the_failure_that_it_brings(stubs):
    """MLX's launcher goes on without the hostfile that it could not write for the rank."""
    words = "/bin/bash: line 1: echo: write error: No space left on device"
    tell = f"print({words!r}, file=sys.stderr); say('no hostfile'); leave(70)"
    _, _, err = finish(stubs.launch("--at-start", tell))
    (cause,) = [line for line in err.splitlines() if line.startswith("mlx_launch: cause: ")]
    assert cause.endswith(f": its output has: {words}")


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        (
            "libc++abi: terminating due to uncaught exception of type std::runtime_error: [METAL] "
            "Command buffer execution failed: Impacting Interactivity (0000000e:"
            "kIOGPUCommandBufferCallbackErrorImpactingInteractivity)",
            "in favour of that Mac's display: have the display turn off",
        ),
        (
            "RuntimeError: [METAL] Command buffer execution failed: Caused GPU Timeout Error "
            "(00000002:kIOGPUCommandBufferCallbackErrorTimeout)",
            "work on the GPU took too long",
        ),
        (
            "PermissionError: [Errno 1] Operation not permitted: '/Users/a/Documents/c/x.py'",
            "macOS keeps Documents",
        ),
        ("bash: line 1: cd: /Volumes/Big 1/c: Operation not permitted", "--check folders"),
    ],
)
def test_what_macos_said_last_is_put_in_words_with_what_helps(stubs, words, meaning):
    """A rank that dies of it has no word of its own."""
    stubs_say = f"print({words!r}, file=sys.stderr, flush=True); os.abort()"
    _, _, err = finish(stubs.launch("--at-start", stubs_say))
    (cause,) = [line for line in err.splitlines() if line.startswith("mlx_launch: cause: ")]
    assert "(ended by SIGABRT): " in cause and meaning in cause


def test_an_operation_that_is_not_permitted_elsewhere_is_not_put_down_to_folders(stubs):
    stubs_say = "print('kill: (1) Operation not permitted', file=sys.stderr); leave(70)"
    _, _, err = finish(stubs.launch("--at-start", stubs_say))
    (cause,) = [line for line in err.splitlines() if line.startswith("mlx_launch: cause: ")]
    assert "folders" not in cause


def test_a_rank_killed_by_a_signal_is_named_with_it(stubs):
    launcher = stubs.launch()
    stubs.pid(0)
    os.kill(stubs.pid(1), signal.SIGKILL)
    status, _, err = finish(launcher)
    assert status == 128 + signal.SIGKILL
    assert "rank 1 on 127.0.0.1 exited with code 137 (ended by SIGKILL)" in err


def test_a_rank_that_lost_a_peer_is_not_blamed_when_another_fails_after_it(stubs):
    """A rank's sockets close before its process ends, so its peers may be faster to leave."""
    launcher = stubs.launch()
    stubs.pid(0), stubs.pid(1)
    stubs.order(0, "leave(69)")
    stubs.order(1, "time.sleep(0.5); leave(78)")
    status, _, err = finish(launcher)
    assert status == 78
    assert "cause: rank 1 on" in err


def test_a_lost_peer_in_a_collective_ends_every_rank(stubs, tmp_path):
    """With the real ring backend: rank 1 dies, rank 0 stands in an all_sum."""
    program = tmp_path / "collective.py"
    program.write_text(
        "import os, mlx.core as mx\n"
        f"# {stubs.run_id}\n"
        "group = mx.distributed.init(strict=True, backend='ring')\n"
        "mx.eval(mx.distributed.all_sum(mx.ones(4)))\n"
        "print('met', flush=True)\n"
        "if group.rank() == 1: os.kill(os.getpid(), 9)\n"
        "mx.eval(mx.distributed.all_sum(mx.ones(4)))\n"
    )
    command = stubs.launcher_command()
    command[command.index("--") + 1 :] = [sys.executable, str(program)]
    status, out, err = finish(stubs.start(command))
    assert out.splitlines() == ["met", "met"]
    assert status == 128 + signal.SIGKILL, err


def test_wrong_usage_is_reported_as_mlx_launch_does(stubs):
    command = stubs.launcher_command()
    status, _, err = finish(stubs.start([*command[:3], "--hostfile", "/nowhere.json", "x"]))
    assert status == 2
    assert "/nowhere.json" in err


# -- output


def test_lines_of_ranks_never_mix(stubs):
    """mlx.launch passes on whatever one read returned, so lines were cut into one another."""
    pieces = (
        "import os, sys, time\n"
        "for i in range(40):\n"
        "    for piece in ('<', RANK * 1111 if RANK else 2222, i, '>\\n'):\n"
        "        sys.stdout.write(str(piece)); sys.stdout.flush(); time.sleep(0.001)\n"
        "leave(0)"
    )
    status, out, _ = finish(stubs.launch("--at-start", pieces))
    assert status == 0
    expected = [f"<{name}{i}>" for name in ("1111", "2222") for i in range(40)]
    assert sorted(out.splitlines()) == sorted(expected)


def test_output_up_to_the_last_byte_before_the_exit_is_kept(stubs):
    last = "sys.stdout.write('x' * 99 + '\\n'); " * 3
    many = f"[sys.stdout.write('%06d' % i + 'y' * 60 + chr(10)) for i in range(20000)]; {last}"
    rest = "sys.stderr.write('unfinished'); sys.stderr.flush(); leave(0)"
    status, out, err = finish(stubs.launch("--at-start", many + rest, ranks=1))
    assert status == 0
    assert len(out.splitlines()) == 20003
    assert err == "unfinished\n"


def test_a_line_without_end_does_not_fill_the_memory():
    from scripts.lib.launch.rank_process import LINE_LIMIT, LineCutter

    cutter = LineCutter()
    cut = [line for _ in range(5) for line in cutter.feed(b"z" * (LINE_LIMIT // 2))]
    assert sum(map(len, cut + cutter.finish())) == LINE_LIMIT // 2 * 5
    assert cut


def test_stdout_that_nobody_reads_any_more_stops_nothing(stubs):
    launcher = stubs.launch()
    stubs.pid(0), stubs.pid(1)
    launcher.stdout.close()
    stubs.order(0, "say('into the void'); say('again')")
    wait_until(lambda: stubs.seen(0))
    stubs.order(1, "leave(75)")
    assert launcher.wait(60) == 75


# -- cost


def test_idle_launcher_sleeps(stubs):
    """mlx.launch selects on pipes that are always writable: one core, for ever."""
    launcher = stubs.launch()
    stubs.pid(0), stubs.pid(1)
    before = cpu_seconds(launcher.pid)
    time.sleep(4)
    assert cpu_seconds(launcher.pid) - before < 0.12  # 3% of a core.


# -- signals


def test_sigterm_drains_every_rank_and_leaves_nobody(stubs):
    """mlx.launch dies of SIGTERM and leaves its local ranks running."""
    launcher = stubs.launch()
    stubs.pid(0), stubs.pid(1)
    launcher.send_signal(signal.SIGTERM)
    status, _, _ = finish(launcher)
    assert status == 0
    assert stubs.seen(0) == stubs.seen(1) == ["SIGTERM"]
    assert not stubs.left()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP])
def test_other_signals_drain_too(stubs, signum):
    launcher = stubs.launch()
    stubs.pid(0), stubs.pid(1)
    launcher.send_signal(signum)
    assert finish(launcher)[0] == 0
    assert stubs.seen(0) == stubs.seen(1) == ["SIGTERM"]


def test_second_signal_is_passed_on_and_then_ranks_are_killed(stubs):
    launcher = stubs.launch("--stubborn", tweak=QUICK)
    stubs.pid(0), stubs.pid(1)
    for count in (1, 2):
        launcher.send_signal(signal.SIGTERM)
        wait_until(lambda n=count: len(stubs.seen(0)) == len(stubs.seen(1)) == n)
    status, _, err = finish(launcher)
    assert status == 128 + signal.SIGTERM
    assert "did not leave when asked: SIGKILL" in err
    assert not stubs.left()


def test_over_jaccl_a_rank_has_its_time_before_it_is_killed(stubs):
    """SIGKILL of a process that has RDMA open can cost the Mac its power."""
    launcher = stubs.launch("--stubborn", tweak=QUICK, env={"RANK_END_TIMEOUT": "3"})
    stubs.pid(0)
    stubs.order(1, "leave(70)")
    _, err = launcher.communicate(timeout=PATIENCE_S)
    assert b"rank 0 on 127.0.0.1 did not leave when asked within 3 s: SIGKILL" in err
    assert stubs.seen(0).count("SIGTERM") == 2


@pytest.mark.parametrize(
    ("backend", "given", "seconds"),
    [("jaccl", "", "60"), ("jaccl-ring", "", "60"), ("jaccl", "90", "90"), ("ring", "", "")],
)
def test_every_launch_over_jaccl_is_patient(backend, given, seconds):
    code = """
. "$1/scripts/lib/common.sh"; . "$1/scripts/lib/cluster_env.sh"
BACKEND=$2 LOCAL=2 PY=python LAUNCH_SETTINGS='' RANK_END_TIMEOUT=$3
launcher_command; sh -c 'printf %s "${RANK_END_TIMEOUT-}"'
"""
    done = subprocess.run(
        ["bash", "-euc", code, "-", ROOT, backend, given], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, seconds), done.stderr


def test_first_signal_alone_ends_stubborn_ranks_after_the_drain_timeout(stubs):
    launcher = stubs.launch("--stubborn", tweak=QUICK, env={"DRAIN_TIMEOUT": "0.5"})
    stubs.pid(0), stubs.pid(1)
    launcher.send_signal(signal.SIGTERM)
    assert finish(launcher)[0] == 128 + signal.SIGTERM
    assert not stubs.left()


def test_peers_of_a_failed_rank_are_asked_twice_and_then_killed(stubs):
    launcher = stubs.launch("--stubborn", tweak=QUICK)
    stubs.pid(0), stubs.pid(1)
    stubs.order(0, "leave(70)")
    assert finish(launcher)[0] == 70
    assert stubs.seen(1) == ["SIGTERM", "SIGTERM"]
    assert not stubs.left()


def test_a_rank_that_leaves_with_zero_does_not_strand_the_rest(stubs):
    """mlx.launch ends the others only when one exits non-zero."""
    launcher = stubs.launch(tweak=QUICK)
    stubs.pid(0), stubs.pid(1)
    stubs.order(0, "leave(0)")
    status, _, err = finish(launcher)
    assert status == 0
    assert "rank 1 on 127.0.0.1 stays" in err
    assert stubs.seen(1) == ["SIGTERM"]


# -- leases


def test_ranks_get_a_newline_from_the_start(stubs):
    launcher = stubs.launch("--lease", "60")
    for rank in (0, 1):
        wait_until(lambda r=rank: "lease" in stubs.seen(r))
    launcher.send_signal(signal.SIGTERM)
    finish(launcher)


def test_ranks_leave_when_the_launcher_is_killed(stubs):
    launcher = stubs.launch("--lease", "60")
    for rank in (0, 1):
        wait_until(lambda r=rank: "lease" in stubs.seen(r))
    launcher.kill()
    stubs.wait_for_none()
    assert stubs.seen(0)[-1] == stubs.seen(1)[-1] == "stdin: end of file"


def test_the_others_are_told_who_failed_before_they_are_signalled(stubs):
    """A SIGTERM alone says "stop": clients read that the server was shutting down."""
    launcher = stubs.launch("--lease", "60")
    for rank in (0, 1):
        wait_until(lambda r=rank: "lease" in stubs.seen(r))
    stubs.order(1, "say('ending with code 70: no room'); leave(70)")
    launcher.communicate(timeout=PATIENCE_S)
    told = "told 70 rank 1 on 127.0.0.1 exited with code 70 (unexpected error): no room"
    seen = [line for line in stubs.seen(0) if line != "lease"]
    assert seen == [told, "SIGTERM"]


def test_a_rank_that_fails_while_all_are_asked_to_end_changes_nothing(stubs):
    """Clients would read that it restarts, and it was stopped."""
    launcher = stubs.launch("--lease", "60", "--stubborn", env={"DRAIN_TIMEOUT": "60"})
    for rank in (0, 1):
        wait_until(lambda r=rank: "lease" in stubs.seen(r))
    launcher.send_signal(signal.SIGTERM)
    wait_until(lambda: "SIGTERM" in stubs.seen(0))
    stubs.order(1, "leave(70)")
    stubs.order(0, "time.sleep(1); leave(0)")
    launcher.communicate(timeout=PATIENCE_S)
    assert not [line for line in stubs.seen(0) if line.startswith("told")]


def test_launcher_ends_the_ranks_when_its_lease_ends(stubs):
    launcher = stubs.launch(env={"MLX_LAUNCH_LEASE": "1"})
    stubs.pid(0), stubs.pid(1)
    launcher.stdin.close()
    assert launcher.wait(60) == 69
    assert b"the supervisor is gone" in launcher.stderr.read()
    assert not stubs.left()


def test_stdin_is_nobodys_lease_unless_it_is_said_so(stubs):
    launcher = stubs.launch()
    stubs.pid(0), stubs.pid(1)
    launcher.stdin.close()
    stubs.order(0, "note('still here')")
    wait_until(lambda: stubs.seen(0) == ["note('still here')", "still here"])
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(60) == 0


def test_what_the_supervisor_knows_reaches_the_ranks(stubs):
    show = "say(repr([os.environ.get(f'SUPERVISOR_{x}') for x in ('RESTARTS', 'LAST_FAILURE')]))"
    known = {"SUPERVISOR_RESTARTS": "3", "SUPERVISOR_LAST_FAILURE": 'rank 1\'s "disk" = $HOME'}
    launcher = stubs.launch("--at-start", f"{show}; leave(0)", ranks=1, env=known)
    status, out, _ = finish(launcher)
    assert (status, eval(out)) == (0, ["3", known["SUPERVISOR_LAST_FAILURE"]])


# -- when MLX changes


def test_installed_launcher_is_as_expected():
    from mlx._distributed_utils import launch

    from scripts.lib.launch import mlx_launch

    assert mlx_launch.find_differences(launch) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("del launch._launch_with_io", "_launch_with_io is missing"),
        ("launch.RemoteProcess = None", "RemoteProcess.make_launch_script is missing"),
        ("launch._launch_with_io = lambda ranks: 0", "_launch_with_io takes (ranks)"),
        ("launch.launch_ring = print", "launch_ring does not call _launch_with_io"),
    ],
)
def test_differences_are_named(change, told):
    from mlx._distributed_utils import launch

    from scripts.lib.launch import mlx_launch

    copy = types.ModuleType("copy")
    copy.__dict__.update(launch.__dict__)
    exec(change, {"launch": copy})
    assert told in mlx_launch.find_differences(copy)


CHANGED = """
from mlx._distributed_utils import launch
launch.RemoteProcess.make_launch_script = staticmethod(
    lambda rank, *rest, plain=launch.RemoteProcess.make_launch_script: plain(rank, *rest)
)
"""


def test_changed_launcher_is_run_as_it_is_and_says_so(stubs):
    launcher = stubs.launch("--at-start", "say('ran'); leave(0)", ranks=1, tweak=CHANGED)
    status, out, err = finish(launcher)
    assert status == 0
    assert "ran" in out
    assert "make_launch_script takes (rank, rest, plain)" in err
    assert "running it as it is" in err


def test_plain_launchers_success_under_supervision_is_not_believed(stubs):
    launcher = stubs.launch(
        "--at-start", "leave(75)", ranks=1, tweak=CHANGED, env={"MLX_LAUNCH_LEASE": "1"}
    )
    assert finish(launcher)[0] == 70


# -- through ssh


@pytest.fixture
def sshd(tmp_path):
    with loopback_sshd(tmp_path / "ssh", banner="Welcome!\nlast login today") as env:
        yield env


def test_remote_rank_is_known_behind_a_talkative_profile_and_drained(stubs, sshd):
    """mlx.launch takes the first bytes that a rank prints for its pid file."""
    launcher = stubs.launch(hosts=("127.0.0.1", "node-a"), env=sshd)
    stubs.pid(0), stubs.pid(1)
    launcher.send_signal(signal.SIGTERM)
    status, out, err = finish(launcher)
    assert status == 0, err
    assert stubs.seen(0) == stubs.seen(1) == ["SIGTERM"]
    assert "Welcome!\n" in out  # And without the terminal's \r.
    assert sorted(line for line in out.splitlines() if line.endswith("up")) == [
        "rank 0 is up",
        "rank 1 is up",
    ]


def test_exit_code_of_a_remote_rank_is_passed_on(stubs, sshd):
    launcher = stubs.launch(hosts=("127.0.0.1", "node-a"), env=sshd)
    stubs.pid(0), stubs.pid(1)
    stubs.order(1, "say('no good'); leave(78)")
    status, _, err = finish(launcher)
    assert status == 78
    assert "rank 1 on node-a exited with code 78" in err
    assert "  | no good" in err


def test_stubborn_remote_rank_is_killed_there(stubs, sshd):
    launcher = stubs.launch(
        "--stubborn", tweak=QUICK, hosts=("127.0.0.1", "node-a"), env=sshd | {"DRAIN_TIMEOUT": "1"}
    )
    pid = stubs.pid(1)
    launcher.send_signal(signal.SIGTERM)
    assert finish(launcher)[0] == 128 + signal.SIGTERM
    assert not command_of(pid)
    assert not stubs.left()


def test_killed_remote_rank_ends_the_local_one(stubs, sshd):
    launcher = stubs.launch(hosts=("127.0.0.1", "node-a"), env=sshd)
    stubs.pid(0)
    os.kill(stubs.pid(1), signal.SIGKILL)
    status, _, err = finish(launcher)
    assert status == 255
    assert "rank 1 on node-a exited with code 255 (ssh failed, or a signal ended the rank)" in err
    assert not stubs.left()


def test_remote_rank_leaves_when_the_launcher_is_killed(stubs, sshd):
    """ssh -tt passes the lease's newlines on, but not the end of file: time has to tell."""
    launcher = stubs.launch("--lease", "8", hosts=("127.0.0.1", "node-a"), env=sshd)
    wait_until(lambda: "lease" in stubs.seen(1))
    launcher.kill()
    stubs.wait_for_none()
    assert stubs.seen(1)[-1] == "lease ran out"


def test_remote_rank_learns_that_ssh_is_gone(stubs, sshd):
    launcher = stubs.launch("--lease", "60", hosts=("127.0.0.1", "node-a"), env=sshd)
    wait_until(lambda: "lease" in stubs.seen(1))
    children = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,comm="], capture_output=True, text=True
    ).stdout.splitlines()
    (ssh,) = [
        int(pid)
        for pid, parent, name in (line.split(None, 2) for line in children)
        if int(parent) == launcher.pid and name == "ssh"
    ]
    os.kill(ssh, signal.SIGKILL)
    assert finish(launcher)[0] == 137
    assert stubs.seen(1)[-1] in ("SIGHUP", "stdin: Input/output error", "stdin: end of file")
    assert not stubs.left()


def test_unreachable_host_is_named_with_the_reason(stubs, sshd):
    """With LogLevel=QUIET, as mlx.launch has it, ssh fails without a word."""
    launcher = stubs.launch(hosts=("127.0.0.1", "node-gone"), env=sshd)
    status, _, err = finish(launcher)
    assert status == 255
    assert "rank 1 on node-gone exited with code 255" in err
    assert "Connection refused" in err
    assert not stubs.left()


def test_rank_description_matches_what_mlx_would_have_run(monkeypatch, tmp_path):
    """The hostfile's environment and addresses go through MLX's own argument handling."""
    from mlx._distributed_utils import launch

    from scripts.lib.launch import mlx_launch

    hostfile = tmp_path / "hosts.json"
    hosts = [
        {"ssh": f"node-{i}", "ips": [f"10.0.0.{i}"], "rdma": [None, "r"][:: 1 - 2 * i]}
        for i in (0, 1)
    ]
    hostfile.write_text(json.dumps({"backend": "jaccl", "envs": ["A=1"], "hosts": hosts}))
    started = []

    class Recorder:
        def __init__(self, ranks, **settings):
            started.extend(ranks)

        def run(self):
            return 5

    monkeypatch.setattr(mlx_launch, "Launch", Recorder)
    for name in ("_launch_with_io", "main"):
        monkeypatch.setattr(launch, name, getattr(launch, name))  # Restored afterwards.
    monkeypatch.setattr(
        sys, "argv", ["x", "--hostfile", str(hostfile), "--env", "B=2", "--", "prog", "--env", "C"]
    )
    monkeypatch.setattr(os, "environ", {"SUPERVISOR_RESTARTS": "7", "PATH": os.environ["PATH"]})
    assert mlx_launch.main() == 5
    (index, host, script, command) = started[1]
    assert (index, host, command) == (1, "node-1", ["prog", "--env", "C"])
    for part in ("A=1", "B=2", "SUPERVISOR_RESTARTS=7", "MLX_JACCL_COORDINATOR=10.0.0.0:32323",
                 "MLX_RANK=1", '[[null, "r"], ["r", null]]'):  # fmt: skip
        assert part in script


def test_pid_file_is_found_on_macos_and_behind_a_prompt():
    from scripts.lib.launch.rank_process import _PIDFILE

    for line, found in [
        (b"/tmp/tmp.Zx81kQ0aBc", b"/tmp/tmp.Zx81kQ0aBc"),
        (b"/var/folders/6x/k3_9/T/tmp.Zx81kQ0aBc", b"/var/folders/6x/k3_9/T/tmp.Zx81kQ0aBc"),
        (b"\x1b]0;node\x07/tmp/tmp.Zx81kQ", b"/tmp/tmp.Zx81kQ"),
    ]:
        assert _PIDFILE.search(line).group(1) == found
    for line in (b"", b"Welcome to node-a", b"/usr/local/bin", b"tmp.Zx81kQ0aBc", b"/tmp/x.log"):
        assert not _PIDFILE.search(line)


def test_launcher_needs_no_terminal(stubs):
    """Run by a service manager: no terminal, stdin at /dev/null."""
    assert Path("/dev/null").exists()
    with open(os.devnull) as nothing:
        command = stubs.launcher_command("--at-start", "leave(0)")
        launcher = stubs.start(command, stdin=nothing, start_new_session=True)
        assert finish(launcher)[0] == 0
