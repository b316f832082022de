"""The options of jaccl_tps_bench.py that bench.sh takes, too. Standard library; Python 3.9."""

from __future__ import annotations

import argparse

from scripts.lib.verbs.shared import some, whole

PROMPT = "Write 5 sentences about Thunderbolt RDMA."
MOST = 10**9


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds them, with their defaults."""
    parser.add_argument("--prompt", type=some, default=PROMPT)
    parser.add_argument("--max-tokens", type=whole(1, MOST), default=256)
    parser.add_argument(
        "--warmup", type=whole(0, MOST), default=1, help="runs that are not counted"
    )
    parser.add_argument("--repeats", type=whole(1, MOST), default=3, help="runs that are counted")
    parser.add_argument("--raw", action="store_true", help="no chat template around the prompt")
    parser.add_argument("--ignore-eos", action="store_true", help="always --max-tokens long")
    parser.add_argument("--prefill-step", type=whole(16, MOST), default=2048, help="tokens a chunk")
    parser.add_argument(
        "--speculate", action="store_true", help="draft, as the server does with SPECULATE=auto"
    )
    parser.add_argument("--json", action="store_true", help="one JSON line last")
