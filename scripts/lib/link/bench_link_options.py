"""The options of bench_link.py that bench_link.sh takes, too. Standard library; Python 3.9."""

from __future__ import annotations

import argparse

from scripts.lib.verbs.shared import decimal, one_of, whole

DTYPES = ("bfloat16", "float16", "float32")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds them, with their defaults."""
    parser.add_argument("--hidden", type=whole(1, 2**20), help="values of a token")
    parser.add_argument("--dtype", type=one_of(*DTYPES), default="bfloat16", help="of a value")
    parser.add_argument("--max-mb", type=whole(1, 4096), default=64, help="the largest message")
    parser.add_argument("--nominal-gbps", type=decimal(0.001, 10_000), help="of a link, Gb/s")
    parser.add_argument("--seconds", type=decimal(0.01, 60), default=0.5, help="for each size")
    parser.add_argument(
        "--deadline", type=decimal(1, 86_400), default=600, help="seconds for it all"
    )
    parser.add_argument("--json", action="store_true", help="one JSON line last, as ever")
