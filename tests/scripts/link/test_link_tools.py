"""The checks of the link and its benchmark: what they measure, judge, refuse and leave behind."""

import json
import os
import subprocess
import sys
import time

import pytest

mx = pytest.importorskip("mlx.core")

from scripts.lib.link import bench_link, link_measure, link_ranks  # noqa: E402
from scripts.lib.link.link_measure import (  # noqa: E402
    Timing,
    WrongSum,
    check_sum,
    link_bytes,
    show_bytes,
    summarise,
)
from server.protocol.exit_codes import CONFIG, INTERNAL, NOT_JOINED  # noqa: E402
from tests.support.launch_helpers import command_of, wait_until  # noqa: E402
from tests.support.paths import ROOT  # noqa: E402
from tests.support.ports import free_port  # noqa: E402

LINK_CHECK = ROOT / "scripts" / "lib" / "link" / "link_check.sh"
BENCH_LINK = ROOT / "scripts" / "bench_link.sh"


def run(*command: object, env: dict | None = None, **settings: str) -> subprocess.CompletedProcess:
    settings = {"PYTHON": sys.executable, **settings}
    names = ("HOSTFILE", "BACKEND", "CLUSTER_PORT", "ENV_NAME", "MODEL_DIR")
    kept = {name: value for name, value in (env or os.environ).items() if name not in names}
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True, text=True, env=kept | settings, timeout=120,
    )  # fmt: skip


# -- joining


class Group:
    def rank(self) -> int:
        return 1

    def size(self) -> int:
        return 2


@pytest.fixture
def two_macs(tmp_path):
    matrix = tmp_path / "devices.json"
    matrix.write_text('[[null, "rdma_en2"], ["rdma_en2", null]]')
    return {"MLX_IBV_DEVICES": str(matrix), "MLX_RANK": "1", "RANK_HOSTS": "mac0,mac1"}


def test_a_check_waits_for_a_rank_that_is_late_too(monkeypatch, two_macs, capsys):
    """It ended with a wrong setting's code, 15 s after its start."""
    tries = []

    def init(**_):
        tries.append(1)
        if len(tries) < 3:
            raise RuntimeError("[jaccl] Couldn't connect (error: 61)")
        return Group()

    monkeypatch.setattr(mx.distributed, "init", init)
    monkeypatch.setattr(link_measure, "meet", lambda link, env, run_id, tell: tell("a pair", 2.0))
    where: list[str] = []
    assert link_measure.join(two_macs, 2, where.append).size == 2
    assert (len(tries), where) == (3, ["a pair"])
    assert capsys.readouterr().err.count("not all ranks are there yet") == 2


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        ("[jaccl] Could not find device rdma_en2 (0 available)", INTERNAL, "RDMA is off"),
        ("[jaccl] Could not find device rdma_en2 (3 available)", CONFIG, "hostfile"),
        ("[jaccl] Recv failed with errno=17", NOT_JOINED, "closed the connection"),
    ],
)
def test_why_a_check_could_not_join_is_told_with_its_code(
    monkeypatch, two_macs, capsys, error, code, words
):
    def init(**_):
        raise RuntimeError(error)

    monkeypatch.setattr(mx.distributed, "init", init)
    with pytest.raises(SystemExit) as ended:
        link_measure.join(two_macs, 2)
    said = capsys.readouterr().err
    assert ended.value.code == code
    assert f"ending with code {code}: " in said and error in said and words in said


# -- measuring and judging


class Sums:
    """A link whose all_sum is known: what `add` makes of this rank's values."""

    def __init__(self, size: int, rank: int, add) -> None:
        self.size, self.rank, self.sum = size, rank, add


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
@pytest.mark.parametrize("size", [1, 2, 8, 16])
def test_the_checked_sums_are_exact_in_every_type(dtype, size):
    def add(mine):
        base = mine.astype(mx.float32) - 1  # Rank 1's values are the pattern and 1.
        ranks = [(base + rank).astype(dtype) for rank in range(size)]
        total = ranks[0]
        for values in ranks[1:]:
            total = total + values
        return total

    check_sum(Sums(size, 1, add), 1000, dtype)


def test_a_wrong_sum_is_named_with_its_place_and_value():
    def add(mine):
        total = mine * 2 + 1
        total[5] = 77.0
        return total

    with pytest.raises(WrongSum, match="1 wrong, the first at 5: 77.0 instead of 11.0"):
        check_sum(Sums(2, 0, add), 10, mx.float32)


