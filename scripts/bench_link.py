#!/usr/bin/env python3
"""Latency and bandwidth of the ranks' sums, by message size. --help tells the rest."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from scripts.lib.link.bench_link import main

    main()
