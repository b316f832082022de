"""Ports for servers that tests start."""

import contextlib
import os
import socket

_FIRST, _END = 20_000, 28_000  # below those that the kernel gives to clients
_APART = 1013  # so far apart do neighbouring processes, as the tests' workers are, begin to look

_given: set[int] = set()  # Ports handed out before they were bound must not be given twice.


def free_port(count: int = 1) -> int:
    """The first of count adjacent ports that nobody listens on."""
    start = _FIRST + os.getpid() * _APART % (_END - _FIRST)
    for first in [*range(start, _END - count), *range(_FIRST, start)]:
        ports = range(first, first + count)
        if not _given.isdisjoint(ports):
            continue
        with contextlib.ExitStack() as stack:
            try:
                for port in ports:
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            _given.update(ports)
            return first
    raise RuntimeError("no free ports")
