"""Who asks, and how long they wait: for whatever a request waits for before it has a ticket.

Made on rank 0's HTTP threads, one a request. Imports no mlx.
"""

import ipaddress
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from server.errors import timed_out


@dataclass(frozen=True)
class Asker:
    """source: those who share what one client may take, an API key's label or an address.

    deadline: by the monotonic clock, timeout seconds after the request came in. gone: whether the
    client has left. serving: raises ApiError once the server would not take the request any more.
    """

    source: str
    deadline: float = math.inf
    timeout: float = math.inf
    gone: Callable[[], bool] = lambda: False
    serving: Callable[[], object] = lambda: None

    def check(self) -> None:
        """Called every now and then by whatever has it wait. Raises ApiError 504 when time is up,
        and ConnectionError when there is nobody left to answer."""
        if self.gone():
            raise ConnectionAbortedError("the client left while its request waited")
        if time.monotonic() > self.deadline:
            raise timed_out(self.timeout)
        self.serving()


SERVER = Asker("")  # the server itself: no client, no hurry


def network_of(address: str) -> str:
    """What an address counts as: itself, or of IPv6 the /64 that one machine can have all of."""
    try:
        parsed = ipaddress.ip_address(address.split("%")[0])
    except ValueError:
        return address
    if parsed.version == 4:
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed), 64), strict=False))
