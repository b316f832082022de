#!/usr/bin/env python3
"""One rank of a check of the link: do the ranks meet, and does every cable carry what it should?

link_check.sh starts it on every rank, through our launcher. It loads no model.

usage: link_ranks.py smoke|link --hosts NAME,... --deadline S [--nominal-gbps G] [--json]

smoke  every rank joins the backend, checks the size of the world and takes part in one all_sum of
       known numbers, and tells so in a line of its own
link   each pair of ranks in turn exchanges messages, while the others wait: the time for 8 KB one
       way, and GB/s each way. In a ring only neighbours have a link. Then one all_sum of 8 KB over
       all ranks. Rank 0 prints a line for each, pass, warn or fail against what the link should do;
       info where there is no nominal rate to judge by

--hosts are the ssh names by rank, so their number is that of the ranks. All is over within the
deadline: a rank that waits longer ends itself, and says what it waited for.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from itertools import combinations

import mlx.core as mx

from scripts.lib.link.link_measure import (
    WrongSum,
    backend_name,
    check_sum,
    end_by,
    join,
    share_floats,
    show_bytes,
    time_all_sum,
    time_round_trip,
    time_stream,
)
from server.protocol.exit_codes import INTERNAL
from server.wire.link import Link

SMALL = 2048  # float32: 8 KB, about one token's hidden state
LARGE = 4 * 2**20  # float32: 16 MB
MESSAGES = 8
ROUND_TRIPS = 200
SUM_S = 0.2

NOMINAL_GBPS = {"jaccl": 80.0, "jaccl-ring": 80.0}
# Of the nominal rate; 6 to 8 of 10 GB/s are what users of Thunderbolt 5 see.
BANDWIDTH_PASS = 0.6
BANDWIDTH_FAIL = 0.3
# RDMA takes some tens of microseconds with MLX's share in it, TCP about 300.
LATENCY_PASS_S = 100e-6
LATENCY_FAIL_S = 300e-6
# Of 8 KB over all ranks: about 26 us were seen on 4 nodes.
SUM_SEEN = "about 26 us seen on 4 nodes"


@dataclass(frozen=True)
class Pair:
    """What one pair reached. verdict: pass, warn, fail; info with nothing to judge it by."""

    ranks: tuple[int, int]
    latency_s: float
    there_gb_per_s: float
    back_gb_per_s: float
    verdict: str
    reason: str


def main() -> None:
    """Runs one of the two on this rank."""
    options = parse_arguments()
    hosts = options.hosts.split(",")
    where = ["joining the other ranks"]
    end_by(options.deadline, where)
    name = f"rank {os.environ.get('MLX_RANK', '0')} of {len(hosts)}"
    print(f"link_ranks: {name}: waiting for the others", file=sys.stderr, flush=True)
    began = time.perf_counter()
    link = join(os.environ, len(hosts), where.append)
    joined_s = time.perf_counter() - began
    where.append("summing over all ranks")
    try:
        check_sum(link, SMALL, mx.float32)
    except WrongSum as error:
        print(f"ending with code {INTERNAL}: {error}", file=sys.stderr, flush=True)
        sys.exit(INTERNAL)
    if options.what == "link":
        check_links(link, hosts, options, where)
        return
    backend = backend_name(os.environ)
    meeting = f"joined {link.size} ranks over {backend} in {joined_s:.1f} s"
    if link.size == 1:
        meeting = "started alone"
    print(
        f"pass  rank {link.rank} ({hosts[link.rank]})  {meeting}, all_sum is right, "
        f"mlx {mx.__version__}",
        flush=True,
    )
    if options.json and link.rank == 0:
        about = {"check": "smoke", "backend": backend, "hosts": hosts, "joined_s": joined_s}
        print(json.dumps(about | {"mlx": mx.__version__}), flush=True)


def check_links(
    link: Link, hosts: list[str], options: argparse.Namespace, where: list[str]
) -> None:
    """Measures every link and, on rank 0, prints what it found."""
    backend = backend_name(os.environ)
    nominal = options.nominal_gbps or NOMINAL_GBPS.get(backend)
    pairs = linked_pairs(link.size, backend)
    found = []
    for number, (a, b) in enumerate(pairs, 1):
        where.append(f"measuring {hosts[a]} and {hosts[b]} (ranks {a} and {b})")
        if link.rank == 0:
            print(f"link_ranks: pair {number} of {len(pairs)}", file=sys.stderr, flush=True)
        found.append(judge((a, b), *measure_pair(link, a, b), nominal))
    where.append("timing all_sum over all ranks")
    total = time_all_sum(link, SMALL, mx.float32, SUM_S)
    if link.rank != 0:
        return
    for pair in found:
        print(line_of(pair, hosts))
    seen = f"; {SUM_SEEN}" if backend == "jaccl" else ""
    rate = f"{nominal:g} Gb/s nominal" if nominal else "no nominal rate"
    print(
        f"info  all {link.size} ranks  all_sum of {show_bytes(SMALL * 4)}: "
        f"{total.median_s * 1e6:.1f} us ({backend}, {rate}{seen})"
    )
    if options.json:
        print(
            json.dumps(
                {
                    "check": "link",
                    "backend": backend,
                    "hosts": hosts,
                    "nominal_gb_per_s": nominal / 8 if nominal else None,
                    "pairs": [asdict(pair) for pair in found],
                    "all_sum_bytes": SMALL * 4,
                    "all_sum_s": total.median_s,
                    "mlx": mx.__version__,
                }
            )
        )
    sys.stdout.flush()


def linked_pairs(ranks: int, backend: str) -> list[tuple[int, int]]:
    """The pairs that have a link of their own: all in a mesh, neighbours in a ring."""
    return [
        (a, b)
        for a, b in combinations(range(ranks), 2)
        if backend == "jaccl" or b - a in (1, ranks - 1)
    ]


def measure_pair(link: Link, a: int, b: int) -> tuple[float, float, float]:
    """One way in seconds, GB/s from a to b and back: the same numbers on every rank."""
    one_way = there = back = 0.0
    if link.rank in (a, b):
        one_way = time_round_trip(link, a, b, SMALL, ROUND_TRIPS).median_s
        there = LARGE * 4 / time_stream(link, a, b, LARGE, MESSAGES) / 1e9
        back = LARGE * 4 / time_stream(link, b, a, LARGE, MESSAGES) / 1e9
    # Rank a's clock for what a sent, b's for what b sent; the others wait here meanwhile.
    one_way, there = share_floats(link, [one_way, there], origin=a)
    (back,) = share_floats(link, [back], origin=b)
    return one_way, there, back


def judge(
    ranks: tuple[int, int], latency_s: float, there: float, back: float, nominal: float | None
) -> Pair:
    """Holds a pair against the nominal rate of its link, Gb/s."""
    verdict, reasons = "pass" if nominal else "info", []
    if nominal is not None:
        full = nominal / 8
        slower = min(there, back)
        if slower < BANDWIDTH_PASS * full:
            verdict = "fail" if slower < BANDWIDTH_FAIL * full else "warn"
            reasons.append(f"{slower:.2f} GB/s, expected {BANDWIDTH_PASS * full:g} or more")
        if latency_s > LATENCY_PASS_S:
            verdict = "fail" if latency_s > LATENCY_FAIL_S or verdict == "fail" else "warn"
            reasons.append(
                f"{latency_s * 1e6:.0f} us one way, expected {LATENCY_PASS_S * 1e6:.0f} or less"
            )
    return Pair(ranks, latency_s, there, back, verdict, "; ".join(reasons))


def line_of(pair: Pair, hosts: list[str]) -> str:
    """A pair in one line, with what was expected where it was not reached."""
    a, b = pair.ranks
    return (
        f"{pair.verdict}  rank {a} ({hosts[a]}) - rank {b} ({hosts[b]})  "
        f"{pair.latency_s * 1e6:.1f} us one way, {pair.there_gb_per_s:.2f} GB/s there, "
        f"{pair.back_gb_per_s:.2f} back" + (f": {pair.reason}" if pair.reason else "")
    )


def parse_arguments() -> argparse.Namespace:
    """The command line; link_check.sh has checked the values."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=("smoke", "link"))
    parser.add_argument("--hosts", required=True)
    parser.add_argument("--deadline", type=float, required=True)
    parser.add_argument("--nominal-gbps", type=float)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
