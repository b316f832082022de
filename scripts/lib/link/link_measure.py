"""What link_ranks and bench_link share: join with a deadline, and time what ranks exchange.

Runs on every rank, on the main thread, in the same order everywhere: each function is one or more
collectives. How often something is repeated is decided by rank 0 and shared, never by a rank's own
clock. Imports mlx and nothing of the model, so a rank is ready in a fraction of a second.

All times are medians of wall-clock seconds as Python sees them, MLX's own overhead included. The
arrays are in place before the clock starts; the ranks exchange them on MLX's CPU stream, whatever
the default device. Inside a model on a GPU, handing over to that stream comes on top.
"""

import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import NoReturn

import mlx.core as mx

from server.lifecycle.lease import watch_lifeline
from server.protocol.exit_codes import CONFIG, INTERNAL, NOT_JOINED, PEER_LOST, STALLED
from server.startup.handshake import Mismatch, promised_group
from server.startup.joining import NotJoined, ToBeMended, meet
from server.startup.joining import join as server_join
from server.wire.link import Link

WARMUP = 3
LEAST_SAMPLES = 5
MOST_SAMPLES = 200
SHORT_S = 0.001  # Below it a single exchange is lost in the overhead of starting one
CHAIN = 10  # so that many run in a row then
PATTERN = 8  # Whole numbers whose sum over 16 ranks is exact even in bfloat16
NATIVE_GRACE_S = 2


class WrongSum(ValueError):
    """An all_sum came back with other numbers than were sent."""


@dataclass(frozen=True)
class Timing:
    """Seconds for one exchange: the median, and what 95 of 100 stay below."""

    median_s: float
    p95_s: float
    samples: int


def end_by(seconds: float, where: list[str]) -> None:
    """Ends this process when the time is up, and when its launcher is gone.

    where: its last entry says what the rank is doing. A collective can't be interrupted, and
    joining holds the interpreter's lock, so the last resort is an alarm that no Python sees.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds + NATIVE_GRACE_S)

    def leave(code: int, reason: str) -> None:
        print(f"ending with code {code}: {reason}", file=sys.stderr, flush=True)
        os._exit(code)

    def time_is_up() -> None:
        leave(STALLED, f"not done after {seconds:g} s, while {where[-1]}")

    timer = threading.Timer(seconds, time_is_up)
    timer.daemon = True
    timer.start()
    watch_lifeline(lambda reason: leave(PEER_LOST, reason))


def join(
    env: MutableMapping[str, str],
    ranks: int | None,
    tell: Callable[[str], None] = lambda stage: None,
) -> Link:
    """Joins the group, and proves each of its links; ends this rank if it is not of `ranks` (None:
    as the launcher says). tell is called with what may not end. end_by's limit is the only one."""
    try:
        backend, promised = promised_group(env)
    except Mismatch as error:
        refuse(str(error))
    wanted = promised if ranks is None else ranks
    if promised != wanted:
        refuse(f"{wanted} ranks were started, but the launcher's files are for {promised}")
    try:
        link = server_join(env, float("inf"), say)
        meet(link, env, "", lambda stage, extra_s: tell(stage))
    except Mismatch as error:
        refuse(f"the {backend_name(env)} backend did not start: {error}")
    except ToBeMended as error:
        refuse(f"the {backend_name(env)} backend did not start: {error}", INTERNAL)
    except NotJoined as error:
        refuse(str(error), NOT_JOINED)
    return link


def say(text: str) -> None:
    print(f"link: {text}", file=sys.stderr, flush=True)


def backend_name(env: Mapping[str, str]) -> str:
    """jaccl, jaccl-ring or ring, as the launcher's variables say; none for a rank alone."""
    backend, _ = promised_group(env)
    if backend == "jaccl" and ("MLX_JACCL_RING" in env or "JACCL_RING" in env):
        return "jaccl-ring"
    return "none" if backend == "any" else backend


def refuse(reason: str, code: int = CONFIG) -> NoReturn:
    """Ends this rank with the reason, in the form in which the launcher looks for it."""
    print(f"ending with code {code}: {reason}", file=sys.stderr, flush=True)
    sys.exit(code)


def share_floats(link: Link, values: list[float], origin: int) -> list[float]:
    """One rank's numbers on every rank; every rank passes the same count. Also a barrier."""
    mine = values if link.rank == origin else [0.0] * len(values)
    return link.sum(mx.array(mine, dtype=mx.float32)).tolist()


