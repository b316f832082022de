#!/usr/bin/env python3
"""Keep one server running: start its launcher, watch it, clean up, start it again.

Usage: supervise.py --run-dir D --run-id ID --log FILE --health-url URL [--detach]
                    [--no-restart] [--max-failures N] [--log-max-mb MB] [--host NAME]...
                    [--started-with NAME=VALUE]... [--keys-to HOST] -- LAUNCHER COMMAND...

The launcher runs in a session of its own; its stdin is a pipe that stays open as long as
this process lives (its lease), and what it prints goes to the log file and to stdout.

- The first SIGTERM, SIGINT or SIGHUP drains, each further one ends at once; both go to
  the launcher and from there to the ranks. A launcher that does not end is killed.
- An end that nobody asked for is a failure: its reason goes to the log, every host in
  RUN_DIR/hosts is cleaned of our ranks, and after a pause of 1, 2, 4 to 30 s the launcher
  is started again. restart_policy.py says when not: exit code 78, a first start that could
  not even begin, --no-restart, or N starts in a row that never got ready (default 5).
- While a host does not answer ssh nothing is started and nothing counts: it looks again
  after 2, 4, 8 to 60 s, for as long as that takes.
- The launcher learns the number of restarts and the last failure from
  SUPERVISOR_RESTARTS and SUPERVISOR_LAST_FAILURE, and from SUPERVISOR_STARTS_AGAIN whether
  there will be another start, so that the ranks can tell their clients.
- --detach: the same in the background, with output to the log only. Returns when the
  server is ready (exit 0), or when its supervisor has given up (exit 1, with the reason
  and the last lines of the rank that failed). Ctrl-C while waiting ends the server.

RUN_DIR/supervisor.pid holds our pid and the run id; a lock beside it, which the system
releases when we end in whatever way, keeps a second supervisor out. Nothing is written before
it is ours: the hosts of the ranks (--host, in rank order), what status.sh reads
(--started-with), and the keys in API_KEY, for a rank 0 on another host (--keys-to).

Exit codes: 0 ended as asked or as planned; 1 it failed, or something could not be ended;
2 usage; 78 it failed, and starting again cannot help. Standard library only. One process, one
loop; the only threads ask /health, clean the hosts and feed a slow terminal.
"""

import argparse
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

from scripts.lib.launch.launch_ranks import read_drain_timeout, read_end_timeout
from scripts.lib.logs.log_files import Mark
from scripts.lib.supervise.clean_hosts import read_hosts
from scripts.lib.supervise.start_records import CannotStart, Start, bring_keys, write_records
from scripts.lib.supervise.supervisor import Supervisor
from scripts.lib.supervise.wait_ready import Refused, read_failure, read_said, wait_for
from server.protocol.settings_table import BY_NAME

OURSELVES = (str(Path(__file__).resolve().parents[1] / "module.py"), "lib.supervise.supervise")


