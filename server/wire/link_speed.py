"""How fast the link is: a small sum over all ranks, a large one, and those of a decode step; and,
once, the link of each two ranks.

Runs on the main thread of every rank, at the start and with each canary: never beside requests.
Inside a step collectives cannot be timed, as the pipeline would have to stop for each of them. So
they are counted once, in a forward pass, and played again with nothing between.
"""

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx

from server.observe.fleet import PairSpeed
from server.observe.views import LinkSpeed
from server.wire.link import Link

LARGE_LEAST = 2**22  # numbers: with fewer the latency would count for bandwidth
ROUNDS = 20
STEP_ROUNDS = 5
WARM_UPS = 5
PAIR_LARGE = 2**21  # numbers that two ranks send each other: 28 pairs take a fraction of a second


@dataclass
class Sums:
    """The sums of a forward pass of one token: how many, and the numbers of the last."""

    count: int = 0
    like: mx.array | None = None


@contextlib.contextmanager
def counting_sums() -> Iterator[Sums]:
    """Counts the sums over ranks that are built in the body, as mlx-lm's sharded layers do."""
    sums, real = Sums(), mx.distributed.all_sum

    def all_sum(x, *args, **kwargs):
        sums.count += 1
        sums.like = mx.zeros(x.shape, x.dtype)
        return real(x, *args, **kwargs)

    mx.distributed.all_sum = all_sum
    try:
        yield sums
    finally:
        mx.distributed.all_sum = real


def measure_link(link: Link, values: int, sums: Sums) -> LinkSpeed | None:
    """Measures it. values: numbers in the large sum, if they are enough; sums: those of a step.
    None for a single rank."""
    if link.size == 1:
        return None
    small = mx.zeros(1, dtype=mx.int32)
    large = mx.zeros(max(values, LARGE_LEAST), dtype=mx.int32)
    mx.eval(small, large)
    times = [_time_sums(link, small, 1) for _ in range(WARM_UPS + ROUNDS)]
    _time_sums(link, large, 1)  # its buffers are made
    bandwidth = large.nbytes / _time_sums(link, large, 1)
    step = None
    if sums.like is not None:
        mx.eval(sums.like)
        # One more than the model's: that of the tokens.
        rounds = [_time_sums(link, sums.like, sums.count + 1) for _ in range(STEP_ROUNDS)]
        step = statistics.median(rounds)
    return LinkSpeed(statistics.median(times[WARM_UPS:]), bandwidth, step)


def time_pairs(link: Link, pairs: Sequence[tuple[int, int]]) -> tuple[PairSpeed, ...]:
    """The links of this rank to higher ones. pairs: all that have a link, the same on every rank;
    each has been proven to carry messages both ways."""
    found = []
    small, large = (mx.zeros(count, dtype=mx.int32) for count in (1, PAIR_LARGE))
    mx.eval(small, large)
    for pair in pairs:
        link.share_ints([0])  # one after the other: no cable is shared, and no host
        if link.rank not in pair:
            continue
        rounds = [_time_round_trip(link, small, pair) for _ in range(WARM_UPS + ROUNDS)]
        _time_round_trip(link, large, pair)  # its buffers are made
        long = _time_round_trip(link, large, pair)
        if link.rank == min(pair):
            latency = statistics.median(rounds[WARM_UPS:]) / 2
            found.append(PairSpeed(max(pair), latency, 2 * large.nbytes / long))
    return tuple(found)


def _time_round_trip(link: Link, array: mx.array, pair: tuple[int, int]) -> float:
    """Seconds until it has come back to the lower rank, which sends first."""
    first, second = sorted(pair)
    began = time.perf_counter()
    if link.rank == first:
        link.send(array, second)
        link.hear(array, second)
    else:
        link.hear(array, first)
        link.send(array, first)
    return time.perf_counter() - began


def _time_sums(link: Link, array: mx.array, count: int) -> float:
    """Seconds of count sums, each of which waits for the one before."""
    began = time.perf_counter()
    for _ in range(count):
        array = link.sum(array)
    mx.eval(array)
    return time.perf_counter() - began
