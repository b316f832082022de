"""Latency and bandwidth of all_sum between the ranks, by message size. No model, no server.

usage: mlx.launch ... -- scripts/bench_link.py [--hidden N | --model DIR] [--dtype TYPE] [--max-mb
N]
                         [--nominal-gbps G] [--seconds S] [--deadline S] [--ranks N] [--json]

scripts/bench_link.sh starts it, on this machine (--local 2) or on the cluster; its --help has the
options with their defaults. all_sum is what
tensor parallelism waits for, twice a layer and token: with one request it sums one token's hidden
state, in prefill those of a whole chunk. Sizes go from one token's hidden state to --max-mb, by
four; at each the sum is checked in full before it is timed. Rank 0 prints a table, then one JSON
line last:

  tokens     hidden states in the message
  size       its bytes; KB and MB are powers of 1024
  median us  microseconds for one all_sum. Those under a millisecond are timed ten in a row
  p95 us     95 of 100 took no longer
  GB/s       bytes of the message / median time (1 GB is 10^9 bytes)
  link GB/s  bytes that one cable carries in each direction / median time. In a JACCL mesh that is
             the message, in a ring 2 (ranks - 1) / ranks of it
  nominal    link GB/s against --nominal-gbps: by default 80 (Thunderbolt 5, 10 GB/s) for jaccl and
             jaccl-ring, nothing for ring. 6 to 8 GB/s are what users of Thunderbolt 5 see

The ranks' arrays are in place before the clock starts. In a model on a GPU, handing each sum from
GPU to CPU and back comes on top. The JSON line has the same in bytes, seconds and GB/s, with the
version of mlx and the state of MLX_METAL_FAST_SYNCH.
"""

import argparse
import json
import os
import platform
import sys
from pathlib import Path

import mlx.core as mx

from scripts.lib.link.bench_link_options import add_options
from scripts.lib.link.link_measure import (
    Timing,
    WrongSum,
    backend_name,
    check_sum,
    end_by,
    join,
    link_bytes,
    refuse,
    show_bytes,
    time_all_sum,
)
from scripts.lib.verbs.parser import Parser
from scripts.lib.verbs.shared import whole
from server.protocol.exit_codes import INTERNAL
from server.wire.link import Link

HIDDEN = 4096
STEP = 4
MOST_RANKS = 16  # The checked sums are exact in bfloat16 up to here
NOMINAL_GBPS = {"jaccl": 80.0, "jaccl-ring": 80.0}


def main() -> None:
    """Runs the benchmark on this rank; only rank 0 prints results."""
    options = parse_arguments()
    where = ["joining the other ranks"]
    end_by(options.deadline, where)
    link = join(os.environ, options.ranks, where.append)
    backend = backend_name(os.environ)
    if not 1 < link.size <= MOST_RANKS:
        refuse(f"{link.size} ranks: start from 2 to {MOST_RANKS}, since one has no link")
    nominal = options.nominal_gbps or NOMINAL_GBPS.get(backend)
    dtype = getattr(mx, options.dtype)  # by MLX's own name
    sizes = token_counts(options.hidden * dtype.size, options.max_mb * 2**20)
    rows = []
    for number, tokens in enumerate(sizes, 1):
        size = tokens * options.hidden * dtype.size
        where.append(f"summing {show_bytes(size)}")
        if link.rank == 0:
            print(f"bench_link: {number} of {len(sizes)}: {show_bytes(size)}", file=sys.stderr)
        timing = measure(link, tokens * options.hidden, dtype, options.seconds)
        rows.append(describe(tokens, size, timing, link.size, backend, nominal))
    if link.rank == 0:
        report(options, link, backend, nominal, rows)


def measure(link: Link, count: int, dtype: mx.Dtype, seconds: float) -> Timing:
    """One size: the sum is right, and takes so long. Ends this rank when it is not right."""
    try:
        check_sum(link, count, dtype)
    except WrongSum as error:
        print(f"ending with code {INTERNAL}: {error}", file=sys.stderr, flush=True)
        sys.exit(INTERNAL)
    return time_all_sum(link, count, dtype, seconds)


