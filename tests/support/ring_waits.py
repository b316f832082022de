"""Has the ranks of the tests share two cores: their ring waits without taking a core for it.

A thread of MLX's ring asks its socket for the next bytes without pause, as long as there are none.
On a Mac with cores to spare nothing waits for that; here the rank that the bytes come from waits,
for its turn on that core. A library (ring_waits.c, preloaded into everything that the tests start,
at work in ranks) puts a short sleep where there is nothing yet. Without a C compiler the tests take
several times as long.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
LIBRARY = "ring_waits.so"


def prepare(folder: Path) -> None:
    """For all that this process starts from now on, beside what it has preloaded already. folder:
    one that everybody may read."""
    compiler = shutil.which("cc")
    if not sys.platform.startswith("linux") or compiler is None:
        return
    made = folder / LIBRARY
    subprocess.run(
        [compiler, "-O2", "-Wall", "-shared", "-fPIC", "-o", made, SOURCE, "-ldl"], check=True
    )
    before = os.environ.get("LD_PRELOAD")
    os.environ["LD_PRELOAD"] = f"{before}:{made}" if before else str(made)


def library() -> str:
    """Its path, of what this process starts; empty where there is none."""
    preloaded = os.environ.get("LD_PRELOAD", "").split(":")
    return next((path for path in preloaded if path.endswith(LIBRARY)), "")
