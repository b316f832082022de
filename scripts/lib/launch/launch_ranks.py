"""The launcher's loop: pass the ranks' output on, and see that they end together.

With `label` each line of a rank's begins with or has near its beginning `[rank N]`.

It sleeps in one `select` until a rank prints, a rank ends, a signal comes, the supervisor
is gone or a deadline passes; an idle launcher costs nothing. Everything happens on the
main thread, but for two small ones: one renews the ranks' leases, and one writes. What reads
our output may stop reading (a supervisor under Ctrl-Z, a terminal under Ctrl-S); the ranks'
pipes are emptied all the same, a few MB are kept for the reader, and the rest is counted.

How ranks come to an end:
SIGKILL of a rank that has RDMA open can leave a process that nothing ends, and a Mac that needs its
power cut: over JACCL RANK_END_TIMEOUT is long, and each SIGKILL is announced.

- A rank fails: the others cannot drain without it. They are told so on their stdin, and leave
  by themselves; after TOLD_S SIGTERM, again after HOPELESS_S, and SIGKILL after 2 GRACE_S,
  or RANK_END_TIMEOUT where that is set.
  (SIGKILL last: on macOS it can strand wired memory.)
- A rank leaves with 0 and others stay for STRAGGLE_S: the same.
- A signal to the launcher: SIGTERM to every rank, which drains it; each further signal is
  another SIGTERM, and the second makes a rank leave at once. SIGKILL after DRAIN_TIMEOUT
  and DRAIN_EXTRA_S, or GRACE_S after the second.
- The supervisor is gone (end of file on stdin, if stdin is its lease): the same, but with
  GRACE_S to finish. What is printed from then on goes to the log file itself, since nobody
  reads our output.
"""

import contextlib
import heapq
import itertools
import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping

from scripts.lib.launch.causes import (
    CAUSE_PREFIX,
    SSH_FAILED,
    TAIL_PREFIX,
    explain_end,
    explain_failure,
    weigh,
)
from scripts.lib.launch.output import Output
from scripts.lib.launch.rank_process import RankProcess
from scripts.lib.launch.signal_pipe import SignalPipe
from server.protocol.exit_codes import INTERNAL, NOT_JOINED, OK, PEER_LOST
from server.protocol.printable import printable
from server.protocol.setting import SettingError, parse
from server.protocol.settings_table import BY_NAME

LEASE_PERIOD_S = 5.0  # Between two newlines on a rank's stdin.
GRACE_S = 5.0  # Between the first SIGTERM and the next, and from there to SIGKILL.
TOLD_S = 1.5  # Before a signal, for what a rank was told: it gives its clients a second.
HOPELESS_S = 1.0  # The first of these after a rank failed: the others cannot finish anything.
CAUSE_WAIT_S = 2.0  # A rank that misses a peer is seldom the cause; another may be on its way.
STRAGGLE_S = 10.0  # Ranks end together; one that stays longer than this is stuck.
DRAIN_EXTRA_S = 10.0  # Beyond DRAIN_TIMEOUT until a rank that was asked to leave is killed.
ERRAND_S = 10.0  # An ssh that carries a signal has this long.
FLUSH_S = 2.0  # At the end, for our output. Longer only for a supervisor that may come back.
GIVE_UP_S = 5.0  # After SIGKILL a process that is still there is stuck in the kernel.

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_OURS = {128 + signal.SIGTERM, 128 + signal.SIGKILL}  # Codes of ranks that we ended.
_FAULTHANDLERS = 1  # How a rank ends whose native code outlasted its limit.


def read_drain_timeout(env: Mapping[str, str]) -> float:
    """Read DRAIN_TIMEOUT (s) as the server does; to refuse a wrong one is its business."""
    return _read_seconds("DRAIN_TIMEOUT", env) or 0.0


def read_end_timeout(env: Mapping[str, str]) -> float | None:
    """Read RANK_END_TIMEOUT (s) in the same way; None where it is not set."""
    return _read_seconds("RANK_END_TIMEOUT", env)


def _read_seconds(name: str, env: Mapping[str, str]) -> float | None:
    setting = BY_NAME[name]
    try:
        value = parse(setting, env.get(name, ""))
    except SettingError:
        value = setting.default
    return None if value is None else float(value)


