"""How a rank notices that its launcher is gone: a lease on standard input.

Our launcher writes a newline to every rank every few seconds, through ssh or a pipe alike. A rank
that has had one and then hears nothing for LEASE_S, or reads the end of the stream, has lost its
launcher and leaves, so that no orphan keeps the port and the memory. A line that is not empty says
that another rank has failed: its code, and a reason. Without a first newline
(started by hand, or by the plain mlx.launch) there is no lease. Time in which this process was
itself stopped or asleep does not count: its launcher may have been, too.
"""

import os
import select
import sys
import threading
from collections.abc import Callable

from server.lifecycle.wait_clock import WaitClock

LEASE_S = 30.0
LOOK_S = 1.0
WORD_MOST = 4096  # bytes of a line


def watch_lifeline(
    on_lost: Callable[[str], None],
    fd: int | None = None,
    on_word: Callable[[str], None] = lambda word: None,
) -> threading.Thread:
    """Starts the thread. on_lost(reason) is called at most once, on that thread, as is on_word for
    each line that says something."""
    stdin = sys.stdin.fileno() if fd is None and sys.stdin is not None else fd

    def watch() -> None:
        leased, clock, line = False, WaitClock(LOOK_S), b""
        while stdin is not None:
            ready, _, _ = select.select([stdin], [], [], LOOK_S if leased else None)
            if not ready:
                if clock.look() < LEASE_S:
                    continue
                on_lost(f"nothing heard from the launcher for {LEASE_S:.0f} s")
                return
            try:
                data = os.read(stdin, 4096)
            except OSError:
                data = b""
            if not data:
                if leased:
                    on_lost("the launcher is gone")
                return
            leased = True
            clock.renew()
            *lines, line = (line + data).split(b"\n")
            line = line[-WORD_MOST:]
            for word in filter(None, (one.decode(errors="replace").strip() for one in lines)):
                on_word(word)

    thread = threading.Thread(target=watch, name="lifeline", daemon=True)
    thread.start()
    return thread
