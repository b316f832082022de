"""The link is measured by the sums of a real step, and the library is left as it was."""

import queue

import pytest

pytest.importorskip("mlx.core")

import mlx.core as mx
import mlx.nn as nn

from server.wire.link import Link
from server.wire.link_speed import (
    LARGE_LEAST,
    PAIR_LARGE,
    ROUNDS,
    STEP_ROUNDS,
    WARM_UPS,
    counting_sums,
    measure_link,
    time_pairs,
)
from tests.support.linked import DEADLINE_S, Wire, WiredLink, on_links


class Echo:
    """A link of two, of which the other brings zeros."""

    rank, size = 0, 2

    def __init__(self) -> None:
        self.sums: list[tuple[tuple[int, ...], mx.Dtype]] = []

    def sum(self, values: mx.array) -> mx.array:
        self.sums.append((values.shape, values.dtype))
        return values + 0


def sharded_pass(layers: int) -> mx.array:
    """Layers as mlx-lm's models have them once they are sharded, in a group of one."""
    group = mx.distributed.init()
    x = mx.zeros((1, 1, 32), mx.float16)
    for _ in range(layers):
        layer = nn.layers.distributed.ShardedToAllLinear(32, 32, bias=False, group=group)
        layer.set_dtype(mx.float16)
        x = layer(x)
    return x


def test_the_sums_of_a_pass_are_counted_by_size_and_type():
    real = mx.distributed.all_sum
    with counting_sums() as sums:
        mx.eval(sharded_pass(3))
    assert (sums.count, sums.like.shape, sums.like.dtype) == (3, (1, 1, 32), mx.float16)
    assert mx.distributed.all_sum is real


def test_the_library_is_left_as_it_was_when_the_model_fails():
    real = mx.distributed.all_sum
    with pytest.raises(ZeroDivisionError), counting_sums():
        raise ZeroDivisionError
    assert mx.distributed.all_sum is real


def test_a_step_is_played_with_all_its_sums_and_that_of_the_tokens():
    with counting_sums() as sums:
        sharded_pass(4)
    link = Echo()
    speed = measure_link(link, 10, sums)
    assert min(speed.latency, speed.bandwidth, speed.step) > 0
    played = [one for one in link.sums if one == ((1, 1, 32), mx.float16)]
    assert len(played) == STEP_ROUNDS * 5
    assert link.sums.count(((1,), mx.int32)) == WARM_UPS + ROUNDS
    assert link.sums.count(((LARGE_LEAST,), mx.int32)) == 2


def test_a_pipeline_has_no_sums_to_play():
    with counting_sums() as sums:
        pass
    assert measure_link(Echo(), 10, sums).step is None


def test_one_rank_has_no_link():
    with counting_sums() as sums:
        pass
    assert measure_link(Link(mx.distributed.init()), 10, sums) is None


class Pairwise(WiredLink):
    """Its ranks also send each other arrays, each send until it is heard. log: who sent whom what,
    of all ranks."""

    def __init__(self, wire: Wire, rank: int, ways: dict, log: list) -> None:
        super().__init__(wire, rank)
        self.ways, self.log = ways, log

    def send(self, array, rank):
        self.log.append((self.rank, rank, array.size))
        self.ways[self.rank, rank].put(array.size, timeout=DEADLINE_S)

    def hear(self, like, rank):
        assert self.ways[rank, self.rank].get(timeout=DEADLINE_S) == like.size


@pytest.mark.parametrize("pairs", [
    [(0, 1)], [(0, 1), (1, 2), (0, 2)], [(0, 1), (1, 2), (2, 3), (0, 3)],
])  # fmt: skip
def test_each_pair_is_timed_alone_and_told_by_its_lower_rank(pairs):
    size = 1 + max(max(pair) for pair in pairs)
    ways = {(a, b): queue.Queue(1) for a in range(size) for b in range(size)}
    log: list[tuple[int, int, int]] = []
    found = on_links(
        size, lambda link: time_pairs(Pairwise(link.wire, link.rank, ways, log), pairs)
    )
    told = [(rank, pair.other) for rank, mine in enumerate(found) for pair in mine]
    assert sorted(told) == sorted(pairs)
    assert all(pair.latency > 0 and pair.bandwidth > 0 for mine in found for pair in mine)
    turns = [tuple(sorted(entry[:2])) for entry in log]
    changes = [turn for n, turn in enumerate(turns) if n == 0 or turn != turns[n - 1]]
    assert changes == pairs, "one after the other"
    assert [size for a, b, size in log if (a, b) == pairs[0]].count(PAIR_LARGE) == 2
