"""Joining: who is among the ranks, what is tried again, and what is not. Links are invented."""

import json
import os
import re
import subprocess
import sys

import mlx.core as mx
import pytest

from server.main import _explain
from server.protocol.exit_codes import CONFIG, INTERNAL, NOT_JOINED
from server.startup import joining
from server.startup.handshake import Mismatch
from server.startup.joining import NotJoined, ToBeMended, join, prove_peers
from tests.support.paths import ROOT
from tests.support.ports import free_port


class Sums:
    """A link of `size` ranks, the other ones of which put `theirs` into the sum."""

    def __init__(self, rank: int, size: int, theirs=None, error: str = "") -> None:
        self.rank, self.size, self._theirs, self._error = rank, size, theirs, error

    def sum(self, values: mx.array) -> mx.array:
        if self._error:
            raise RuntimeError(self._error)
        return values + mx.array(self._theirs(values.tolist()), dtype=mx.int32)


def same_run(rank: int):
    """The others add the same word, each at its place."""
    return lambda mine: [0 if r == rank else mine[rank] for r in range(len(mine))]


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("run_id", ["", "20260101T000000-1-2"])
def test_ranks_of_one_run_are_among_themselves(rank, run_id):
    prove_peers(Sums(rank, 3, same_run(rank)), run_id)


@pytest.mark.parametrize(
    "theirs",
    [
        lambda mine: [0] * len(mine),  # a stranger that sends zeros
        lambda mine: [int.from_bytes(b"GET ", "little")] * len(mine),
        lambda mine: [mine[0], 0],  # a second rank 0
        lambda mine: [0, mine[0] ^ 2],  # a rank of another run
    ],
)
def test_whoever_else_is_among_them_is_noticed(theirs):
    with pytest.raises(NotJoined, match="another server's, or a stranger"):
        prove_peers(Sums(0, 2, theirs), "a-run")


def test_a_caller_that_hangs_up_is_a_failure_to_join():
    with pytest.raises(NotJoined, match="lost each other at once: .* was lost"):
        prove_peers(Sums(0, 2, error="[ring] connection to a peer was lost"), "a-run")


@pytest.fixture
def two_ranks(tmp_path):
    hosts = tmp_path / "hosts.json"
    hosts.write_text('[["127.0.0.1:1"], ["127.0.0.1:2"]]')
    return {"MLX_HOSTFILE": str(hosts)}


@pytest.fixture
def four_macs(tmp_path):
    """A mesh, as the launcher tells rank 1."""
    matrix = tmp_path / "devices.json"
    rows = [[None if i == j else f"rdma_en{j}" for j in range(4)] for i in range(4)]
    matrix.write_text(json.dumps(rows))
    return {
        "MLX_IBV_DEVICES": str(matrix),
        "MLX_JACCL_COORDINATOR": "192.168.1.10:32323",
        "MLX_RANK": "1",
        "RANK_HOSTS": "mac0,mac1,mac2,mac3",
    }


class Group:
    """What init returns."""

    def __init__(self, size: int) -> None:
        self._size = size

    def rank(self) -> int:
        return 0

    def size(self) -> int:
        return self._size


def failing(monkeypatch, text: str, then: Group | None = None, times: int = 1 << 30) -> list:
    """Has init raise so many times; returns what it was called with."""
    calls = []

    def init(**how):
        calls.append(how)
        if len(calls) <= times:
            raise RuntimeError(text)
        return then

    monkeypatch.setattr(mx.distributed, "init", init)
    return calls


def test_peers_that_are_not_found_may_be_the_next_time(monkeypatch, two_ranks):
    failing(monkeypatch, "[ring] Couldn't connect (error: 111)")
    with pytest.raises(NotJoined, match=r"did not join over ring: \[ring\] Couldn't connect") as no:
        join(two_ranks)
    assert _explain(no.value) == (NOT_JOINED, str(no.value))


@pytest.mark.parametrize("number", [61, 111, 60, 65])
def test_a_rank_0_that_is_late_is_tried_again_in_the_same_process(monkeypatch, four_macs, number):
    """JACCL gives up after 15 s; when rank 0's disk was slow the first start failed for good."""
    monkeypatch.setattr(joining, "PAUSE_S", 0)
    said: list[str] = []
    text = f"[jaccl] Couldn't connect (error: {number})"
    calls = failing(monkeypatch, text, then=Group(4), times=3)
    assert join(four_macs, 60, said.append).size == 4
    assert calls == [{"strict": True, "backend": "jaccl"}] * 4
    assert len(said) == 3 and all(text in line and "trying for" in line for line in said)