def check_sum(link: Link, count: int, dtype: mx.Dtype) -> None:
    """One all_sum of known whole numbers, compared in full. Raises WrongSum."""
    base = mx.arange(count) % PATTERN
    total = link.sum((base + link.rank).astype(dtype))
    wanted = (base * link.size + link.size * (link.size - 1) // 2).astype(dtype)
    wrong = mx.sum(total != wanted).item()
    if wrong:
        first = mx.argmax(total != wanted).item()
        raise WrongSum(
            f"all_sum of {count} {dtype} over {link.size} ranks: {wrong} wrong, the first at "
            f"{first}: {total[first].item()} instead of {wanted[first].item()}"
        )


def time_all_sum(link: Link, count: int, dtype: mx.Dtype, budget_s: float) -> Timing:
    """all_sum of `count` values over all ranks, for about budget_s seconds."""
    values = mx.zeros((count,), dtype=dtype)
    mx.eval(values)

    def run(chain: int) -> float:
        start = time.perf_counter()
        total = values
        for _ in range(chain):
            total = link.sum(total)
        mx.eval(total)
        return (time.perf_counter() - start) / chain

    run(1)
    (once,) = share_floats(link, [statistics.median(run(1) for _ in range(WARMUP))], origin=0)
    chain = CHAIN if once < SHORT_S else 1
    samples = min(MOST_SAMPLES, max(LEAST_SAMPLES, int(budget_s / (once * chain))))
    return summarise([run(chain) for _ in range(samples)])


def time_round_trip(link: Link, a: int, b: int, count: int, samples: int) -> Timing:
    """Half a round trip of `count` float32 between two ranks: one way. Known to rank a alone.

    The other ranks must not be in it; neither may anything else of the link run meanwhile.
    """
    values = mx.zeros((count,))
    mx.eval(values)
    times = []
    for _ in range(WARMUP + samples):
        start = time.perf_counter()
        if link.rank == a:
            # The order on the stream is that of these two lines: sent before it waits.
            mx.async_eval(mx.distributed.send(values, b, group=link.group))
            mx.eval(mx.distributed.recv_like(values, b, group=link.group))
        else:
            back = mx.distributed.recv_like(values, a, group=link.group)
            mx.eval(mx.distributed.send(back, a, group=link.group))
        times.append((time.perf_counter() - start) / 2)
    return summarise(times[WARMUP:])


def time_stream(link: Link, a: int, b: int, count: int, messages: int) -> float:
    """Seconds for one message of `count` float32 from a to b, many in a row. Known to rank a."""
    values = mx.zeros((count,))
    token = mx.zeros((1,))
    mx.eval(values, token)
    for _ in range(2):  # The first time warms up.
        start = time.perf_counter()
        for _ in range(messages):
            if link.rank == a:
                mx.eval(mx.distributed.send(values, b, group=link.group))
            else:
                mx.eval(mx.distributed.recv_like(values, a, group=link.group))
        # Sent is not received: b confirms the last one.
        if link.rank == a:
            mx.eval(mx.distributed.recv_like(token, b, group=link.group))
        else:
            mx.eval(mx.distributed.send(token, a, group=link.group))
        seconds = time.perf_counter() - start
    return seconds / messages


def summarise(times: list[float]) -> Timing:
    """Median and 95th percentile (nearest rank) of these times."""
    ordered = sorted(times)
    p95 = ordered[min(len(ordered) - 1, -(-95 * len(ordered) // 100) - 1)]
    return Timing(statistics.median(ordered), p95, len(ordered))


def link_bytes(size: int, ranks: int, backend: str) -> float:
    """Bytes that an all_sum of `size` bytes sends over one cable in each direction.

    A JACCL mesh sends the whole array to every peer, each over its own cable; a ring sends
    2 (ranks - 1) pieces of 1/ranks to the next rank. (From MLX's source.)
    """
    return float(size) if backend == "jaccl" else 2 * (ranks - 1) / ranks * size


def show_bytes(count: float) -> str:
    """8 KB, 1.5 MB: in powers of 1024, as short as it is exact to two digits."""
    for unit in ("B", "KB", "MB"):
        if count < 1024 or unit == "MB":
            return f"{count:.3g} {unit}" if count < 1024 else f"{count:.0f} {unit}"
        count /= 1024
    raise AssertionError
