"""What a start leaves under run/PORT for the other scripts, and the keys that it brings to rank 0.

Called by supervise.py once it holds the lock of that folder, never before: of two starts for one
port the one that the lock turns away must not have touched what describes the other.
"""

import os
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.lib.hosts.on_hosts import SSH_OPTIONS
from server.protocol.settings_table import BY_NAME

KEYS_WITHIN_S = 30.0


@dataclass(frozen=True)
class Start:
    """hosts: ssh name of each rank, in rank order; empty: unknown, what is on record stays.
    started_with: lines NAME=VALUE for status.sh and logs.sh, no secrets. keys_to: the remote host
    of rank 0, if it needs the keys."""

    hosts: Sequence[str]
    started_with: Sequence[str]
    keys_to: str | None


class CannotStart(Exception):
    """Something that a start needs could not be done; the message tells."""


def write_records(run_dir: Path, start: Start) -> None:
    """Each file whole or not at all: others read them at any time. Raises CannotStart: stop and
    status would not find what was started without them."""
    # The stop script must wait as long as this server may drain.
    drain_timeout = [os.environ.get("DRAIN_TIMEOUT") or str(BY_NAME["DRAIN_TIMEOUT"].default)]
    try:
        if start.hosts:
            _write(run_dir / "hosts", start.hosts)
        if start.started_with:
            _write(run_dir / "started_with", start.started_with)
        _write(run_dir / "drain_timeout", drain_timeout)
        _write(run_dir / "rank_end_timeout", [os.environ.get("RANK_END_TIMEOUT") or ""])
    except OSError as error:
        raise CannotStart(f"cannot write {run_dir}: {error.strerror}") from error


def bring_keys(run_dir: Path, start: Start) -> None:
    """Takes API_KEY out of the environment, to a file of rank 0's host that only we can read.

    On ssh's stdin: a command line can be read by everybody. Raises CannotStart.
    """
    if start.keys_to is None:
        return
    keys = os.environ.pop("API_KEY", "").replace(",", "\n") + "\n"
    file = shlex.quote(str(run_dir / "api_key"))
    command = f"umask 077; mkdir -p {shlex.quote(str(run_dir))}; rm -f {file}; cat >{file}"
    try:
        done = subprocess.run(
            ["ssh", *SSH_OPTIONS, start.keys_to, command],
            input=keys.encode(), capture_output=True, timeout=KEYS_WITHIN_S, check=False,
        )  # fmt: skip
        reason = done.stderr.decode(errors="replace").strip() if done.returncode else ""
        failed = done.returncode != 0
    except (OSError, subprocess.TimeoutExpired) as error:
        failed, reason = True, str(error)
    if failed:
        why = f": {reason.splitlines()[-1]}" if reason else ""
        raise CannotStart(f"the API keys could not be brought to {start.keys_to} (rank 0){why}")


def _write(path: Path, lines: Sequence[str]) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.write_text("".join(f"{line}\n" for line in lines))
    fresh.replace(path)
