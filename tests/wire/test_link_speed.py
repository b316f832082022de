"""The link is measured by the sums of a real step, and the library is left as it was."""

import pytest

pytest.importorskip("mlx.core")

import mlx.core as mx
import mlx.nn as nn

from server.wire.link import Link
from server.wire.link_speed import (
    LARGE_LEAST,
    ROUNDS,
    STEP_ROUNDS,
    WARM_UPS,
    counting_sums,
    measure_link,
)


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