def token_counts(token_bytes: int, most_bytes: int) -> list[int]:
    """1, 4, 16, ... tokens, and last as many as fit into most_bytes."""
    most = max(1, most_bytes // token_bytes)
    counts = []
    count = 1
    while count < most:
        counts.append(count)
        count *= STEP
    return [*counts, most]


def describe(
    tokens: int, size: int, timing: Timing, ranks: int, backend: str, nominal: float | None
) -> dict:
    """One row, by the names of the JSON line."""
    on_link = link_bytes(size, ranks, backend) / timing.median_s / 1e9
    return {
        "tokens": tokens,
        "bytes": size,
        "median_s": timing.median_s,
        "p95_s": timing.p95_s,
        "samples": timing.samples,
        "gb_per_s": size / timing.median_s / 1e9,
        "link_gb_per_s": on_link,
        "of_nominal": on_link / (nominal / 8) if nominal else None,
    }


def report(
    options: argparse.Namespace, link: Link, backend: str, nominal: float | None, rows: list[dict]
) -> None:
    """A table for people, one JSON line for programs."""
    rate = f"{nominal:g} Gb/s nominal" if nominal else "no nominal rate"
    print(
        f"all_sum over {link.size} ranks, {backend}, {rate}; "
        f"a token is {options.hidden} {options.dtype}\n"
    )
    print(f"{'tokens':>7}{'size':>10}{'median us':>12}{'p95 us':>12}", end="")
    print(f"{'GB/s':>9}{'link GB/s':>11}{'nominal':>9}")
    for row in rows:
        share = "-" if row["of_nominal"] is None else f"{row['of_nominal']:.0%}"
        print(
            f"{row['tokens']:>7}{show_bytes(row['bytes']):>10}"
            f"{row['median_s'] * 1e6:>12.1f}{row['p95_s'] * 1e6:>12.1f}"
            f"{row['gb_per_s']:>9.3f}{row['link_gb_per_s']:>11.3f}{share:>9}"
        )
    print()
    about = {
        "benchmark": "bench_link",
        "ranks": link.size,
        "backend": backend,
        "hidden": options.hidden,
        "dtype": options.dtype,
        "nominal_gb_per_s": nominal / 8 if nominal else None,
        "one_token_s": rows[0]["median_s"],
        "best_link_gb_per_s": max(row["link_gb_per_s"] for row in rows),
        "rows": rows,
        "fast_synch": os.environ.get("MLX_METAL_FAST_SYNCH", "0"),
        "machine": platform.platform(),
        "mlx": mx.__version__,
    }
    print(json.dumps(about), flush=True)


def parse_arguments() -> argparse.Namespace:
    """The command line. Every rank gets the same."""
    parser = Parser("bench_link.py", __doc__)
    add_options(parser)
    parser.add_argument("--model", type=Path, help="take --hidden from this model's config.json")
    parser.add_argument("--ranks", type=whole(1, 64), help="refuse another number of ranks")
    options = parser.parse_args()
    if options.model is not None:
        if options.hidden is not None:
            parser.error("--hidden and --model: one of them")
        options.hidden = hidden_size(parser, options.model)
    options.hidden = options.hidden or HIDDEN
    return options


def hidden_size(parser: argparse.ArgumentParser, model: Path) -> int:
    """hidden_size of a model's config.json, its own or that of its language part."""
    path = model / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except OSError as error:
        parser.error(f"--model {str(model)!r}: {path}: {error.strerror} on {platform.node()}")
    except ValueError as error:
        parser.error(f"--model {str(model)!r}: {path} is not JSON: {error}")
    parts = [config, config.get("text_config")] if isinstance(config, dict) else []
    for part in parts:
        value = part.get("hidden_size") if isinstance(part, dict) else None
        if isinstance(value, int) and value > 0:
            return value
    return parser.error(f"--model {str(model)!r}: {path} has no hidden_size; use --hidden N")


if __name__ == "__main__":
    main()
