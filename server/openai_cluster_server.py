#!/usr/bin/env python3
"""The entry that mlx.launch runs on every rank; main.py has the rest. --help tells how.

Imports of ours are found from the checkout, not from this folder, in which a module may be named
like one of the standard library's.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from server.main import main

    main()
