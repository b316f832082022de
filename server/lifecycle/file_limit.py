"""The hard limit of open files: high enough for mlx-lm, or told in words.

mlx-lm sets the limits to 2,048 and 4,096 when it is imported, and that import fails with a
traceback where the hard limit is lower. Called once, at the entry of every rank; what rank 0's
connections need of the soft limit is http_server's to raise.
"""

import resource
import sys

FILES_LEAST = 4096  # scripts/lib/cluster_env.sh asks every host for as many before a start


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
        how = "'* hard nofile 65536' in /etc/security/limits.conf (a systemd service: LimitNOFILE)"
        if sys.platform == "darwin":
            how = "sudo launchctl limit maxfiles 65536 200000"
        raise TooFewFiles(
            f"the hard limit of open files is {hard}: must be at least {FILES_LEAST}, or mlx-lm "
            f"cannot be imported; raise it: {how}, and log in anew"
        ) from None