def test_median_and_95th_percentile():
    assert summarise([3.0, 1.0, 2.0]) == Timing(2.0, 3.0, 3)
    assert summarise([float(i) for i in range(1, 101)]) == Timing(50.5, 95.0, 100)


def test_bytes_on_a_link_of_a_mesh_and_of_a_ring():
    assert link_bytes(1000, 4, "jaccl") == 1000
    assert link_bytes(1000, 4, "ring") == link_bytes(1000, 4, "jaccl-ring") == 1500
    assert link_bytes(1000, 2, "jaccl") == link_bytes(1000, 2, "ring") == 1000


def test_bytes_are_shown_short():
    assert [show_bytes(count) for count in (8, 8192, 14336, 1.5 * 2**20, 2**32)] == [
        "8 B", "8 KB", "14 KB", "1.5 MB", "4096 MB",
    ]  # fmt: skip


def test_a_mesh_links_all_pairs_and_a_ring_neighbours():
    assert len(link_ranks.linked_pairs(4, "jaccl")) == 6
    assert link_ranks.linked_pairs(4, "ring") == [(0, 1), (0, 3), (1, 2), (2, 3)]
    assert link_ranks.linked_pairs(2, "jaccl-ring") == [(0, 1)]


@pytest.mark.parametrize(
    ("latency_s", "there", "back", "nominal", "verdict", "reason"),
    [
        (20e-6, 7.0, 6.5, 80.0, "pass", ""),
        (20e-6, 7.0, 4.0, 80.0, "warn", "4.00 GB/s, expected 6 or more"),
        (20e-6, 1.0, 7.0, 80.0, "fail", "1.00 GB/s, expected 6 or more"),
        (150e-6, 7.0, 7.0, 80.0, "warn", "150 us one way, expected 100 or less"),
        (400e-6, 7.0, 7.0, 80.0, "fail", "400 us one way, expected 100 or less"),
        (150e-6, 1.0, 7.0, 80.0, "fail", "GB/s, expected 6 or more; 150 us"),
        (400e-6, 0.5, 0.5, None, "info", ""),
    ],
)
def test_a_pair_is_held_against_its_links_rate(latency_s, there, back, nominal, verdict, reason):
    pair = link_ranks.judge((0, 1), latency_s, there, back, nominal)
    assert pair.verdict == verdict
    assert reason in pair.reason
    assert link_ranks.line_of(pair, ["a", "b"]).startswith(f"{verdict}  rank 0 (a) - rank 1 (b)  ")


def test_sizes_go_from_one_token_to_the_largest_message():
    assert bench_link.token_counts(8192, 64 * 2**20) == [1, 4, 16, 64, 256, 1024, 4096, 8192]
    assert bench_link.token_counts(2**20, 2**20) == [1]
    assert bench_link.token_counts(4 * 2**20, 2**20) == [1]  # A token is never cut.


def test_a_row_has_its_rates():
    row = bench_link.describe(4, 32768, Timing(10e-6, 12e-6, 5), 4, "jaccl-ring", 80.0)
    assert row["gb_per_s"] == pytest.approx(3.2768)
    assert row["link_gb_per_s"] == pytest.approx(4.9152)
    assert row["of_nominal"] == pytest.approx(0.49152)
    assert bench_link.describe(1, 8, Timing(1, 1, 5), 2, "ring", None)["of_nominal"] is None


# -- real ranks


@pytest.mark.ranks
def test_smoke_has_a_line_for_each_rank_and_json_last():
    done = run(LINK_CHECK, "smoke", "--local", "2", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, last = done.stdout.splitlines()
    assert [line[: len("pass  rank 0 (127.0.0.1)  joined 2 ranks")] for line in lines] == [
        f"pass  rank {rank} (127.0.0.1)  joined 2 ranks" for rank in (0, 1)
    ]
    assert json.loads(last)["backend"] == "ring"


@pytest.mark.ranks
def test_link_measures_each_pair_and_fails_below_the_rate():
    """Nothing reaches 90 Tb/s, so with it every pair must fail, and without it none can."""
    done = run(LINK_CHECK, "link", "--local", "3", "--json", "--nominal-gbps", "90000")
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(" - ")[0] for line in lines[:3]] == [
        f"fail  rank {rank} (127.0.0.1)" for rank in (0, 0, 1)
    ]
    found = json.loads(lines[-1])
    assert [pair["ranks"] for pair in found["pairs"]] == [[0, 1], [0, 2], [1, 2]]
    for pair in found["pairs"]:
        for name in ("latency_s", "there_gb_per_s", "back_gb_per_s"):
            assert pair[name] > 0
    assert found["all_sum_s"] > 0


