"""What follows when the launcher has ended: nothing, another start, or giving up.

A pure function of what happened, called by supervise.py; it keeps no state and reads no
clock, so every case of it is a line in a test.
"""

from dataclasses import dataclass

from server.exit_codes import CONFIG, NOT_JOINED, OK

HEALTHY_S = 300.0  # A server that served this long ends a row of failures.
LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True)
class Ending:
    """How one run of the launcher ended."""

    code: int
    served_s: float | None  # Seconds since /health first answered; None: it never did.
    asked: bool  # Somebody asked the supervisor to stop.
    first_start: bool  # None before it ever got ready.


@dataclass(frozen=True)
class Verdict:
    """`start_again` after `pause_s`, or stop with `exit_code` and `reason`."""

    start_again: bool
    reason: str
    failures: int  # In a row, this one included.
    pause_s: float = 0.0
    exit_code: int = 0


def judge(ending: Ending, failures: int, *, may_restart: bool, max_failures: int) -> Verdict:
    """Decide by how it ended and by the number of `failures` in a row before it.

    A server that served for HEALTHY_S forgives what was before it: the row counts
    failures to get going, not accidents over a month. Time is counted from the first
    healthy answer, so that a load of many minutes does not look like service.
    """
    if ending.asked:
        return Verdict(False, "stopped as asked", failures)
    if ending.code == OK:
        return Verdict(False, "the ranks ended as planned", failures)
    if ending.served_s is not None and ending.served_s >= HEALTHY_S:
        failures = 0
    failures += 1
    if ending.code == CONFIG:
        # Not 1: a service manager must be able to tell that it should not try, either.
        return Verdict(False, "starting again cannot help", failures, exit_code=CONFIG)
    # Ranks that did not find each other may do so the next time, unlike a wrong model.
    if ending.first_start and ending.served_s is None and ending.code != NOT_JOINED:
        return Verdict(False, "the server did not start", failures, exit_code=1)
    if not may_restart:
        return Verdict(False, "restarts are off", failures, exit_code=1)
    if failures >= max_failures:
        return Verdict(False, f"{failures} failures in a row", failures, exit_code=1)
    pause_s = min(LONGEST_PAUSE_S, 2.0 ** (failures - 1))
    return Verdict(True, f"failure {failures} in a row", failures, pause_s=pause_s)
