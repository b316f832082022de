"""One rank as the launcher sees it: a process, here or at the far end of ssh.

It knows how to start a rank with the shell script that MLX's launcher makes for it, to
cut what it prints into whole lines, to renew its lease and to signal it. It decides
nothing: launch_ranks.py does. All on the launcher's main thread, except `renew_lease`.
"""

import contextlib
import os
import re
import signal
import subprocess
from collections import deque

from scripts.lib.hosts.our_process import signal_if
from scripts.lib.hosts.reach import LOCAL_HOST
from server.protocol.printable import printable_line

TAIL_LINES = 120  # Kept of each rank, to be shown if it fails: enough for all threads' stacks.
LINE_LIMIT = 1 << 18  # Bytes. A line longer than this is cut, so memory is bounded.
WORD_LIMIT = 900  # Bytes of what a rank is told; a terminal of macOS takes 1024 in a line.
PREAMBLE_LINES = 200  # Lines that a remote shell profile may print before our script runs.

# The launch script prints the name of a mktemp file first. A profile may print before it,
# even without a newline, so only the end of the line counts.
_PIDFILE = re.compile(rb"(/(?:[^/\s]+/)*tmp\.[A-Za-z0-9]{6,})$")

# A host that vanishes must not leave ssh waiting for ever; a password prompt that nobody
# sees must not either. LogLevel QUIET, as MLX has it, would hide why ssh failed.
SSH_OPTIONS = ("-o", "BatchMode=yes", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=10")
SSH_KEEPALIVE = ("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=6")


class LineCutter:
    """Turns a byte stream into whole lines of printable text, so that ranks never mix within a
    line, and a terminal obeys none of it."""

    def __init__(self, from_terminal: bool = False):
        self._rest = b""
        self._from_terminal = from_terminal  # ssh -tt: lines end in \r\n.

    def feed(self, data: bytes) -> list[bytes]:
        """Add `data`; return the lines it completes, without their ends."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_LIMIT:
            lines.append(self._rest)
            self._rest = b""
        return [self._clean(line) for line in lines]

    def finish(self) -> list[bytes]:
        """Return the last line if it had no end."""
        rest, self._rest = self._rest, b""
        return [self._clean(rest)] if rest else []

    def _clean(self, line: bytes) -> bytes:
        return printable_line(line.removesuffix(b"\r") if self._from_terminal else line)


class RankProcess:
    """A started rank. `code` is None while it runs, then its exit code (128 + signal)."""

    def __init__(self, index: int, host: str, script: str, command: list[str]):
        self.index = index
        self.host = host
        self.is_local = host == LOCAL_HOST
        self.code: int | None = None
        self.signals_sent: set[int] = set()
        self.timed_out = False  # The limit of server/lifecycle/watchdog.py's limit_native ended it.
        self.tail: deque[bytes] = deque(maxlen=TAIL_LINES)
        self.pidfile: str | None = None
        self._preamble_left = PREAMBLE_LINES
        self._leased = False
        # How a process is known to be this rank, should its pid have been given to another.
        # Not the first word: an interpreter may show itself under another path.
        self._marker = " ".join(command[1:]) or os.path.basename(command[0])
        if self.is_local:
            argv = ["/bin/bash", "-c", script]
        else:
            argv = ["ssh", "-tt", *SSH_OPTIONS, *SSH_KEEPALIVE, host, script]
        self.process = subprocess.Popen(
            argv,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Ctrl-C in a terminal must reach the launcher alone, or a drain is cut short.
            start_new_session=True,
        )
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            os.set_blocking(pipe.fileno(), False)
        self.cutters = {
            pipe: LineCutter(from_terminal=not self.is_local)
            for pipe in (self.process.stdout, self.process.stderr)
        }

    @property
    def running(self) -> bool:
        return self.code is None

    def __str__(self) -> str:
        return f"rank {self.index} on {self.host}"

    def keep_output(self, pipe, lines: list[bytes]) -> list[bytes]:
        """Note what the lines tell, and return those that are the rank's own output."""
        kept = []
        for line in lines:
            if pipe is self.process.stdout and self._preamble_left:
                self._preamble_left -= 1
                if found := _PIDFILE.search(line):
                    self.pidfile = found.group(1).decode()
                    self._preamble_left = 0
                if self._preamble_left == 0:
                    # Not before: a remote terminal echoes until the script has silenced it.
                    # And without a pid file too: the rank must not lack its lease.
                    self._leased = True
                    self.renew_lease()
                if found or not line:
                    continue
            # Its only word; the stacks that follow may be longer than the tail.
            self.timed_out = self.timed_out or line.startswith(b"Timeout (")
            self.tail.append(line)
            kept.append(line)
        return kept

    def labelled(self, lines: list[bytes]) -> list[bytes]:
        """Put `[rank N]` before lines that do not have it: tracebacks, stacks, MLX's own."""
        label = b"[rank %d]" % self.index
        # The server's own lines have it behind the time.
        return [line if label in line[:40] else (label + b" " + line).rstrip() for line in lines]

    def renew_lease(self) -> None:
        """Write one newline to the rank's stdin; drop it if the rank does not read.

        Called by a thread of its own. The pipe stays open until the launcher ends, so its
        number cannot have passed to another file meanwhile.
        """
        if self._leased and self.running:
            with contextlib.suppress(OSError):
                os.write(self.process.stdin.fileno(), b"\n")

    def tell(self, word: str) -> bool:
        """A line on the rank's stdin: what it should know before it is ended. Whether it could be
        written; it may be lost all the same."""
        if self._leased and self.running:
            with contextlib.suppress(OSError):
                line = word.encode()[:WORD_LIMIT] + b"\n"
                return os.write(self.process.stdin.fileno(), line) == len(line)
        return False

    def poll(self) -> bool:
        """Return True once: when the rank has ended since the last call."""
        if self.code is not None or self.process.poll() is None:
            return False
        status = self.process.returncode
        self.code = 128 - status if status < 0 else status
        if self.is_local and self.pidfile:
            with contextlib.suppress(OSError):
                os.unlink(self.pidfile)
        return True

    def signal(self, signum: int) -> subprocess.Popen | None:
        """Send a signal to the rank; return the ssh that carries it, if one is needed."""
        self.signals_sent.add(signum)
        if self.is_local:
            if signum == signal.SIGKILL:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.process.pid, signum)
            else:
                self.process.send_signal(signum)
                # A stopped process would find the signal only when it is too late to answer its
                # clients; on one that runs this does nothing.
                self.process.send_signal(signal.SIGCONT)
            return None
        if self.pidfile is None:
            # Still on its way: without ssh the far shell has no terminal and ends too.
            self.process.terminate()
            return None
        name = signal.Signals(signum).name.removeprefix("SIG")
        remote = signal_if(self.pidfile, self._marker, name)
        return subprocess.Popen(
            ["ssh", "-n", *SSH_OPTIONS, self.host, remote],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
