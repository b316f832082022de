"""Which programs a rank runs: Python, MLX, mlx-lm, and this code by a hash. Imports no mlx.

Called on every rank for the handshake, and on rank 0's HTTP threads.
"""

import functools
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from server.protocol import fingerprint


@functools.cache
def versions() -> dict[str, str]:
    """The versions that /cluster and /metrics show. "missing": not installed."""
    return {
        "python": platform.python_version(),
        "mlx": _version("mlx"),
        "mlx_lm": _version("mlx-lm"),
        "code": code_fingerprint(),
    }


@functools.cache
def code_fingerprint() -> str:
    """One hash of all source files of the server."""
    return fingerprint.code_fingerprint(Path(__file__).resolve().parents[2])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
