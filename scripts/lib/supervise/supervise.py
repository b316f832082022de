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
  is started again. restart_policy.py says when not: a first start that never got ready by
  another cause than the network's, exit code 78, --no-restart, or N starts in a row that
  never got ready (default 5).
- While a host does not answer ssh nothing is started and nothing counts: it looks again
  after 2, 4, 8 to 60 s, for as long as that takes.
- The launcher learns the number of restarts and the last failure from
  SUPERVISOR_RESTARTS and SUPERVISOR_LAST_FAILURE.
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
import dataclasses
import fcntl
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from scripts.lib.launch.launch_ranks import CAUSE_PREFIX, STOP_SIGNALS, read_drain_timeout
from scripts.lib.launch.rank_process import LineCutter
from scripts.lib.launch.signal_pipe import SignalPipe
from scripts.lib.logs.log_files import Mark
from scripts.lib.logs.run_log import RunLog
from scripts.lib.supervise.clean_hosts import (
    Cleaned,
    end_ranks_everywhere,
    find_away,
    is_port_free,
    read_hosts,
)
from scripts.lib.supervise.restart_policy import Ending, Row, judge
from scripts.lib.supervise.start_records import CannotStart, Start, bring_keys, write_records
from scripts.lib.supervise.wait_ready import ReadyWatch, Refused, read_failure, wait_for
from server.protocol.exit_codes import INTERNAL, OK, explain
from server.protocol.settings_table import BY_NAME

OURSELVES = (str(Path(__file__).resolve().parents[1] / "module.py"), "lib.supervise.supervise")
END_RANKS_GRACE_S = 5
AWAY_PAUSE_S = 2.0  # Before the first look for a host that is away; doubles up to
AWAY_LONGEST_PAUSE_S = 60.0
AWAY_SAY_AGAIN_S = 600.0  # That it is still away.
READY_LINE = b"[rank 0] INFO ready: "  # server/rank.py's.
PORT_FREE_S = 30.0  # How long a restart waits for the last server's port.
# The launcher kills its ranks 10 s after their time to drain, and gives up 15 s later.
STUCK_AFTER_S = 30.0


