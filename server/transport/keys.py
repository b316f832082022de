"""The keys that clients may send: those of the start, and those of API_KEY_FILE as it is now.

Asked on rank 0's HTTP threads, once a request. The file is read again when it has changed, so a
new key needs no restart, and one that was taken out opens nothing any more. What is no list of keys
does not open the door, nor close it: the last good ones stay, and the log says so.
"""

import logging
import os
import threading
from collections.abc import Callable

from server.protocol.settings import Keys, SettingError, read_keys

Stamp = tuple[int, ...] | None  # what changes with a file; None: it is not there

log = logging.getLogger(__name__)


class KeyRing:
    """given: keys of API_KEY; file: API_KEY_FILE; first: what both held at the start."""

    def __init__(
        self,
        first: Keys,
        given: tuple[str, ...] = (),
        file: str | None = None,
        read: Callable[[tuple[str, ...], str | None], Keys] = read_keys,
    ) -> None:
        self._keys, self._given, self._file, self._read = first, given, file, read
        # Read again at the first request: it may have changed since it was read.
        self._stamp: Stamp = ()
        self._lock = threading.Lock()

    def now(self) -> Keys:
        """Those that hold at this moment."""
        if self._file is None or (stamp := _stamp(self._file)) == self._stamp:
            return self._keys
        with self._lock:
            if stamp != self._stamp:
                self._stamp = stamp
                self._take()
            return self._keys

    def _take(self) -> None:
        before = len(self._keys)
        try:
            keys = self._read(self._given, self._file)
        except SettingError as error:
            log.warning("%s; the %d keys from before hold on", error, before)
            return
        if keys != self._keys:
            self._keys = keys
            log.info("API_KEY_FILE has changed: %d keys, %d before", len(keys), before)


def _stamp(file: str) -> Stamp:
    try:
        about = os.stat(file)
    except OSError:
        return None
    return about.st_mtime_ns, about.st_ctime_ns, about.st_size, about.st_ino
