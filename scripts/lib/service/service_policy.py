"""What a service does when its server has ended: nothing, another try, or giving up for good.

A pure function, called by service_run.py. The supervisor has its own rules for faults
(restart_policy.py); this is about what happens when it has given up, or was killed, with nobody
there to look. A service manager that started it again at once and for ever would be worse than
nothing: each failed start of JACCL can cost a Mac something that only a reboot gives back.
"""

from dataclasses import dataclass

from scripts.lib.verbs.exit_codes import USAGE
from server.protocol.exit_codes import CONFIG, OK

TRIES = 3  # Starts in a row that end badly.
PAUSE_S = 60.0
HEALTHY_S = 3600.0  # A server that lived this long begins a new row.


@dataclass(frozen=True)
class Next:
    """start_again after pause_s, or end: as asked, or given_up until somebody looks."""

    start_again: bool
    reason: str
    tries: int
    pause_s: float = 0.0
    given_up: bool = False


def what_next(code: int, lived_s: float, *, asked: bool, tries: int, missing: bool = False) -> Next:
    """code: the run script's exit code. tries: starts before this one that ended badly in a row.
    missing: a host does not answer, so that this end says nothing; the next start waits for it."""
    if asked:
        return Next(False, "stopped as asked", tries)
    if code == OK:
        return Next(False, "the server was stopped; it starts again at the next boot", tries)
    if code in (USAGE, CONFIG):
        return Next(False, "starting again cannot help", tries, given_up=True)
    if missing:
        return Next(True, "not all hosts answer", tries, PAUSE_S)
    tries = 1 if lived_s >= HEALTHY_S else tries + 1
    if tries >= TRIES:
        return Next(False, f"{tries} starts in a row ended badly", tries, given_up=True)
    return Next(True, f"start {tries} of {TRIES} ended badly", tries, PAUSE_S)
