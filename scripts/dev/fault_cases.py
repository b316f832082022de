"""What may happen to a server that serves, in each phase, and what came of it.

A case starts a server of its own, holds requests in the phase, puts the fault in, and watches until
a good answer comes again, or until everything is gone.
"""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.faults import CUT, HUNG, STALL_TIMEOUT_S, Client, Server

LAST_WORDS_S = 10  # for held requests to end once all else has
GONE = "all gone"
WENT_ON = "went on"
PAUSE_S = STALL_TIMEOUT_S + 4


@dataclass
class Result:
    """What a case showed. told_s: until the last held request had its end; seconds: until the
    next good answer, or until everything was gone; counts are by outcome."""

    fault: str
    phase: str
    end: str
    held: dict[str, int]
    told_s: float
    seconds: float
    newcomers: dict[str, int]
    left: int
    last: str
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%d"))


def complaints(result: Result) -> list[str]:
    """What should not have been."""
    found = []
    silent = any(fault.silent and fault.title == result.fault for fault in FAULTS.values())
    if result.held.get(HUNG):
        found.append("a request hangs")
    if result.held.get(CUT) and not silent:
        found.append("a request was cut without a word")
    if result.newcomers.get(HUNG) or result.newcomers.get("wrong answer"):
        found.append(f"newcomers saw {result.newcomers}")
    if result.left:
        found.append(f"{result.left} processes left over")
    return found


@dataclass(frozen=True)
class Fault:
    """One row of the table. silent: rank 0's process is killed, so nobody can tell clients."""

    title: str
    put_in: Callable[[Server], None]
    end: str = "served again"
    silent: bool = False
    settings: dict = field(default_factory=dict)
    before: Callable[[Server], None] | None = None


# Faults that strike a server that serves, in each phase.


def kill_rank(number: int) -> Callable[[Server], None]:
    return lambda server: os.kill(server.rank(number), signal.SIGKILL)


def stop_rank(number: int) -> Callable[[Server], None]:
    return lambda server: os.kill(server.rank(number), signal.SIGSTOP)


def raise_in_step(number: int) -> Callable[[Server], None]:
    return lambda server: (server.fault_dir / f"raise-{number}").touch()


def garble(how: str) -> Callable[[Server], None]:
    """The next message that rank 1 gets; tests/support/fault_site tells how."""
    return lambda server: server.garble(1, "any", how)


def pause_all(server: Server) -> None:
    server.pause(PAUSE_S)


def fill_disk(server: Server) -> None:
    """Every write to the log fails, as on a full disk."""
    server.log_path.symlink_to("/dev/full")


FAULTS = {
    "kill-rank-0": Fault("SIGKILL of rank 0", kill_rank(0), silent=True),
    "kill-rank-1": Fault("SIGKILL of rank 1", kill_rank(1)),
    "stop-rank-0": Fault("SIGSTOP of rank 0", stop_rank(0)),
    "stop-rank-1": Fault("SIGSTOP of rank 1", stop_rank(1)),
    "raise-rank-0": Fault("rank 0 raises in its step", raise_in_step(0)),
    "raise-rank-1": Fault("rank 1 raises in its step", raise_in_step(1)),
    "flip-bit": Fault("a message that reaches rank 1 with a bit flipped", garble("flipped")),
    "lose-message": Fault("a message that rank 1 loses, so that all later ones are shifted",
                          garble("shifted")),
    "pause": Fault(f"SIGSTOP of everything, SIGCONT after {PAUSE_S} s", pause_all, end=WENT_ON),
    "kill-launcher": Fault(
        "SIGKILL of the launcher", lambda server: os.kill(server.launcher, signal.SIGKILL)
    ),
    "kill-supervisor": Fault(
        "SIGKILL of the supervisor",
        lambda server: os.kill(server.supervisor, signal.SIGKILL),
        end=GONE,
    ),
    "full-disk": Fault("full disk for the log, and SIGKILL of rank 1", kill_rank(1),
                       before=fill_disk),
}  # fmt: skip


def run_phase(name: str, phase: str, folder: Path, model: Path) -> Result:
    """One fault in one phase."""
    fault = FAULTS[name]
    server = Server(folder, model, **fault.settings)
    try:
        if fault.before is not None:
            fault.before(server)
        if server.start() != 0:
            raise AssertionError(server.output)
        held = server.hold(phase)
        struck = time.monotonic()
        fault.put_in(server)
        if fault.end == GONE:
            seconds, newcomers, left = server.wait_gone(struck), Counter(), []
            last = server.last_line()
        else:
            if fault.end == WENT_ON:
                _see_going_on(server, held)
            seconds, newcomers = server.wait_good_answer(struck)
            left = server.orphans()
            last = server.get("/health")[1]["last_failure"]
            assert fault.end != WENT_ON or not last, f"it did not go on: {last}"
        for client in held:
            client.join(LAST_WORDS_S)
        told = [(client.ended_at or float("inf")) - struck for client in held]
        outcomes = Counter(client.outcome for client in held)
        return Result(
            fault.title, phase, fault.end, outcomes, max(told, default=0.0), seconds,
            newcomers, len(left), last,
        )  # fmt: skip
    finally:
        server.close()


def _see_going_on(server: Server, held: list[Client]) -> None:
    """Waits for more of each answer, and has its client leave: streams may hold all places."""
    went_on = [client for client in held if server.goes_on(client)]
    for client in went_on:
        client.leave()
        client.join(LAST_WORDS_S)
        client.outcome = WENT_ON
