"""Token ids of large texts, from a child process: see encode_child.

Called on rank 0's HTTP threads. Whoever waits here, for the child or for its turn, looks at its
client and its deadline; when either is gone in the middle of a text the child is ended, and the
next large text starts another one.
"""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from array import array
from pathlib import Path
from typing import Any

from server.protocol.client import POLL_S, Client
from server.protocol.errors import ApiError, bad_request, show, unavailable
from server.text import encode_child

PIECE_BYTES = 2**20
SILENCE_S = 30.0  # a child says twice a second that it works; one that does not was stopped
# What a child must turn into the same ids as the tokenizer itself: some tokenizers do things in
# Python that their library's part, which is all the child has, knows nothing of.
PROBES = (
    "",
    " ",
    "Hello, world!\n\n  one\ttwo 3\u00e9\u4e2d\U0001f600 <s></s>",
    "a\r\nb  ",
    "\x00",
)

log = logging.getLogger(__name__)


class Unavailable(Exception):
    """This tokenizer has no child that does as it does."""


class Encoder:
    """One child and those who wait for it. tokenizer: a Hugging Face tokenizer.

    The child starts with the first text; `started` counts children, for tests and the log.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._unfit = getattr(tokenizer, "backend_tokenizer", None) is None
        self.started = 0

    def encode(self, text: str, special_tokens: bool, client: Client, param: str) -> list[int]:
        """The ids. Raises Unavailable, ApiError 400 when the tokenizer refuses the text or the
        text needs too much of it, what client.look raises, and UnicodeEncodeError for a lone
        surrogate.
        """
        data = text.encode()
        with client.holding(self._lock):
            if self._child is None:
                self._start(client)
            code, found = self._try(data, special_tokens, client)
        if isinstance(found, list):
            return found
        if found is not None:
            refused = show(found, encode_child.ERROR_CHARS)
            raise bad_request(f"{param!r} was refused by the tokenizer: {refused}", param)
        if code == -signal.SIGPROF:
            limit = f"{encode_child.TEXT_CPU_S:g} s"
        elif code == encode_child.OUT_OF_MEMORY:
            limit = f"{encode_child.MEMORY_BYTES >> 20} MB"
        else:
            log.error("the tokenizer's process ended with %s", code)
            raise _again()
        raise bad_request(f"{param!r} takes more than {limit} to tokenize.", param)

    def pid(self) -> int | None:
        """The child's process id, while there is one."""
        child = self._child
        return None if child is None else child.pid

    def close(self) -> None:
        """Ends the child."""
        with self._lock:
            self._reap()

    def _try(
        self, data: bytes, special: bool, client: Client
    ) -> tuple[int | None, list[int] | str | None]:
        """What _ask gives; or the exit code of a child that has ended over it, and None."""
        try:
            return None, self._ask(data, special, client)
        except EOFError:
            return self._reap(), None
        except BaseException:
            self._reap()  # nobody waits for its answer, which must not be the next one's
            raise

    def _start(self, client: Client) -> None:
        if self._unfit:
            raise Unavailable
        ours, theirs = socket.socketpair()
        self._socket = ours
        ours.settimeout(POLL_S)
        with theirs:
            self._child = self._spawn(theirs)
        self.started += 1
        self._prove(client)

    def _spawn(self, theirs: socket.socket) -> "subprocess.Popen[bytes]":
        try:
            return subprocess.Popen(
                # -P: the names of our modules must not hide the standard library's.
                [sys.executable, "-P", str(Path(encode_child.__file__))],
                stdin=theirs,
                stdout=theirs,
                stderr=subprocess.DEVNULL,
                # So that Python spawns it: to fork a process that holds a model can take seconds.
                # The child closes what it has inherited.
                close_fds=False,
                env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
            )
        except OSError as error:  # no process, no memory
            log.error("the tokenizer's process cannot be started: %s", error)
            raise _again() from error

    def _prove(self, client: Client) -> None:
        """Gives the child its tokenizer, and sees that it does as ours."""
        spec = self._tokenizer.backend_tokenizer.to_str().encode()
        split = bool(getattr(self._tokenizer, "split_special_tokens", False))
        try:
            self._send({"bytes": len(spec), "split_special_tokens": split}, spec, client)
            self._read_head(client)
            for probe in PROBES:
                for special in (False, True):
                    right = list(self._tokenizer.encode(probe, add_special_tokens=special))
                    if self._ask(probe.encode(), special, client) != right:
                        log.warning(
                            "large texts are tokenized in rank 0: a child does other than it"
                        )
                        self._unfit = True
                        raise Unavailable
        except EOFError:
            log.error("the tokenizer's process ended with %s while it started", self._reap())
            raise _again() from None
        except BaseException:
            self._reap()
            raise

    def _ask(self, data: bytes, special: bool, client: Client) -> list[int] | str:
        """The ids, or why the tokenizer refuses the text. Raises EOFError when the child ends."""
        self._send({"bytes": len(data), "special_tokens": special}, data, client)
        head, rest = self._read_head(client)
        if "error" in head:
            return head["error"]
        ids = array("I")
        size = head["count"] * ids.itemsize
        while len(rest) < size:
            rest += self._receive(client)
        ids.frombytes(rest)
        if head["last"]:
            self._reap()
        return ids.tolist()

    def _send(self, head: dict[str, Any], data: bytes, client: Client) -> None:
        silent = time.monotonic() + SILENCE_S
        for part in (json.dumps(head).encode() + b"\n", data):
            left = memoryview(part)
            while left:
                try:
                    left = left[self._socket.send(left[:PIECE_BYTES]) :]
                    silent = time.monotonic() + SILENCE_S
                except TimeoutError:
                    client.look()
                    if time.monotonic() > silent:
                        raise EOFError from None
                except OSError:
                    raise EOFError from None

    def _read_head(self, client: Client) -> tuple[dict[str, Any], bytearray]:
        """The answer's first line, and what has come after it."""
        found = bytearray()
        while b"\n" not in found:
            found += self._receive(client)
            found = found.lstrip(encode_child.ALIVE)
        line, _, rest = found.partition(b"\n")
        return json.loads(line), rest

    def _receive(self, client: Client) -> bytes:
        """The next bytes. Raises EOFError when the child has ended, or says nothing: stopped."""
        silent = time.monotonic() + SILENCE_S
        while True:
            try:
                data = self._socket.recv(PIECE_BYTES)
            except TimeoutError:
                client.look()
                if time.monotonic() < silent:
                    continue
                data = b""
            except OSError:
                data = b""
            if not data:
                raise EOFError
            return data

    def _reap(self) -> int | None:
        """Ends the child, if it has not; its exit code, negative for a signal."""
        child, self._child = self._child, None
        if child is None:
            return None
        self._socket.close()
        try:
            # A child that has ended by itself has a moment to become what wait() can see.
            return child.wait(timeout=POLL_S)
        except subprocess.TimeoutExpired:
            child.kill()
            return child.wait()


def _again() -> ApiError:
    return unavailable("The tokenizer's process has ended; another starts.", "tokenizer", 1)
