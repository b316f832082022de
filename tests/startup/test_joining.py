"""Joining: who is among the ranks, what is tried again, and what is not. Links are invented."""

import os
import subprocess
import sys

import mlx.core as mx
import pytest

from server.main import _explain
from server.protocol.exit_codes import CONFIG, INTERNAL, NOT_JOINED
from server.startup.handshake import Mismatch
from server.startup.joining import TO_BE_MENDED, NotJoined, ToBeMended, join, prove_peers
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


def failing(monkeypatch, text: str) -> None:
    def init(**_):
        raise RuntimeError(text)

    monkeypatch.setattr(mx.distributed, "init", init)


def test_peers_that_are_not_found_may_be_the_next_time(monkeypatch, two_ranks):
    failing(monkeypatch, "[ring] Couldn't connect (error: 111)")
    with pytest.raises(NotJoined, match=r"did not join over ring: \[ring\] Couldn't connect") as no:
        join(two_ranks, "a-run")
    assert _explain(no.value) == (NOT_JOINED, str(no.value))


@pytest.mark.parametrize("words", TO_BE_MENDED)
def test_what_somebody_has_to_mend_is_not_tried_again_and_again(monkeypatch, two_ranks, words):
    """Told as a lost peer, it would be: each try may cost what only a reboot gives back."""
    failing(monkeypatch, f"[jaccl] {words} rdma_en9")
    with pytest.raises(ToBeMended, match="rdma_en9") as no:
        join(two_ranks, "a-run")
    assert _explain(no.value) == (INTERNAL, str(no.value))


def test_a_package_that_is_missing_is_told_and_not_looked_for_again(tmp_path):
    """What explains an error imported mlx itself: a traceback, and code 1."""
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "__init__.py").write_text("")
    settings = {"MODEL_DIR": str(tmp_path), "HTTP_PORT": str(free_port()), "MLX_RANK": "1"}
    done = subprocess.run(
        [sys.executable, ROOT / "server" / "openai_cluster_server.py"],
        env=os.environ | settings | {"PYTHONPATH": str(tmp_path)},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == CONFIG, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "a package is missing or broken: No module named 'mlx.core'" in last


def test_another_number_of_ranks_is_a_mismatch(monkeypatch, two_ranks):
    class World:
        def size(self):
            return 1

    monkeypatch.setattr(mx.distributed, "init", lambda **_: World())
    with pytest.raises(Mismatch, match="started 2 ranks, but 1 joined"):
        join(two_ranks, "a-run")