@pytest.mark.ranks
def test_a_rank_that_never_comes_is_named_within_the_deadline_and_nothing_stays(tmp_path):
    """Joining has no time-out of its own: the others would wait for ever."""
    python = tmp_path / "python"
    python.write_text(
        "#!/usr/bin/env bash\n"
        'case "$2" in lib.link.link_ranks) echo $$ >"$PIDS/$MLX_RANK"\n'
        '  [ "$MLX_RANK" != 1 ] || exec sleep 600 ;; esac\n'
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    done = run(
        LINK_CHECK, "smoke", "--local", "2", "--deadline", "1",
        PYTHON=str(python), PIDS=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 1
    assert "fail  smoke over ring on 2 ranks: rank 1 (127.0.0.1) did not get as far" in done.stdout
    pids = [int((tmp_path / str(rank)).read_text()) for rank in (0, 1)]
    wait_until(lambda: not any(map(command_of, pids)))


@pytest.mark.ranks
def test_ending_the_check_ends_its_ranks(tmp_path):
    python = tmp_path / "python"
    python.write_text(
        "#!/usr/bin/env bash\n"
        f'case "$2" in lib.link.link_ranks) echo $$ >"{tmp_path}/$MLX_RANK"\n'
        "  exec sleep 600 ;; esac\n"
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    check = subprocess.Popen(
        [LINK_CHECK, "smoke", "--local", "2"],
        env={**os.environ, "PYTHON": str(python)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    wait_until(lambda: all((tmp_path / rank).exists() for rank in "01"))
    time.sleep(0.1)
    pids = [int((tmp_path / rank).read_text()) for rank in "01"]
    check.terminate()
    assert check.wait(60) == 143
    assert not any(map(command_of, pids))


@pytest.mark.ranks
def test_bench_link_prints_a_table_and_one_json_line_last(tmp_path):
    (tmp_path / "config.json").write_text('{"text_config": {"hidden_size": 512}}')
    done = run(
        BENCH_LINK, "--local", "2", "--", "--max-mb", "1", "--seconds", "0.02",
        "--nominal-gbps", "8", MODEL_DIR=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == ("all_sum over 2 ranks, ring, 8 Gb/s nominal; a token is 512 float32")
    found = json.loads(lines[-1])
    assert [row["tokens"] for row in found["rows"]] == [1, 4, 16, 64, 256, 512]
    assert found["rows"][-1]["bytes"] == 2**20
    for row in found["rows"]:
        assert 0 < row["median_s"] <= row["p95_s"]
        assert row["of_nominal"] == pytest.approx(row["link_gb_per_s"])
    table = [line.split() for line in lines[3:-2]]
    assert [row[0] for row in table] == ["1", "4", "16", "64", "256", "512"]
    assert all(row[-1].endswith("%") for row in table)


@pytest.mark.ranks
def test_a_hostfile_and_a_smoke_over_ssh_and_with_a_node_that_is_gone(nodes, tmp_path):
    """Through ssh -tt a rank's stderr comes with its stdout, so words must tell results apart."""
    nodes.need_terminals()

    def smoke() -> subprocess.CompletedProcess:
        return run(
            LINK_CHECK, "smoke", env=nodes.env, HOSTFILE=str(hostfile),
            CLUSTER_PORT=str(free_port(4)),
        )  # fmt: skip

    hostfile = tmp_path / "ring.json"
    for name in ("node-1", "node-2"):
        nodes[name].stub("uname", "echo Linux")  # Whatever this machine is.
        nodes[name].stub("hostname", "echo 127.0.0.1 ::1")
    made = run(
        ROOT / "scripts" / "make_hostfile.sh", "--ring-tcp", "--output", hostfile,
        "node-1", "node-2", env=nodes.env,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    done = smoke()
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split("  ")[:2] for line in done.stdout.splitlines()] == [
        ["pass", "rank 0 (node-1)"],
        ["pass", "rank 1 (node-2)"],
    ]
    nodes.write_hostfile(hostfile, ("node-1", "node-gone"))
    done = smoke()
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    assert "rank 1 (node-gone) did not get as far as joining; rank 1 on node-gone exited" in line
    assert "Connection refused" in done.stderr


# -- what is refused


def test_one_rank_has_no_link():
    for command in ([BENCH_LINK], [LINK_CHECK, "link"]):
        done = run(*command, "--local", "1")
        assert done.returncode == 2
        assert "one rank has no link" in done.stderr
    alone = run(sys.executable, ROOT / "scripts" / "bench_link.py")
    assert alone.returncode == 78
    assert "1 ranks: start from 2 to 16" in alone.stderr


def test_a_world_of_another_size_is_refused(monkeypatch, capsys):
    """mx.distributed.init() makes a world of one when a backend cannot start."""
    for name in ("MLX_HOSTFILE", "MLX_IBV_DEVICES", "JACCL_IBV_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit) as ended:
        link_measure.join(os.environ, 2)
    assert ended.value.code == 78
    assert "2 ranks were started, but the launcher's files are for 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--hidden", "0"], "--hidden '0': must be a whole number from 1 to"),
        (["--hidden", "x"], "--hidden 'x': must be a whole number from 1 to"),
        (["--max-mb", "5000"], "--max-mb '5000': must be a whole number from 1 to 4096"),
        (["--nominal-gbps", "nan"], "--nominal-gbps 'nan': must be a number from 0.001 to"),
        (["--dtype", "int4"], "--dtype 'int4': must be one of bfloat16, float16, float32"),
        (["--model", "/nowhere"], "--model '/nowhere': /nowhere/config.json: No such file"),
    ],
)
def test_wrong_arguments_of_the_benchmark_are_named(arguments, told, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_link.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        bench_link.parse_arguments()
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "told"),
    [("{", "is not JSON"), ("[]", "has no hidden_size"), ('{"hidden_size": "x"}', "has no hidden")],
)
def test_a_model_that_does_not_tell_its_size_is_named(tmp_path, text, told, monkeypatch, capsys):
    (tmp_path / "config.json").write_text(text)
    monkeypatch.setattr(sys, "argv", ["bench_link.py", "--model", str(tmp_path)])
    with pytest.raises(SystemExit):
        bench_link.parse_arguments()
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "'': must be smoke or link"),
        (["smok"], "'smok': must be smoke or link"),
        (["smoke", "--deadline", "0"], "--deadline '0': must be whole seconds"),
        (["link", "--nominal-gbps", "fast"], "--nominal-gbps 'fast': must be Gb/s"),
        (["smoke", "--local", "99"], "--local '99': must be a number of ranks"),
        (["smoke", "--all"], "unknown argument '--all'"),
    ],
)
def test_wrong_arguments_of_the_check_are_named(arguments, told):
    done = run(LINK_CHECK, *arguments)
    assert done.returncode == 2
    assert told in done.stderr


