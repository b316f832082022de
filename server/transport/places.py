"""Who holds how much of the transport: the connections' places, and the bytes of what is not yet
admitted. One Places for a server; a Place is a connection's share of it.

Called by the accepting thread and by the threads of the connections, on rank 0. Where room runs
out, an address that holds more gives way to one that holds less: a connection on which nothing
is asked is closed, a request that is still arriving is told 503. With one address asking, it may
use everything, and only what is old gives way. Nothing that is being answered ever does.
"""

import contextlib
import ipaddress
import socket
import threading
import time
from collections import Counter

from server.protocol.errors import ApiError, unavailable

MAX_CONNECTIONS = 1024
SPARE_SHARE = 64  # of so many places one more is kept for those who only look, as at /health
HELD_BYTES = 256 * 2**20  # of all requests that are not yet admitted, beyond FREE_BYTES each
FREE_BYTES = 16 * 2**10  # of each request: one as small as this is never refused for want of room
# What gives way to a newcomer from the same address must be older, in seconds.
YIELDS_AFTER_S = {"idle": 1.0, "head": 1.0, "body": 10.0}
IDLE, HEAD, BODY, BUSY = "idle", "head", "body", "busy"  # the phases of a connection
ORDER = (IDLE, HEAD, BODY)


class Place:
    """One connection's. spare: beyond the most, for one short request. gave_way: why it was taken
    away, if it was."""

    def __init__(self, places: "Places", connection: socket.socket, address: str, spare: bool):
        self.address = address
        self.spare = spare
        self.phase = IDLE
        self.since = time.monotonic()
        self.gave_way: ApiError | None = None
        self.read = 0  # bytes of the request in hand
        self.counted = 0  # those of them that the server's limit is about
        self.admitted = False  # the request in hand: its bytes are no longer held
        self._places = places
        self._connection = connection

    def enter(self, phase: str) -> None:
        """Raises ApiError 503 if the place was taken away meanwhile."""
        with self._places.lock:
            if phase == IDLE:
                self.admitted = False  # whatever was is over
            if phase != self.phase:
                self.phase, self.since = phase, time.monotonic()
            if self.gave_way is not None and phase != IDLE:
                raise self.gave_way

    def hold(self, count: int) -> None:
        """Counts bytes that have come in. Raises ApiError 503 where there is no room for them."""
        more = max(0, self.read + count - FREE_BYTES) - self.counted
        if more > 0:
            self._places.hold(self, more)
        self.read += count

    def admit(self) -> None:
        """The request in hand has a place in the queue, where its bytes count no more."""
        self.admitted = True

    def drop(self) -> None:
        """What was held is no longer."""
        with self._places.lock:
            self._places.held -= self.counted
            self.read = self.counted = 0

    def give_way(self, error: ApiError) -> None:
        """With the lock held. Its thread wakes from reading, and finds what became of it."""
        self.gave_way = error
        self._places.held -= self.counted
        self.counted = 0
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RD)


class Places:
    """most: connections at a time; bytes_held: of all that is not admitted yet."""

    def __init__(self, most: int = MAX_CONNECTIONS, bytes_held: int = HELD_BYTES) -> None:
        self.lock = threading.RLock()
        self.held = 0
        self._most = most
        self._spare = most // SPARE_SHARE
        self._bytes = bytes_held
        self._taken: set[Place] = set()

    def take(self, connection: socket.socket, host: str) -> Place | None:
        """A place for a new connection; None: there is none, and none gives way."""
        address = neighbourhood(host)
        with self.lock:
            spare = False
            if len(self._taken) >= self._most:
                victim = self._who_leaves(address)
                if victim is not None:
                    self._taken.discard(victim)
                    victim.give_way(_full())
                elif len(self._taken) < self._most + self._spare:
                    spare = True
                else:
                    return None
            place = Place(self, connection, address, spare)
            self._taken.add(place)
            return place

    def leave(self, place: Place) -> None:
        """Before the connection is closed: its descriptor may be another's afterwards."""
        with self.lock:
            place.drop()
            self._taken.discard(place)

    def hold(self, place: Place, more: int) -> None:
        """More bytes of a request that is still arriving."""
        with self.lock:
            if place.gave_way is not None:
                raise place.gave_way
            while self.held + more > self._bytes:
                self._forget_admitted()
                if self.held + more <= self._bytes:
                    break
                victim = self._who_holds_most(place, more)
                if victim is None:
                    raise _overloaded()
                victim.give_way(_overloaded())
            self.held += more
            place.counted += more

    def _forget_admitted(self) -> None:
        """The bytes of an admitted request are gone."""
        for place in self._taken:
            if place.counted and place.admitted:
                self.held -= place.counted
                place.counted = 0

    def _who_holds_most(self, asking: Place, more: int) -> Place | None:
        """Of the greediest address, the largest request that is still arriving; None: the asking
        one itself is that, or nobody holds anything."""
        of_address: Counter[str] = Counter()
        for place in self._taken:
            of_address[place.address] += place.counted
        of_address[asking.address] += more
        others = [
            place
            for place in self._taken
            if place is not asking and place.counted and place.phase in (HEAD, BODY)
        ]

        def size(place: Place) -> tuple[int, int]:
            own = place.counted + (more if place is asking else 0)
            return of_address[place.address], own

        most = max(others, key=size, default=None)
        return most if most is not None and size(most) > size(asking) else None

    def _who_leaves(self, newcomer: str) -> Place | None:
        """Of the greediest address, what asks nothing, then what is arriving, the oldest first."""
        counts = Counter(place.address for place in self._taken)
        own, now = counts[newcomer] + 1, time.monotonic()

        def yields(place: Place) -> bool:
            if place.phase == BUSY:
                return False
            if place.address == newcomer:
                return now - place.since >= YIELDS_AFTER_S[place.phase]
            return counts[place.address] > own

        return min(
            (place for place in self._taken if yields(place)),
            key=lambda p: (-counts[p.address], ORDER.index(p.phase), p.since),
            default=None,
        )


def neighbourhood(host: str) -> str:
    """What counts as one address: an IPv4 address, or the 64 bits of an IPv6 network, in which a
    single machine can have as many addresses as it likes."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))


def _full() -> ApiError:
    return unavailable("Too many connections.", "too_many_connections")


def _overloaded() -> ApiError:
    return unavailable(
        f"Requests that are still arriving hold {HELD_BYTES // 2**20} MiB in all; this one is the "
        "largest of those who hold most.",
        "overloaded",
    )
