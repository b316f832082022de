#!/usr/bin/env python3
"""Writes the unit of a service, for launchd or for systemd; prints it.

Usage: service_unit.py launchd|systemd --port P --python FILE --settings FILE --stop-within S
                       [--user NAME] [--log FILE]
       service_unit.py settings-of UNIT

--user: the user as whom a service of the whole system runs; without it the unit is the user's
own. --log: where launchd puts what service_run.py says (systemd has its journal). settings-of
prints which settings file a unit that exists belongs to.

The unit starts service_run.py by absolute paths and holds no setting, so no secret either.
Standard library only. Exit codes: 0 done, 1 UNIT is not one of ours, 2 usage.
"""

import argparse
import plistlib
import sys
from pathlib import Path

SERVICE_RUN = (str(Path(__file__).resolve().parents[1] / "module.py"), "lib.service.service_run")
START_AGAIN_S = 30  # After a crash of service_run.py itself; it has its own pauses.
CRASHES, CRASHES_WITHIN_S = 5, 3600
GIVE_UP_CODE = 78  # server/protocol/exit_codes.py's CONFIG
SETTINGS_COMMENT = "# settings: "
PYTHON_REFUSED = "\"'\\$"  # Fine in arguments.
OPEN_FILES = 8192  # Rank 0 serves 1,024 connections, launchd allows 256 files.


def launchd_unit(
    port: int, python: str, settings: str, stop_within_s: int, user: str, log: str
) -> bytes:
    """A property list for /Library/LaunchDaemons (user given) or ~/Library/LaunchAgents."""
    unit = {
        "Label": launchd_label(port),
        # launchd cannot tell one failure from another: with 0 it takes a server that gave up
        # for one that is done, and leaves it alone.
        "ProgramArguments": [python, *SERVICE_RUN, settings, "--give-up-code", "0"],
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": START_AGAIN_S,
        # launchd's own 20 s would kill ranks in their drain, and strand the memory they wired.
        "ExitTimeOut": stop_within_s,
        # Others are slowed down when the system thinks that nobody waits for them.
        "ProcessType": "Interactive",
        "SoftResourceLimits": {"NumberOfFiles": OPEN_FILES},
        # All of the server's own output is in its log already.
        "StandardOutPath": "/dev/null",
        "StandardErrorPath": log,
    }
    if user:
        unit["UserName"] = user
    return plistlib.dumps(unit, sort_keys=False)


def launchd_label(port: int) -> str:
    return f"mlx-cluster.server.{port}"


def systemd_unit(port: int, python: str, settings: str, stop_within_s: int, user: str) -> bytes:
    """A unit for /etc/systemd/system (user given) or ~/.config/systemd/user."""
    words = [python, *SERVICE_RUN, settings]
    text = f"""\
{SETTINGS_COMMENT}{settings}
[Unit]
Description=MLX cluster server on port {port}
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec={CRASHES_WITHIN_S}
StartLimitBurst={CRASHES}

[Service]
Type=exec
ExecStart={" ".join(map(quote_word, words))}
{f"User={user}" if user else "# Runs as the user whose unit this is."}
# Its server's own output is in the server's log already.
StandardOutput=null
# SIGTERM to service_run.py alone, which passes it on; what is left after the time gets SIGKILL.
KillMode=mixed
TimeoutStopSec={stop_within_s}
Restart=on-failure
RestartSec={START_AGAIN_S}
# {GIVE_UP_CODE}: it gave up; 2: this unit calls it wrongly.
RestartPreventExitStatus=2 {GIVE_UP_CODE}
LimitNOFILE={OPEN_FILES}:524288

[Install]
WantedBy={"multi-user.target" if user else "default.target"}
"""
    if not user:  # A user's manager knows nothing of the network.
        text = "".join(
            line for line in text.splitlines(keepends=True) if "network-online" not in line
        )
    return text.encode()


def quote_word(word: str) -> str:
    """One word of ExecStart: systemd expands % and $, and has C's escapes within quotes."""
    for character, escaped in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        word = word.replace(character, escaped)
    return f'"{word}"'


def settings_of(unit: bytes) -> str:
    """The settings file of a unit of ours. Raises ValueError for others."""
    first = unit.split(b"\n", 1)[0].decode(errors="replace")
    if first.startswith(SETTINGS_COMMENT):
        return first.removeprefix(SETTINGS_COMMENT)
    try:
        _, program, *rest = plistlib.loads(unit)["ProgramArguments"]
        if program.endswith("/module.py"):
            ours = rest.pop(0) == SERVICE_RUN[1]
        else:  # As units were before: an upgrade replaces them.
            ours = program.endswith("/service_run.py")
        settings = rest[0]
    except Exception:  # plistlib lets many kinds through.
        ours = False
    if not ours:
        raise ValueError("not a unit of ours")
    return settings


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["settings-of"] and len(arguments) == 2:
        try:
            print(settings_of(Path(arguments[1]).read_bytes()))
        except (OSError, ValueError) as error:
            print(f"service_unit.py: {arguments[1]}: {error}", file=sys.stderr)
            return 1
        return 0
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("manager", choices=("launchd", "systemd"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--python", required=True)
    parser.add_argument("--settings", required=True)
    parser.add_argument("--stop-within", type=int, required=True)
    parser.add_argument("--user", default="")
    parser.add_argument("--log", default="/dev/null")
    args = parser.parse_args(arguments)
    if any("\n" in text for text in (args.python, args.settings, args.user, args.log)):
        parser.error("a path with a line break in it cannot be put into a unit")
    if args.manager == "systemd" and set(args.python) & set(PYTHON_REFUSED):
        parser.error(f"--python {args.python}: systemd starts no program with one of "
                     f"{PYTHON_REFUSED} in its path")  # fmt: skip
    values = (args.port, args.python, args.settings, args.stop_within, args.user)
    unit = launchd_unit(*values, args.log) if args.manager == "launchd" else systemd_unit(*values)
    sys.stdout.buffer.write(unit)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
