"""End what is left of our ranks, on every host of a run, and see that the port is free.

end_ranks.sh does it on each host, by recorded pid; this calls it everywhere at once, with
a deadline, since a host that is down must not hold the others up. Used by supervise.py
between two starts and at the end.
"""

import shlex
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

LOCAL_HOST = "127.0.0.1"
SLACK_S = 20.0  # For ssh and for end_ranks.sh's own waits beyond its grace.
END_RANKS = Path(__file__).resolve().with_name("end_ranks.sh")


def read_hosts(run_dir: Path) -> list[str]:
    """Return the hosts recorded in RUN_DIR/hosts, each once; this one if there is none."""
    try:
        names = (run_dir / "hosts").read_text().split("\n")
    except OSError:
        names = []
    return list(dict.fromkeys(name.strip() for name in names if name.strip())) or [LOCAL_HOST]


def end_ranks_everywhere(run_dir: Path, grace_s: int, say: Callable[[str], None]) -> bool:
    """Run end_ranks.sh on every host; `say` what it did. True if no rank is left."""
    script = ["bash", str(END_RANKS), str(run_dir), str(grace_s)]
    ssh = ["ssh", "-n", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5"]
    started = []
    for host in read_hosts(run_dir):
        command = script if host == LOCAL_HOST else [*ssh, host, shlex.join(script)]
        try:
            # A session of its own: a Ctrl-C in the terminal must not cut the cleaning short.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            say(f"{host}: cannot look for left ranks: {error}")
            started.append((host, None))
        else:
            started.append((host, process))
    deadline = time.monotonic() + grace_s + SLACK_S
    clean = True
    for host, process in started:
        clean = process is not None and _finish(host, process, deadline, say) and clean
    return clean


def _finish(
    host: str, process: subprocess.Popen, deadline: float, say: Callable[[str], None]
) -> bool:
    try:
        output, _ = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        say(f"{host}: no answer while looking for left ranks")
        return False
    for line in output.splitlines():
        say(f"{host}: {line}")
    if process.returncode == 255 and host != LOCAL_HOST:
        say(f"{host}: cannot be reached to look for left ranks")
    return process.returncode == 0


def is_port_free(host: str, port: int) -> bool:
    """True if nothing accepts connections there.

    Connecting rather than binding: on macOS a bind to all addresses succeeds beside
    another program's to one of them.
    """
    try:
        with socket.create_connection((host, port), timeout=2):
            return False
    except ConnectionRefusedError:
        return True
    except OSError:  # Rank 0 is elsewhere and does not answer: nobody serves there.
        return True
