"""End what is left of our ranks, on every host of a run, and see that the port is free.

end_ranks.sh does it on each host, by recorded pid; this calls it everywhere at once, with
a deadline, since a host that is down must not hold the others up. It also tells which hosts
are away: do not answer ssh at all. Used by supervise.py between two starts and at the end.
"""

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.lib.hosts.on_hosts import LOCAL_HOST, Answer, run_on_hosts

NOT_STARTED = 127  # bash, ssh or end_ranks.sh itself is missing
SLACK_S = 20.0  # For ssh and for end_ranks.sh's own waits beyond its grace.
LOOK_WITHIN_S = 8.0  # For a host to say that it is there.
END_RANKS = Path(__file__).resolve().with_name("end_ranks.sh")


def read_hosts(run_dir: Path) -> list[str]:
    """Return the hosts recorded in RUN_DIR/hosts, each once; this one if there is none."""
    try:
        names = (run_dir / "hosts").read_text().split("\n")
    except OSError:
        names = []
    return list(dict.fromkeys(name.strip() for name in names if name.strip())) or [LOCAL_HOST]


@dataclass(frozen=True)
class Cleaned:
    """What came of it. away: the hosts that do not answer, each with the reason."""

    no_rank_left: bool
    away: tuple[str, ...] = ()


def end_ranks_everywhere(
    run_dir: Path, grace_s: int, say: Callable[[str], None], hosts: Sequence[str] | None = None
) -> Cleaned:
    """Run end_ranks.sh on every host (of the record, if none are named); `say` what it did."""
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
    return Cleaned(all(answer.code == 0 for answer in answers), _away(answers))


def find_away(run_dir: Path) -> tuple[str, ...]:
    """The hosts that do not answer now, each with the reason."""
    return _away(run_on_hosts(read_hosts(run_dir), ["true"], within_s=LOOK_WITHIN_S))


def _away(answers: list[Answer]) -> tuple[str, ...]:
    away = (a for a in answers if a.host != LOCAL_HOST and (a.timed_out or a.unreachable))
    return tuple(f"{answer.host} ({answer.reason})" for answer in away)


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
