#!/usr/bin/env python3
"""What the server would make of a raw answer of a model. --help tells the rest."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from scripts.lib.right_python import ensure

    ensure(sys.path[0])
    from scripts.lib.model.read_answer import main

    sys.exit(main())
