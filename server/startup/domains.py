"""How many protection domains of this Mac are gone, and how often JACCL was started since its boot.

Called once on the main thread of every rank that joins over JACCL, before MLX opens a device. A
start that fails there is reported to keep a protection domain until the Mac is restarted, of some
eleven, and without one RDMA cannot be used at all. So each start is counted, in run/ of the
checkout, the domains are counted as the kernel has them (where it does not say, each failed start
stands for one), and a start that could take the last is refused: while there is one, whoever comes
to look can still use the devices.
"""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from server.protocol.domains import COUNT, MOST, parse_count

BOOT = ("/usr/sbin/sysctl", "-n", "kern.bootsessionuuid")
RECORD = Path(__file__).resolve().parents[2] / "run" / "jaccl-starts.json"
WITHIN_S = 5.0


class UsedUp(Exception):
    """This Mac has to be restarted before RDMA can be used on it."""


@dataclass(frozen=True)
class Starts:
    """Of JACCL on this host, since it booted as boot says."""

    boot: str
    begun: int = 0
    joined: int = 0

    @property
    def failed(self) -> int:
        return self.begun - self.joined


@contextlib.contextmanager
def counted(devices: int, harmless: type[Exception], most: int = MOST) -> Iterator[str]:
    """While the body joins the ranks with so many devices: counts it, as failed if it raises.

    harmless: what it raises where no device was opened, which counts as no start. most: domains of
    this Mac, 0 if none are to be saved. Yields what to tell; "" where nothing is known. Raises
    UsedUp instead of beginning.
    """
    held, boot = parse_count(_ask(COUNT)), _ask(BOOT).strip()
    starts = _read(boot)
    gone = starts.failed if held is None else held
    told = _describe(held, starts, most or MOST)
    if most and gone and gone + devices >= most:
        raise UsedUp(
            f"{told}; this start needs {devices}, and the last must not go: restart this Mac, which"
            " gives them back (or set PROTECTION_DOMAINS, if it has more)"
        )
    before, starts = starts, replace(starts, begun=starts.begun + 1)
    _write(starts)  # at once: a start that hangs is ended by the system's hand
    try:
        yield told
    except harmless:
        _write(before)
        raise
    _write(replace(starts, joined=starts.joined + 1))


def _describe(held: int | None, starts: Starts, most: int) -> str:
    parts = []
    if held is not None:
        parts.append(f"{held} of about {most} protection domains are in use")
    if starts.boot:
        count = f"{starts.begun} starts of JACCL since this Mac booted"
        parts.append(f"{count}, {starts.failed} failed")
    return "RDMA: " + "; ".join(parts) if parts else ""


def _ask(command: tuple[str, ...]) -> str:
    """Its output, "" without any: not a Mac, or an older one."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=WITHIN_S, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError, ValueError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _read(boot: str) -> Starts:
    try:
        kept = Starts(**json.loads(RECORD.read_text()))
        if boot and kept.boot == boot and 0 <= kept.joined <= kept.begun:
            return kept
    except (OSError, ValueError, TypeError):
        pass  # none yet, or half of one
    return Starts(boot)


def _write(starts: Starts) -> None:
    if not starts.boot:
        return
    with contextlib.suppress(OSError):  # A count that cannot be kept must not cost the start.
        RECORD.parent.mkdir(exist_ok=True)
        fresh = RECORD.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(starts)))
        fresh.replace(RECORD)
