#!/usr/bin/env python3
"""Distributed tokens/sec of one request, without HTTP. --help tells the rest."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from scripts.lib.bench.tps import main

    main()