class Supervisor:
    """One server from its first start to its end. `run` does everything."""

    def __init__(self, args: argparse.Namespace, drain_timeout: float):
        self._args = args
        self._drain_timeout = drain_timeout
        self._log = RunLog(args.log, int(args.log_max_mb * 1e6))
        self._signals = SignalPipe((*STOP_SIGNALS, signal.SIGCHLD))
        self._stops = 0  # How often we were asked to stop.
        self._restarts = 0
        self._last_failure = ""
        self._was_ready = False  # At any time, in this life.
        self._on_ready_line: Callable[[], None] = lambda: None
        self._cause = ""  # Of the end of the run in hand, in the launcher's words.

    def run(self) -> int:
        """Run until it is over for good; return the exit code."""
        self._log.say(f"starting run {self._args.run_id}, supervisor {os.getpid()}")
        self.end_ranks()  # Of an earlier supervisor, if it was killed with its launcher.
        row = Row()
        while True:
            ending = self._run_once()
            if not ending.asked and ending.code != OK:
                self._log.say(f"failed: {self._cause}")
                self._last_failure = f"{self._cause}, at {time.strftime('%Y-%m-%d %H:%M:%S %z')}"
            cleaned = Cleaned(True) if ending.code == OK else self.end_ranks()
            verdict = judge(
                dataclasses.replace(ending, away=cleaned.away),
                row,
                may_restart=self._args.restart,
                max_failures=self._args.max_failures,
            )
            row = verdict.row
            if verdict.start_again:
                when = "when all hosts answer" if cleaned.away else f"in {verdict.pause_s:.0f} s"
                self._log.say(f"{verdict.reason}: starting again {when}")
                self._restarts += 1
                self._pause(verdict.pause_s)
                cleaned = self._wait_for_hosts(cleaned)
                self._wait_for_port()
            if not verdict.start_again or self._asked():
                break
        exit_code = verdict.exit_code
        if not verdict.start_again:
            last = f"; the last: {self._cause}" if exit_code else ""
            self._log.say(f"over: {verdict.reason}{last}")
        else:
            self._log.say("over: stopped as asked")
        if not cleaned.no_rank_left:
            self._log.say("some ranks may be left; see above")
        self._log.flush()
        return exit_code or (0 if cleaned.no_rank_left else 1)

    # -- one run of the launcher

    def _run_once(self) -> Ending:
        first_start = not self._was_ready
        self._cause = ""
        if self._asked():
            return Ending(OK, None, True, first_start)
        try:
            launcher = self._start_launcher()
        except OSError as error:
            self._cause = f"the launcher cannot be started: {error}"
            return Ending(INTERNAL, None, False, first_start)
        watch = ReadyWatch(self._args.health_url, self._args.run_id, self._signals.poke)
        self._on_ready_line = watch.look
        self._follow(launcher, watch)
        watch.stop()
        launcher.stdin.close()
        self._cause = self._cause or f"the launcher ended with {explain(launcher.returncode)}"
        served_s = None if watch.ready_at is None else time.monotonic() - watch.ready_at
        self._was_ready = self._was_ready or served_s is not None
        return Ending(launcher.returncode, served_s, self._asked(), first_start)

    def _start_launcher(self) -> subprocess.Popen:
        env = dict(os.environ, MLX_LAUNCH_LEASE="1", SUPERVISOR_RESTARTS=str(self._restarts))
        env["SUPERVISOR_LAST_FAILURE"] = self._last_failure
        env["MLX_LAUNCH_LOG"] = str(self._args.log)  # For the last lines, should we be killed.
        launcher = subprocess.Popen(
            self._args.command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
        )
        os.set_blocking(launcher.stdout.fileno(), False)
        self._log.say(f"started launcher {launcher.pid} for run {self._args.run_id}")
        return launcher

    def _follow(self, launcher: subprocess.Popen, watch: ReadyWatch) -> None:
        """Pass its output and our signals on until it has ended."""
        cutter = LineCutter()
        kill_at: float | None = None
        told_ready = False
        with selectors.DefaultSelector() as selector:
            selector.register(self._signals, selectors.EVENT_READ)
            selector.register(launcher.stdout, selectors.EVENT_READ)
            while launcher.poll() is None:
                wait = None if kill_at is None else max(0.0, kill_at - time.monotonic())
                for key, _ in selector.select(wait):
                    if key.fileobj is launcher.stdout and not self._pass_on(launcher, cutter):
                        selector.unregister(launcher.stdout)
                for _ in range(self._take_stops()):
                    patience = STUCK_AFTER_S + (self._drain_timeout if kill_at is None else 0.0)
                    kill_at = min(kill_at or float("inf"), time.monotonic() + patience)
                    launcher.send_signal(signal.SIGTERM)
                if watch.ready_at is not None and not told_ready:
                    told_ready = True
                    self._log.say(f"ready: {self._args.health_url} answers")
                    self._tell_ready()
                if kill_at is not None and time.monotonic() >= kill_at:
                    self._log.say("the launcher does not end: SIGKILL")
                    launcher.kill()
                    launcher.wait()
            while self._pass_on(launcher, cutter):
                pass
            self._write(cutter.finish())
            launcher.stdout.close()

    def _pass_on(self, launcher: subprocess.Popen, cutter: LineCutter) -> bool:
        """Pass one read's worth of output on; return False when there is none now."""
        try:
            data = os.read(launcher.stdout.fileno(), 65536)
        except BlockingIOError:
            return False
        self._write(cutter.feed(data))
        return bool(data)

    def _write(self, lines: list[bytes]) -> None:
        for line in lines:
            if line.startswith(CAUSE_PREFIX.encode()):
                self._cause = line.decode(errors="replace").removeprefix(CAUSE_PREFIX)
            elif READY_LINE in line[:80]:
                # It serves from here on: one that ends a moment later has been ready.
                self._on_ready_line()
        self._log.write(lines)

    def _tell_ready(self) -> None:
        """Once, whoever waits for a detached supervisor."""
        fd, self._args.tell_ready = self._args.tell_ready, None
        if fd is not None:
            with contextlib.suppress(OSError):  # It does not wait any longer.
                os.write(fd, b"\n")
            os.close(fd)

    # -- signals to us, and waiting

    def _take_stops(self) -> int:
        """Return how many wishes to stop have come since the last call."""
        count = sum(number in STOP_SIGNALS for number in self._signals.read())
        for _ in range(count):
            self._stops += 1
            first = self._stops == 1
            self._log.say("draining; again to end at once" if first else "ending at once")
        return count

    def _asked(self) -> bool:
        self._take_stops()
        return self._stops > 0

    def _pause(self, seconds: float) -> None:
        """Sleep, unless we are asked to stop."""
        until = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._signals, selectors.EVENT_READ)
            while not self._asked() and (left := until - time.monotonic()) > 0:
                selector.select(left)

    def _wait_for_hosts(self, cleaned: Cleaned) -> Cleaned:
        """Until every host answers and is clean, or we are asked to stop."""
        pause, began = AWAY_PAUSE_S, time.monotonic()
        said_at, said = began, cleaned.away
        while cleaned.away:
            self._pause(pause)
            pause = min(AWAY_LONGEST_PAUSE_S, 2 * pause)
            if self._asked():
                break
            away = find_away(self._args.run_dir)
            # What a host that is back may still have of us ends before the next start.
            cleaned = Cleaned(False, away) if away else self.end_ranks()
            now = time.monotonic()
            if not cleaned.away:
                self._log.say(f"all hosts answer again, after {now - began:.0f} s")
            elif cleaned.away != said or now - said_at > AWAY_SAY_AGAIN_S:
                said_at, said = now, cleaned.away
                self._log.say(
                    f"waiting for {now - began:.0f} s, still no answer from {', '.join(said)}"
                )
        return cleaned

    def _wait_for_port(self) -> None:
        url = urlsplit(self._args.health_url)
        give_up_at = time.monotonic() + PORT_FREE_S
        while not self._asked() and not is_port_free(url.hostname, url.port or 80):
            if time.monotonic() > give_up_at:
                self._log.say(f"port {url.port} is still taken; trying all the same")
                return
            self._pause(0.5)

    def end_ranks(self, hosts: list[str] | None = None) -> Cleaned:
        """End what is left of ours, on these hosts or on all of the record."""
        return end_ranks_everywhere(self._args.run_dir, END_RANKS_GRACE_S, self._log.say, hosts)


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
            supervisor = Supervisor(args, read_drain_timeout(os.environ))
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
        if wait_for(told_fd, args.health_url, args.run_id):
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