# -- the end of a rank that waits


def end_after(body: str, stdin: bytes | None = None) -> subprocess.CompletedProcess:
    """A process with a deadline of 0.2 s that then runs this."""
    program = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from scripts.lib.link import link_measure\n"
        "link_measure.NATIVE_GRACE_S = 0.3\n" + body
    )
    return subprocess.run(
        [sys.executable, "-c", program, ROOT],
        input=stdin, stdin=None if stdin is not None else subprocess.DEVNULL,
        capture_output=True, timeout=240,
    )  # fmt: skip


def test_a_rank_that_waits_too_long_says_what_for():
    done = end_after("link_measure.end_by(0.2, ['joining', 'summing']); time.sleep(60)")
    assert done.returncode == 75
    assert done.stderr == b"ending with code 75: not done after 0.2 s, while summing\n"


def test_a_rank_ends_even_while_native_code_holds_the_interpreter():
    done = end_after(
        "import re; link_measure.end_by(0.2, ['joining'])\nre.match('(a*)*b', 'a' * 64)"
    )
    assert done.returncode == -14  # SIGALRM


def test_a_rank_leaves_with_its_launcher():
    done = end_after("link_measure.end_by(30, ['joining']); time.sleep(60)", stdin=b"\n")
    assert done.returncode == 69
    assert b"the launcher is gone" in done.stderr