class Launch:
    """Starts ranks, each described by (index, host, script, command), and ends with them."""

    def __init__(
        self,
        ranks: list[tuple],
        *,
        drain_timeout: float,
        lease_fd: int | None = None,
        log: str | None = None,
        label: bool = False,
        end_timeout: float | None = None,
    ):
        self._descriptions = ranks
        self._log = log
        self._label = label
        self._drain_timeout = drain_timeout
        self._end_timeout = end_timeout
        self._lease_fd = lease_fd
        self._ranks: list[RankProcess] = []
        self._out = Output()
        self._selector = selectors.DefaultSelector()
        self._due: list[tuple[float, int, Callable[[], None]]] = []  # A heap by time.
        self._order = itertools.count()  # Breaks ties in the heap.
        self._errands: dict[subprocess.Popen, Callable[[], None]] = {}
        self._failed: RankProcess | None = None
        self._stop_signal: int | None = None
        self._lease_lost = False
        self._ending = False  # The ranks are being ended by deadlines.
        self._kill_at = float("inf")
        self._done = threading.Event()

    # -- the loop

    def run(self) -> int:
        """Run until no rank is left; return the launcher's exit code."""
        self._signals = SignalPipe((*STOP_SIGNALS, signal.SIGCHLD))
        self._selector.register(self._signals, selectors.EVENT_READ, self._on_signals)
        if self._lease_fd is not None:
            with contextlib.suppress(OSError):  # /dev/null can't be waited for.
                self._selector.register(self._lease_fd, selectors.EVENT_READ, self._on_lease)
        try:
            self._start_ranks()
            threading.Thread(target=self._renew_leases, daemon=True).start()
            while any(rank.running for rank in self._ranks) or self._errands:
                for key, _ in self._selector.select(self._until_next_deadline()):
                    key.data()
                self._reap()
                self._run_what_is_due()
        finally:
            self._kill_after_a_fault_of_ours()
        self._done.set()
        self._name_the_cause()
        if self._lease_lost:
            self._say("over: every rank has been ended, because the supervisor is gone")
        self._flush()
        return self._result()

    def _kill_after_a_fault_of_ours(self) -> None:
        """Of a loop that broke; else all have ended."""
        if left := [rank for rank in self._ranks if rank.process.poll() is None]:
            self._say(f"a fault of the launcher: SIGKILL to {', '.join(map(str, left))}")
            for rank in left:
                rank.process.kill()

    def _start_ranks(self) -> None:
        for description in self._descriptions:
            try:
                rank = RankProcess(*description)
            except OSError as error:
                self._say(f"rank {description[0]} could not be started: {error}")
                self._end_all()
                return
            self._ranks.append(rank)
            for pipe, fd in ((rank.process.stdout, 1), (rank.process.stderr, 2)):
                self._selector.register(
                    pipe, selectors.EVENT_READ, lambda r=rank, p=pipe, f=fd: self._pass_on(r, p, f)
                )

    def _until_next_deadline(self) -> float | None:
        return max(0.0, self._due[0][0] - time.monotonic()) if self._due else None

    def _run_what_is_due(self) -> None:
        while self._due and self._due[0][0] <= time.monotonic():
            heapq.heappop(self._due)[2]()

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, (time.monotonic() + seconds, next(self._order), action))

    # -- what wakes it

    def _pass_on(self, rank: RankProcess, pipe, fd: int) -> bool:
        """Pass one read's worth of output on; return False when there is none now."""
        try:
            data = os.read(pipe.fileno(), 65536)
        except BlockingIOError:
            return False
        cutter = rank.cutters[pipe]
        self._print(rank, pipe, fd, cutter.feed(data) if data else cutter.finish())
        if not data:
            self._selector.unregister(pipe)
            pipe.close()
        return bool(data)

    def _print(self, rank: RankProcess, pipe, fd: int, lines: list[bytes]) -> None:
        kept = rank.keep_output(pipe, lines)
        self._out.write(fd, rank.labelled(kept) if self._label else kept)

    def _on_signals(self) -> None:
        for number in self._signals.read():
            if number in STOP_SIGNALS:
                self._on_stop(number)

    def _on_stop(self, signum: int) -> None:
        first = self._stop_signal is None
        self._stop_signal = self._stop_signal or signum
        self._signal_all(signal.SIGTERM)
        drain_s = self._drain_timeout + DRAIN_EXTRA_S if first else GRACE_S
        self._kill_within(drain_s + (self._end_timeout or 0.0))

    def _on_lease(self) -> None:
        with contextlib.suppress(OSError):
            if os.read(self._lease_fd, 4096):
                return
        self._selector.unregister(self._lease_fd)
        self._lease_lost = True
        if self._log is not None:
            with contextlib.suppress(OSError):
                fd = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
                self._out.move(fd)
        self._say("the supervisor is gone: ending every rank")
        self._end_all()

    def _reap(self) -> None:
        for errand in [errand for errand in self._errands if errand.poll() is not None]:
            self._errands.pop(errand)()
        ended = [rank for rank in self._ranks if rank.poll()]
        for rank in ended:
            self._finish_output(rank)
            if rank.code == _FAULTHANDLERS and rank.timed_out:
                rank.code = NOT_JOINED
        for rank in sorted(ended, key=weigh, reverse=True):
            self._on_exit(rank)

    def _finish_output(self, rank: RankProcess) -> None:
        """Read what an ended rank left in its pipes: all of it is there by now."""
        for pipe, fd in ((rank.process.stdout, 1), (rank.process.stderr, 2)):
            while not pipe.closed and self._pass_on(rank, pipe, fd):
                pass
            if not pipe.closed:  # A child of the rank holds it open; nobody waits for that.
                self._print(rank, pipe, fd, rank.cutters[pipe].finish())
                self._selector.unregister(pipe)
                pipe.close()

    # -- what to do when a rank has ended

    def _on_exit(self, rank: RankProcess) -> None:
        lost_ssh = not rank.is_local and rank.code == SSH_FAILED
        by_us = self._asked and rank.signals_sent and (rank.code in _OURS or lost_ssh)
        failed = rank.code != OK and not by_us
        if failed:
            self._say(f"{rank} exited with {explain_end(rank)}")
            if self._failed is None or weigh(rank) > weigh(self._failed):
                self._failed = rank
        if any(other.running for other in self._ranks):
            if not failed:
                self._after(STRAGGLE_S, self._end_stragglers)
            elif rank.code in (PEER_LOST, NOT_JOINED) and not self._asked:  # Let the cause show.
                self._after(CAUSE_WAIT_S, self._end_all)
            else:
                self._end_all()
        if lost_ssh and rank.pidfile:
            # It may be ssh alone that ended. Where it can still be reached, it must not stay.
            self._send(rank, signal.SIGTERM)

    @property
    def _asked_to_end(self) -> bool:
        return self._stop_signal is not None or self._lease_lost

    @property
    def _asked(self) -> bool:
        return self._asked_to_end or self._ending

    def _end_stragglers(self) -> None:
        left = [str(rank) for rank in self._ranks if rank.running]
        if left and not self._ending:
            self._say(f"the others have left, {', '.join(left)} stays: ending it")
            self._end_all()

    def _end_all(self) -> None:
        if not self._ending:
            self._ending = True
            told_s = 0.0
            if self._failed and not self._asked_to_end and self._tell_all():
                told_s = min(TOLD_S, GRACE_S)
                self._after(told_s, lambda: self._signal_all(signal.SIGTERM))
            else:
                self._signal_all(signal.SIGTERM)
            patience = GRACE_S if self._failed is None else min(HOPELESS_S, GRACE_S)
            self._after(told_s + patience, lambda: self._signal_all(signal.SIGTERM))
            end_s = 2 * GRACE_S if self._end_timeout is None else self._end_timeout
            self._kill_within(told_s + end_s)

    def _tell_all(self) -> bool:
        """Tells the others why they have to leave; whether any may have heard it."""
        word = printable(f"{self._failed.code} {explain_failure(self._failed)}")
        told = [rank.tell(word) for rank in self._ranks]
        return any(told)

    def _kill_within(self, seconds: float) -> None:
        """SIGKILL what is left in `seconds`, unless that was to happen sooner already."""
        when = time.monotonic() + seconds
        if when < self._kill_at:
            self._kill_at = when
            self._after(seconds, self._kill_all)

    def _kill_all(self) -> None:
        if left := [str(rank) for rank in self._ranks if rank.running]:
            waited = f" within {self._end_timeout:g} s" if self._end_timeout else ""
            self._say(f"{', '.join(left)} did not leave when asked{waited}: SIGKILL")
            self._signal_all(signal.SIGKILL)
            self._after(ERRAND_S + GIVE_UP_S, self._give_up)

    def _give_up(self) -> None:
        for rank in self._ranks:
            if rank.running:
                self._say(f"{rank} (pid {rank.process.pid}) cannot be ended: left behind")
                rank.code = INTERNAL
                self._failed = self._failed or rank

    # -- signals to ranks

    def _signal_all(self, signum: int) -> None:
        for rank in self._ranks:
            if rank.running:
                self._send(rank, signum)

    def _send(self, rank: RankProcess, signum: int) -> None:
        try:
            errand = rank.signal(signum)
        except OSError as error:  # No ssh to be had, say. The deadlines go on.
            self._say(f"cannot signal {rank}: {error}")
            return
        if errand is None:
            return

        def done() -> None:
            if errand.returncode < 0 or errand.returncode == SSH_FAILED:
                self._say(f"could not reach {rank.host} to send {signal.Signals(signum).name}")
            if signum == signal.SIGKILL and rank.running:
                rank.process.kill()  # Our end of the connection.

        self._errands[errand] = done
        self._after(ERRAND_S, lambda: errand.poll() is None and errand.kill())

    def _renew_leases(self) -> None:
        while not self._done.wait(LEASE_PERIOD_S):
            for rank in self._ranks:
                rank.renew_lease()

    # -- what to say and return

    def _flush(self) -> None:
        """Wait until what we said is read: for long, as a supervisor may only be stopped, but not
        once somebody has asked us to end or nobody is left to read."""
        while not self._out.flush(FLUSH_S) and not self._asked_to_end:
            for key, _ in self._selector.select(0):
                key.data()

    def _say(self, text: str) -> None:
        self._out.write(2, [f"mlx_launch: {text}".encode()], must=True)

    def _name_the_cause(self) -> None:
        if self._failed is None:
            return
        text = CAUSE_PREFIX + explain_failure(self._failed)
        tail = [TAIL_PREFIX.encode() + line for line in self._failed.tail]
        self._out.write(2, [text.encode(), *tail], must=True)

    def _result(self) -> int:
        if len(self._ranks) < len(self._descriptions):
            return INTERNAL
        if self._failed is not None:
            return self._failed.code
        codes = [rank.code for rank in self._ranks if rank.code != OK]
        if self._stop_signal is not None:
            return 128 + self._stop_signal if codes else OK
        if self._lease_lost:
            return PEER_LOST
        return codes[0] if codes else OK
