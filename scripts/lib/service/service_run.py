#!/usr/bin/env python3
"""What launchd or systemd runs: the server in the foreground, after waiting for its hosts.

Usage: service_run.py SETTINGS [--give-up-code N]

SETTINGS is the file that install_service.sh wrote: lines NAME=VALUE for the environment of the
run script, taken literally, and one ARGUMENT=... for each of its arguments.

- After a boot the other hosts, or an address of this one, may not be there yet: it waits until
  each host of the hostfile lets us in and HTTP_HOST can be bound, for as long as that takes, and
  says for what.
- It passes every SIGTERM, SIGINT and SIGHUP on to the server and waits for its end, however long
  the drain takes: the service manager has a time limit, this has none.
- What it does is also the second line of service.says beside SETTINGS, for status.sh.
- What follows an end that nobody asked for is in service_policy.py. When it gives up it ends with
  N (78): a code after which the service manager must not start it again.

Exit codes: 0 stopped as asked; N gave up, or there are no settings; 2 usage. Standard library
only, one thread.
"""

import argparse
import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from scripts.lib.hosts.hostfile import HostfileError, read_hostfile
from scripts.lib.hosts.on_hosts import LOCAL_HOST, run_on_hosts
from scripts.lib.launch.signal_pipe import SignalPipe
from scripts.lib.service.service_policy import what_next
from server.protocol.exit_codes import CONFIG, explain

ROOT = Path(__file__).resolve().parents[3]
RUN_SCRIPT = ROOT / "scripts" / "run_openai_cluster_server.sh"
RECORD = "service.says"  # cluster_status/ask.py knows it too.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LOOK_EVERY_S = 10.0
ANSWER_WITHIN_S = 8.0
SAY_AGAIN_S = 600.0  # That it still waits for the same.
EVERY_ADDRESS = ("", "0.0.0.0", "::")


def say(text: str, record: Path | None = None) -> None:
    """To the service manager's log, and on record. A full disk is no reason to end."""
    with contextlib.suppress(OSError):
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} service: {text}", file=sys.stderr, flush=True)
    if record is not None:
        with contextlib.suppress(OSError):
            fresh = record.with_suffix(".new")
            fresh.write_text(f"{os.getpid()}\n{text}\n")
            fresh.replace(record)


def read_settings(text: str) -> tuple[dict[str, str], list[str]]:
    """The environment and the arguments that a settings file gives the run script."""
    environment, arguments = {}, []
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if not equals or line.startswith("#"):
            continue
        if name == "ARGUMENT":
            arguments.append(value)
        else:
            environment[name] = value
    return environment, arguments


class Service:
    """One server for as long as the service runs. `run` does everything."""

    def __init__(
        self,
        environment: dict[str, str],
        arguments: list[str],
        give_up_code: int,
        record: Path,
    ):
        self._record = record
        self._settings = environment
        self._arguments = arguments
        self._give_up_code = give_up_code
        self._signals = SignalPipe((*STOP_SIGNALS, signal.SIGCHLD))
        self._asked = False

    def run(self) -> int:
        """Run until it is over; return the exit code."""
        tries = 0
        while self._wait_for_all():
            began = time.monotonic()
            code = self._serve()
            lived_s = time.monotonic() - began
            missing = code != 0 and not self._asked and bool(self._missing())
            verdict = what_next(code, lived_s, asked=self._asked, tries=tries, missing=missing)
            tries = verdict.tries
            if not self._asked and code != 0:
                self._say(f"the server ended with {explain(code)}")
            if not verdict.start_again:
                self._say(f"over: {verdict.reason}")
                return self._give_up_code if verdict.given_up else 0
            self._say(f"{verdict.reason}: starting again in {verdict.pause_s:.0f} s")
            if not self._pause(verdict.pause_s):
                break
        self._say("over: stopped as asked")
        return 0

    def _say(self, text: str) -> None:
        say(text, self._record)

    def _serve(self) -> int:
        """Run the server to its end; pass signals on meanwhile."""
        self._say("starting the server")
        try:
            child = subprocess.Popen(
                [str(RUN_SCRIPT), *self._arguments],
                # launchd does not promise a HOME, and conda wants one.
                env={"HOME": str(Path.home()), **os.environ, **self._settings},
                stdin=subprocess.DEVNULL,
            )
        except OSError as error:
            self._say(f"{RUN_SCRIPT}: {error.strerror}")
            return 3
        with selectors.DefaultSelector() as selector:
            selector.register(self._signals, selectors.EVENT_READ)
            while child.poll() is None:
                selector.select()
                for _ in range(self._take_stops()):
                    child.send_signal(signal.SIGTERM)
        return child.returncode

    def _take_stops(self) -> int:
        count = sum(number in STOP_SIGNALS for number in self._signals.read())
        self._asked = self._asked or count > 0
        return count

    def _pause(self, seconds: float) -> bool:
        """Sleep; False when asked to stop."""
        until = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._signals, selectors.EVENT_READ)
            while self._take_stops() == 0 and (left := until - time.monotonic()) > 0:
                selector.select(left)
        return not self._asked

    # -- what must be there first

    def _wait_for_all(self) -> bool:
        """Until the hosts and the address are there; False when asked to stop."""
        told, told_at = "", 0.0
        while True:
            self._take_stops()
            if self._asked:
                return False
            missing = self._missing()
            if not missing:
                return True
            if missing != told or time.monotonic() - told_at > SAY_AGAIN_S:
                told, told_at = missing, time.monotonic()
                self._say(f"waiting: {missing}")
            if not self._pause(LOOK_EVERY_S):
                return False

    def _missing(self) -> str:
        """What is not there yet, in words."""
        hosts = self._hosts()
        found = [
            f"{answer.host}: {answer.reason}"
            for answer in run_on_hosts(hosts, ["true"], within_s=ANSWER_WITHIN_S)
            if answer.code != 0
        ]
        address = self._settings.get("HTTP_HOST", "")
        if not hosts and address not in EVERY_ADDRESS and not can_bind(address):
            found.append(f"HTTP_HOST={address} is no address of this machine yet")
        return "; ".join(found)

    def _hosts(self) -> list[str]:
        """The other hosts of the hostfile, each once. A wrong one is the run script's business."""
        try:
            hostfile = read_hostfile(Path(self._settings["HOSTFILE"]))
        except (KeyError, OSError, HostfileError):
            return []
        return list(dict.fromkeys(h.ssh for h in hostfile.hosts if h.ssh != LOCAL_HOST))


def can_bind(address: str) -> bool:
    """Whether this machine has the address; a name that has none is not there either."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[
            0
        ]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(place)
    except OSError:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("settings", type=Path)
    parser.add_argument("--give-up-code", type=int, default=CONFIG)
    args = parser.parse_args()
    try:
        environment, arguments = read_settings(args.settings.read_text())
    except OSError as error:
        say(f"over: {args.settings}: {error.strerror}; run install_service.sh again")
        return args.give_up_code
    record = args.settings.resolve().with_name(RECORD)
    os.chdir(ROOT)
    return Service(environment, arguments, args.give_up_code, record).run()


if __name__ == "__main__":
    sys.exit(main())
