"""The TCP ports over which ranks find each other, where nobody has chosen them.

Called by mlx_launch.py at each launch. On this machine a block of ports is taken that nobody uses
and that no other launcher can take meanwhile: the launcher keeps the first port of the block bound
for as long as it lives, without listening, so two of them never agree on one, whoever started
them and from which checkout. Which block is left to chance: a start that failed because a
stranger called, or a stale process listened, has others the next time.
"""

import contextlib
import random
import socket
from collections.abc import Sequence

from scripts.lib.hosts.reach import MOST_RANKS

# Below the ports that systems hand out to clients: from 32768 on Linux, from 49152 on macOS.
FIRST, END = 28_000, 32_000
BLOCK = 1 + MOST_RANKS  # The launcher's own, and one for each rank.
BLOCKS = range(FIRST, END - BLOCK + 1, BLOCK)
AUTO = "auto"
OPTION = "--starting-port"


def fill_in(arguments: list[str], restarts: int) -> tuple[list[str], socket.socket | None]:
    """Put a number in place of `--starting-port auto`: a block of this machine, or auto:N: for
    ranks elsewhere N, and at each later start another. Returns the socket that keeps the block."""
    if OPTION not in arguments:
        return arguments, None
    place = arguments.index(OPTION) + 1
    word, _, first = (arguments[place : place + 1] or [""])[0].partition(":")
    if word != AUTO:
        return arguments, None
    keeper = None
    if not first:
        keeper = reserve_block(random.sample(BLOCKS, len(BLOCKS)))
        port = keeper.getsockname()[1] + 1
    elif restarts:
        port = random.choice(BLOCKS) + 1
    else:
        port = int(first)
    return [*arguments[:place], str(port), *arguments[place + 1 :]], keeper


def reserve_block(order: Sequence[int]) -> socket.socket:
    """The bound socket of the first block, in this order of their first ports, that is free."""
    for first in order:
        keeper = _bind(first)
        if keeper is None:
            continue
        with contextlib.ExitStack() as stack:
            for port in range(first + 1, first + BLOCK):
                taken = _bind(port)
                if taken is None:
                    break
                stack.enter_context(taken)
            else:
                return keeper
        keeper.close()
    raise OSError(f"no {BLOCK} adjacent TCP ports are free between {FIRST} and {END}")


def _bind(port: int) -> socket.socket | None:
    """A socket bound there, if nobody listens on it or is connected over it."""
    one = socket.socket()
    try:
        one.bind(("127.0.0.1", port))  # Without SO_REUSEADDR, which would share it with a ring.
    except OSError:
        one.close()
        return None
    return one
