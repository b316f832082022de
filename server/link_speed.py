"""How fast the link is: the time of a small sum over all ranks, and the rate of a large one.

Runs on the main thread of every rank, at the start and with each canary: never beside requests.
"""

import statistics
import time

import mlx.core as mx

from server.link import Link

LARGE_LEAST = 2**22  # numbers: with fewer the latency would count for bandwidth
ROUNDS = 20
WARM_UPS = 5


def measure_link(link: Link, values: int) -> tuple[float, float] | tuple[None, None]:
    """Seconds of a sum of one number, and bytes a second of a large one: the size of its message
    over its time, whatever the backend sends for it. values: numbers in it, if they are enough.
    None for a single rank."""
    if link.size == 1:
        return None, None
    small = mx.zeros(1, dtype=mx.int32)
    large = mx.zeros(max(values, LARGE_LEAST), dtype=mx.int32)
    mx.eval(small, large)
    times = [_time_sum(link, small) for _ in range(WARM_UPS + ROUNDS)]
    _time_sum(link, large)  # its buffers are made
    return statistics.median(times[WARM_UPS:]), large.nbytes / _time_sum(link, large)


def _time_sum(link: Link, array: mx.array) -> float:
    began = time.perf_counter()
    mx.eval(link.sum(array))
    return time.perf_counter() - began
