"""end_ranks.sh ends what is ours, and nothing else."""

import os
import shutil
import subprocess

import pytest

from tests.support.supervised import END_RANKS, start_rank


def run_end_ranks(*arguments) -> subprocess.CompletedProcess:
    command = ["bash", END_RANKS, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


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
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        [
            f"rank 0 (pid {process.pid}) did not leave within 3 s: SIGKILL",
            f"rank 0 (pid {process.pid}) killed after 3 s",
        ],
    )
    assert server.seen(0) == ["SIGTERM", "SIGTERM"]
    assert not list(server.run_dir.glob("rank-*.pid"))


PS = """#!/bin/sh
# ps, but that every process is in this state.
case " $* " in
  *" state= "*) echo "{state}" ;;
  *) exec {ps} "$@" ;;
esac
"""


@pytest.mark.parametrize(
    ("state", "is_stuck"), [("U", True), ("?Es", True), ("D", True), ("S+", False)]
)
def test_a_rank_that_is_stuck_in_the_kernel_is_told_from_a_slow_one(
    server, tmp_path, monkeypatch, state, is_stuck
):
    """No signal ends it: SIGKILL would be one more that waits; "cannot be ended" helped nobody."""
    stub = tmp_path / "bin" / "ps"
    stub.parent.mkdir()
    stub.write_text(PS.format(state=state, ps=shutil.which("ps")))
    stub.chmod(0o755)
    process = start_rank(server, 0, "--stubborn")
    monkeypatch.setenv("PATH", f"{stub.parent}:{os.environ['PATH']}")
    done = run_end_ranks(server.run_dir, 1)
    assert done.returncode == int(is_stuck)
    assert (process.poll() is None) == is_stuck
    if is_stuck:
        assert done.stdout == (
            f"rank 0 (pid {process.pid}) is stuck in the kernel (state {state}), where no signal "
            "ends it: restart this host, and if that does not come to an end, cut its power\n"
        )
        assert (server.run_dir / "rank-0.pid").exists()


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
