"""What follows when the launcher has ended: nothing, another start, or giving up.

A pure function of what happened, called by supervise.py; it keeps no state and reads no
clock, so every case of it is a line in a test.

A cluster that cannot start is given up after a few tries: each start of JACCL that fails can
cost a Mac something that only a reboot gives back. One that did start, or whose hosts are
away, is not: it will serve again when what hit it is over.
"""

from dataclasses import dataclass

from server.protocol.exit_codes import CONFIG, OK

HEALTHY_S = 300.0  # A server that served this long ends a row of failures.
LONGEST_PAUSE_S = 30.0
# Of a command that cannot even begin: Python's, usage, a file or a tool that is missing, a shell's.
OF_OUR_MAKING = frozenset((1, 2, 3, 126, 127))


@dataclass(frozen=True)
class Ending:
    """How one run of the launcher ended."""

    code: int
    served_s: float | None  # Seconds since /health first answered; None: it never did.
    asked: bool  # Somebody asked the supervisor to stop.
    first_start: bool  # None before it ever got ready.
    away: tuple[str, ...] = ()  # Hosts that do not answer now that it has ended.


@dataclass(frozen=True)
class Row:
    """Failures in a row so far."""

    failures: int = 0  # Ends that nobody asked for. They make the pauses longer.
    unready: int = 0  # The last of them: starts that never got ready.


@dataclass(frozen=True)
class Verdict:
    """`start_again` after `pause_s` and when no host is away, or stop with `exit_code`."""

    start_again: bool
    reason: str
    row: Row  # This failure included.
    pause_s: float = 0.0
    exit_code: int = 0


def judge(ending: Ending, row: Row, *, may_restart: bool, max_failures: int) -> Verdict:
    """Decide by how it ended and by the `row` of failures before it.

    - A server that served for HEALTHY_S forgives what was before it. Time is counted from the
      first healthy answer, so that a load of many minutes does not look like service.
    - One that got ready at all shows that the cluster can start: only starts that never got
      ready count towards max_failures.
    - While a host is away nothing counts: that a start without it fails says nothing.
    - A first start is tried again like any other: a rank that was late, a port that has no address
      yet and a machine short of memory are no mistakes. What a mistake in settings or a model ends
      has a code of its own (CONFIG); what cannot even begin (OF_OUR_MAKING) never got so far.
    """
    if ending.asked:
        return Verdict(False, "stopped as asked", row)
    if ending.code == OK:
        return Verdict(False, "the ranks ended as planned", row)
    if ending.code == CONFIG:
        # Not 1: a service manager must be able to tell that it should not try, either.
        return Verdict(False, "starting again cannot help", row, exit_code=CONFIG)
    away = f"no answer from {', '.join(ending.away)}" if ending.away else ""
    if ending.first_start and ending.served_s is None and ending.code in OF_OUR_MAKING:
        reason = f"the server did not start{away and f'; {away}'}"
        return Verdict(False, reason, row, exit_code=1)
    if not may_restart:
        return Verdict(False, f"restarts are off{away and f'; {away}'}", row, exit_code=1)
    if away:
        return Verdict(True, away, row)
    healthy = ending.served_s is not None and ending.served_s >= HEALTHY_S
    row = Row(
        failures=1 if healthy else row.failures + 1,
        unready=row.unready + 1 if ending.served_s is None else 0,
    )
    if row.unready >= max_failures:
        return Verdict(False, f"{row.unready} failed starts in a row", row, exit_code=1)
    pause_s = min(LONGEST_PAUSE_S, 2.0 ** (row.failures - 1))
    return Verdict(True, f"failure {row.failures} in a row", row, pause_s=pause_s)