def supervise(args: argparse.Namespace) -> int:
    """Run a Supervisor, on record and alone in its RUN_DIR."""
    record = args.run_dir / "supervisor.pid"
    with contextlib.ExitStack() as stack:
        try:
            args.run_dir.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(args.run_dir / "supervisor.lock", "a"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = record.read_text().split("\n")[0] if record.exists() else "unknown"
                _refuse(args, f"supervise: already running (pid {holder})")
                return 1
            fresh = record.with_suffix(".new")
            fresh.write_text(f"{os.getpid()}\n{args.run_id}\n")
            fresh.replace(record)  # Whole or not at all: others read it at any time.
        except OSError as error:
            # Somebody is there to read it; and the stop script could not find what runs.
            _refuse(args, f"supervise: cannot write {args.run_dir}: {error.strerror}")
            return 1
        try:
            supervisor = Supervisor(
                args, read_drain_timeout(os.environ), read_end_timeout(os.environ)
            )
            start = Start(args.host, args.started_with, args.keys_to)
            # The last run may have been on hosts that this one does not have.
            gone = [host for host in read_hosts(args.run_dir) if host not in args.host]
            if args.host and gone:
                supervisor.end_ranks(gone)
            write_records(args.run_dir, start)
            bring_keys(args.run_dir, start)
            return supervisor.run()
        except CannotStart as error:
            _refuse(args, f"supervise: {error}")
            return 1
        finally:
            with contextlib.suppress(OSError):
                record.unlink(missing_ok=True)


def _refuse(args: argparse.Namespace, text: str) -> None:
    """Say why there is no start: to whoever waits for us, as the log may be another server's."""
    if args.tell_ready is None:
        print(text, file=sys.stderr)
        return
    with contextlib.suppress(OSError):
        os.write(args.tell_ready, text.encode())


def detach(args: argparse.Namespace, argv: list[str]) -> int:
    """Start a supervisor in the background; wait until its server is ready or it is over."""
    split = argv.index("--")
    options = [option for option in argv[:split] if option != "--detach"]
    before = Mark.at_end(args.log)
    with contextlib.ExitStack() as stack:
        try:
            args.log.parent.mkdir(parents=True, exist_ok=True)
            errors = stack.enter_context(open(args.log, "ab"))
        except OSError as error:
            print(f"supervise: cannot write {args.log}: {error.strerror}", file=sys.stderr)
            errors = subprocess.DEVNULL
        told_fd, tell_fd = os.pipe()
        stack.callback(os.close, tell_fd)  # So that its end shows when the supervisor ends.
        supervisor = subprocess.Popen(
            [sys.executable, *OURSELVES, *options, f"--tell-ready={tell_fd}", *argv[split:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
            pass_fds=[tell_fd],
        )

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        if wait_for(told_fd, args.health_url, args.run_id, partial(read_said, args.log, before)):
            return 0
    except Refused as refused:
        supervisor.wait()
        print(refused, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("supervise: not waiting any longer; ending the server", file=sys.stderr)
        while supervisor.poll() is None:
            supervisor.send_signal(signal.SIGTERM)  # Once more for each Ctrl-C.
            with contextlib.suppress(KeyboardInterrupt):
                supervisor.wait()
        return 1
    supervisor.wait()
    for line in read_failure(args.log, before):
        print(line, file=sys.stderr)
    print(f"supervise: the server did not start; its log is {args.log}", file=sys.stderr)
    return 1


def parse(argv: list[str]) -> argparse.Namespace:
    first_line, _, text = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="supervise.py",
        usage=argparse.SUPPRESS,
        description=f"{first_line}\n\n{text}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--run-id", required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--health-url", required=True)
    parser.add_argument("--detach", action="store_true")
    parser.add_argument("--no-restart", dest="restart", action="store_false")
    parser.add_argument("--max-failures", type=int, default=5)
    parser.add_argument("--host", action="append", default=[])
    parser.add_argument("--started-with", action="append", default=[])
    parser.add_argument("--keys-to")
    parser.add_argument("--log-max-mb", type=float, default=BY_NAME["LOG_MAX_MB"].default)
    # A file descriptor, from --detach to the supervisor that it starts.
    parser.add_argument("--tell-ready", type=int, help=argparse.SUPPRESS)
    split = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_args(argv[:split])
    args.command = argv[split + 1 :]
    if not args.command:
        parser.error("no launcher command after --")
    if args.max_failures < 1:
        parser.error(f"--max-failures is {args.max_failures}; it must be at least 1")
    if not 0 <= args.log_max_mb <= 1e6:
        parser.error(f"--log-max-mb is {args.log_max_mb}; it must be MB from 0 to 1000000")
    return args


def main() -> int:
    args = parse(sys.argv[1:])
    return detach(args, sys.argv[1:]) if args.detach else supervise(args)


if __name__ == "__main__":
    sys.exit(main())
