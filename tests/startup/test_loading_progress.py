"""Weights come in pieces; after each piece all ranks know how far each of them is."""

import logging
from types import SimpleNamespace

import pytest

pytest.importorskip("mlx.core")

import mlx.core as mx

import server.startup.piece_pace as piece_pace
from server.observe.fleet import Loaded
from server.observe.status import Status
from server.startup.loading import _describe, evaluate, load_shard, weights_of
from server.startup.piece_pace import AllAtOnce
from server.startup.stages import Stages
from server.wire.link import Link
from tests.support.tiny_models import tiny_llama


class OneOfTwo:
    """A link to a rank that holds `theirs` bytes and is `lag` KiB behind us."""

    rank, size = 0, 2

    def __init__(self, theirs: int, lag: int) -> None:
        self.theirs, self.lag = theirs, lag
        self.sums = 0

    def gather_bytes(self, data: bytes) -> list[bytes]:
        return [data, str(self.theirs).encode()]

    def sum(self, values: mx.array) -> mx.array:
        self.sums += 1
        mine = values.tolist()
        return mx.array([mine[0], max(0, mine[0] - self.lag), mine[-1]])


def model(*kilobytes: int):
    arrays = {f"w{n}": mx.zeros((size * 256,), dtype=mx.float32) for n, size in
              enumerate(kilobytes)}  # fmt: skip
    return SimpleNamespace(parameters=lambda: arrays)


def progress(monkeypatch, sizes, theirs, piece, lag=0) -> list[tuple[Loaded, ...]]:
    monkeypatch.setattr(piece_pace, "PIECE_BYTES", piece * 1024)
    return list(evaluate(weights_of(model(*sizes)), OneOfTwo(theirs * 1024, lag), AllAtOnce()))


def test_the_pieces_add_up_to_all_weights(monkeypatch):
    told = progress(monkeypatch, [4] * 8, 32, 8, lag=2)
    mine = [one.done // 1024 for one, _ in told]
    assert mine == [0, 8, 16, 24, 32]
    assert [other.done // 1024 for _, other in told] == [0, 6, 14, 22, 32]
    assert {one.total for one, _ in told} == {32 * 1024}


def test_ranks_with_unequal_shares_take_the_same_number_of_pieces(monkeypatch):
    """Else one would meet more often than the other, and wait for ever."""
    told = progress(monkeypatch, [4] * 3, 400, 40)
    assert len(told) - 1 == 10
    assert told[-1] == (Loaded(12 * 1024, 12 * 1024), Loaded(400 * 1024, 400 * 1024))


def test_one_weight_larger_than_a_piece_is_loaded_whole(monkeypatch):
    told = progress(monkeypatch, [2, 50, 2], 54, 9)
    mine = [one.done // 1024 for one, _ in told]
    assert mine == sorted(mine)
    assert (len(mine), mine[-1]) == (7, 54)


def test_a_rank_without_weights_still_meets_the_others(monkeypatch):
    told = progress(monkeypatch, [], 16, 8)
    assert len(told) == 3
    assert told[-1][0] == Loaded(0, 0)


def test_progress_is_told_in_words():
    text = _describe((Loaded(41_000_000_000, 100_000_000_000), Loaded(500_000, 1_000_000)))
    assert text == "41% (rank 0 41.0 GB of 100.0 GB, rank 1 0.5 MB of 1.0 MB)"


def test_each_piece_feeds_the_watchdog_and_few_are_logged(caplog):
    caplog.set_level(logging.INFO)
    fed, status = [], Status("demo", "run")
    tell = Stages(status.phases, fed.append).tell
    stages = ["handshake", *(f"loading: {n}%" for n in range(50)), "loaded: 100%", "loaded: 100%"]
    for stage in stages:
        tell(stage)
    assert fed == stages
    assert status.state.detail == "loaded: 100%"
    assert caplog.messages == ["handshake", "loading: 0%", "loaded: 100%"]


def test_a_lone_rank_says_nothing_of_a_split(tmp_path, caplog):
    """It said that the output projection was split up to 0 rows."""
    caplog.set_level(logging.INFO)
    link = Link(mx.distributed.init())
    load_shard(tiny_llama(tmp_path / "tiny"), "tensor", link, None, lambda stage: None)
    assert not any("output projection" in message for message in caplog.messages)
