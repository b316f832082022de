#!/usr/bin/env python3
"""Run a module of scripts/, with the checkout as the place from which it imports.

Usage: module.py FOLDER.MODULE [ARGUMENT...]      for instance: module.py lib.hosts.hostfile --help

By an absolute path, so that it works from any folder, over ssh and in a service's unit, and says in
`ps` to which checkout a process belongs. Standard library only.
"""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parents[1]), *(path for path in sys.path if path != str(here))]
    try:
        runpy.run_module(f"scripts.{sys.argv.pop(1)}", run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:  # in the middle of an import, say
        sys.exit(130)
