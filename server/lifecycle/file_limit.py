"""The hard limit of open files: high enough for mlx-lm, or told in words.

mlx-lm sets the limits to 2,048 and 4,096 when it is imported, and that import fails with a
traceback where the hard limit is lower. Called once, at the entry of every rank; what rank 0's
connections need of the soft limit is http_server's to raise.
"""

import resource
import sys

from server.protocol.limits import FILES_LEAST, RAISE_FILES_DARWIN, RAISE_FILES_LINUX


class TooFewFiles(Exception):
    """The hard limit is too low. The message says what raises it."""


def allow_files() -> None:
    """Raises the hard limit where this process may, as the superuser's may. Raises TooFewFiles."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= FILES_LEAST:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, FILES_LEAST))
    except (ValueError, OSError):
        how = f"{RAISE_FILES_LINUX} (a systemd service: LimitNOFILE)"
        if sys.platform == "darwin":
            how = RAISE_FILES_DARWIN
        raise TooFewFiles(
            f"the hard limit of open files is {hard}: must be at least {FILES_LEAST}, or mlx-lm "
            f"cannot be imported; raise it: {how}, and log in anew"
        ) from None
