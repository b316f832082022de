"""One server from its first start to its end: the launcher started, watched, cleaned up after, and
started again.

One loop on the main thread; the only threads ask /health, clean the hosts and feed a slow terminal.
supervise.py says what it promises, and is the entry. Standard library only.
"""

import argparse
import contextlib
import dataclasses
import math
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from scripts.lib.launch.causes import CAUSE_PREFIX
from scripts.lib.launch.launch_ranks import STOP_SIGNALS
from scripts.lib.launch.rank_process import LineCutter
from scripts.lib.launch.signal_pipe import SignalPipe
from scripts.lib.logs.run_log import RunLog
from scripts.lib.supervise.clean_hosts import (
    Cleaned,
    end_ranks_everywhere,
    find_away,
    is_port_free,
)
from scripts.lib.supervise.restart_policy import Ending, Row, judge
from scripts.lib.supervise.wait_ready import ReadyWatch
from server.protocol.exit_codes import INTERNAL, OK, explain

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

    def __init__(
        self, args: argparse.Namespace, drain_timeout: float, end_timeout: float | None = None
    ):
        self._args = args
        self._drain_timeout = drain_timeout
        self._end_timeout = end_timeout  # of a rank, until SIGKILL; None: a few seconds
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
        env["SUPERVISOR_STARTS_AGAIN"] = str(int(self._args.restart))
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
                    patience = STUCK_AFTER_S + (self._end_timeout or 0.0)
                    patience += self._drain_timeout if kill_at is None else 0.0
                    kill_at = min(kill_at or float("inf"), time.monotonic() + patience)
                    launcher.send_signal(signal.SIGTERM)
                if watch.ready_at is not None and not told_ready:
                    told_ready = True
                    self._log.say(f"ready: {self._args.health_url} answers")
                    self._tell_ready()
                if kill_at is not None and time.monotonic() >= kill_at:
                    self._log.say("the launcher does not end: SIGKILL to it; its ranks are told")
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
        grace_s = END_RANKS_GRACE_S if self._end_timeout is None else math.ceil(self._end_timeout)
        return end_ranks_everywhere(self._args.run_dir, grace_s, self._log.say, hosts)
