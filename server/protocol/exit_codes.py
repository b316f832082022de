"""What a rank's exit code tells the launcher and the supervisor.

The numbers are those of sysexits.h, so that they collide neither with Python's own
(1 and 2), nor with a shell's (126, 127), nor with 128 + a signal's number. A rank
chooses one in the moment it leaves; `scripts/lib/launch/mlx_launch.py` passes the code of the
first rank that failed on as its own; `scripts/lib/supervise/supervise.py` decides by it whether
to start again. Standard library only: the scripts import it without the engine.
"""

import signal

OK = 0  # A planned end: asked to stop, drained, left.
NOT_JOINED = 68  # The ranks did not come together. The next start may succeed.
PEER_LOST = 69  # The link to another rank broke, or the launcher is gone.
INTERNAL = 70  # An unexpected error: a bug, or a machine at its end.
STALLED = 75  # The watchdog saw no progress.
GARBLED = 76  # The link lost or garbled a message: what this rank has computed is worth nothing.
CONFIG = 78  # Starting again cannot help: somebody has to change something first.

MEANING = {
    OK: "planned end",
    NOT_JOINED: "the ranks did not join",
    PEER_LOST: "a peer was lost, or the launcher is gone",
    INTERNAL: "unexpected error",
    STALLED: "watchdog: no progress",
    GARBLED: "the link lost or garbled a message",
    CONFIG: "wrong setting or model, or the ranks do not match",
}

_SHELL_MEANING = {
    126: "the command cannot be executed",
    127: "command not found",
}


def explain(code: int) -> str:
    """Put a code in words: `code 75 (watchdog: no progress)`.

    A negative code is subprocess's way to say "died of signal -code"; 128 + n is the
    shell's way to say the same.
    """
    if code < 0:
        code = 128 - code
    meaning = MEANING.get(code) or _SHELL_MEANING.get(code)
    if meaning is None and code > 128:
        try:
            meaning = f"ended by {signal.Signals(code - 128).name}"
        except ValueError:
            meaning = None
    return f"code {code} ({meaning})" if meaning else f"code {code}"
