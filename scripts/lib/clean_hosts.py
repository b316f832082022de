"""End what is left of our ranks, on every host of a run, and see that the port is free.

end_ranks.sh does it on each host, by recorded pid; this calls it everywhere at once, with
a deadline, since a host that is down must not hold the others up. Used by supervise.py
between two starts and at the end.
"""

import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from on_hosts import LOCAL_HOST, run_on_hosts

NOT_STARTED = 127  # bash, ssh or end_ranks.sh itself is missing
SLACK_S = 20.0  # For ssh and for end_ranks.sh's own waits beyond its grace.
END_RANKS = Path(__file__).resolve().with_name("end_ranks.sh")


def read_hosts(run_dir: Path) -> list[str]:
    """Return the hosts recorded in RUN_DIR/hosts, each once; this one if there is none."""
    try:
        names = (run_dir / "hosts").read_text().split("\n")
    except OSError:
        names = []
    return list(dict.fromkeys(name.strip() for name in names if name.strip())) or [LOCAL_HOST]


def end_ranks_everywhere(
    run_dir: Path, grace_s: int, say: Callable[[str], None], hosts: Sequence[str] | None = None
) -> bool:
    """Run end_ranks.sh on every host (of the record, if none are named); `say` what it did. True
    if no rank is left."""
    command = ["bash", str(END_RANKS), str(run_dir), str(grace_s)]
    # In sessions of their own: a Ctrl-C in the terminal must not cut the cleaning short.
    answers = run_on_hosts(
        read_hosts(run_dir) if hosts is None else hosts, command, within_s=grace_s + SLACK_S
    )
    for answer in answers:
        if answer.timed_out:
            say(f"{answer.host}: no answer while looking for left ranks")
        elif answer.code == NOT_STARTED:
            say(f"{answer.host}: cannot look for left ranks: {answer.reason}")
        else:
            for line in [*answer.output.splitlines(), *answer.errors.splitlines()]:
                say(f"{answer.host}: {line}")
        if answer.unreachable:
            say(f"{answer.host}: cannot be reached to look for left ranks")
    return all(answer.code == 0 for answer in answers)


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
