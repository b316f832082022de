#!/usr/bin/env python3
"""Run mlx_lm.server as one rank, and note this rank's process id.

usage: peer_server.py RUN_DIR ARGUMENT...

The arguments are mlx_lm.server's. Started by mlx_launch.py, like our own server; the
process id goes to RUN_DIR/rank-N.pid. Nothing of mlx_lm.server is changed.
"""

import os
import sys
from pathlib import Path


def main() -> None:
    """Becomes the server; never returns while it serves."""
    run_dir = Path(sys.argv[1])
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / f"rank-{os.environ.get('MLX_RANK') or 0}.pid").write_text(f"{os.getpid()}\n")
    hostfile = os.environ.get("MLX_HOSTFILE")
    if hostfile and not Path(hostfile).read_text().strip():
        # For one rank the launcher writes an empty one, which MLX cannot parse.
        del os.environ["MLX_HOSTFILE"]
    sys.argv[:] = ["mlx_lm.server", *sys.argv[2:]]
    from mlx_lm.server import main as serve

    serve()


if __name__ == "__main__":
    main()