def test_trying_ends_with_the_time(monkeypatch, four_macs):
    monkeypatch.setattr(joining, "PAUSE_S", 0)
    calls = failing(monkeypatch, "[jaccl] Couldn't connect (error: 61)")
    with pytest.raises(NotJoined, match="refused .*: nothing listens there yet"):
        join(four_macs, 0.05)
    assert calls


@pytest.mark.parametrize(
    "text", ["[jaccl] Recv failed with errno=17", "[jaccl] Send failed with errno=32", "mystery"]
)
def test_only_a_peer_that_is_late_is_tried_again(monkeypatch, four_macs, text):
    """What was opened before that may be lost with each try."""
    calls = failing(monkeypatch, text)
    with pytest.raises(NotJoined, match=re.escape(text)):
        join(four_macs, 60)
    assert len(calls) == 1


@pytest.mark.parametrize(("rank", "tries"), [(0, 1), (2, 1), (3, 2)])
def test_in_a_ring_only_the_rank_that_connects_first_can_try_alone(
    monkeypatch, tmp_path, rank, tries
):
    """The others have taken their neighbour's only call: trying again, they waited for another."""
    monkeypatch.setattr(joining, "PAUSE_S", 0)
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in range(1, 5)]))
    text = "[ring] Couldn't connect (error: 111)"
    calls = failing(monkeypatch, text, then=Group(4), times=1)
    env = {"MLX_HOSTFILE": str(hosts), "MLX_RANK": str(rank)}
    if tries == 1:
        with pytest.raises(NotJoined):
            join(env, 60)
    else:
        join(env, 60)
    assert len(calls) == tries


@pytest.mark.parametrize(
    "text",
    [
        "[jaccl] Could not find device rdma_en1 (0 available)",
        "[jaccl] Couldn't allocate protection domain",
        "[jaccl] No IPv4-mapped GID for this device. Thunderbolt RDMA ports ...",
        "[jaccl] Changing queue pair to RTR failed with errno 22",
        "[jaccl] Register memory region failed",
    ],
)
def test_what_this_machine_lacks_is_its_own_and_named(monkeypatch, four_macs, text):
    """All of them were told as a lost peer."""
    failing(monkeypatch, text)
    with pytest.raises(ToBeMended) as no:
        join(four_macs, 60)
    assert str(no.value).startswith("rank 1 (mac1) cannot join over jaccl: " + text)
    assert _explain(no.value) == (INTERNAL, str(no.value))


@pytest.mark.parametrize(
    "text",
    [
        "Cannot initialize jaccl distributed backend.",
        "[jaccl] Could not find device rdma_en9 (3 available)",
        "[jaccl] The devices do not form a valid mesh.",
        "Can't parse address mac0:32323",
    ],
)
def test_a_hostfile_that_cannot_work_is_not_tried_again_by_anybody(monkeypatch, four_macs, text):
    failing(monkeypatch, text)
    with pytest.raises(Mismatch, match="rank 1") as no:
        join(four_macs, 60)
    assert _explain(no.value) == (CONFIG, str(no.value))


def test_a_package_that_is_missing_is_told_and_not_looked_for_again(tmp_path):
    """What explains an error imported mlx itself: a traceback, and code 1."""
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "__init__.py").write_text("")
    settings = {"MODEL_DIR": str(tmp_path), "HTTP_PORT": str(free_port()), "MLX_RANK": "1"}
    done = subprocess.run(
        [sys.executable, ROOT / "server" / "openai_cluster_server.py"],
        env=os.environ | settings | {"PYTHONPATH": str(tmp_path)},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == CONFIG, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "a package is missing or broken: No module named 'mlx.core'" in last


def test_another_number_of_ranks_is_a_mismatch(monkeypatch, two_ranks):
    failing(monkeypatch, "", then=Group(1), times=0)
    with pytest.raises(Mismatch, match="started 2 ranks, but 1 joined"):
        join(two_ranks)
