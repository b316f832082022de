"""Each end of a cable pings the other, out of its port: the proof that the two reach each other.

The program for one host is given to `/bin/sh -s`, as that of the survey is; all pings of a host
run at once. A Mac has one route for a subnet, and several ports may share one (169.254/16), so
ping is bound to the port (-b, Apple's own option). It also fills the neighbour cache, which may
be empty after a cable was plugged in, and without which a queue pair does not connect. A firewall
in stealth mode answers no ping, but it tells its hardware address: that is an answer here, since
RDMA needs no more.
"""

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from scripts.lib.cabling.cabling import Cable
from scripts.lib.cabling.ends import SILENT, UNCACHED, Fault, Side, fits, sides
from scripts.lib.cabling.network import ASKED, Neighbour, Network, parse_neighbours
from scripts.lib.hosts.on_hosts import Answer, run_on_hosts

PINGS_WITHIN_S = 20.0
COMMAND = ("/bin/sh", "-s")
# One answer to three is enough; after 4 s it ends by itself.
PING = ("/sbin/ping", "-n", "-o", "-c", "3", "-t", "4", "-b")
_PING = re.compile(r"^@@ends ping (\S+) (\S+) (\d+)$", re.M)
_CACHE = re.compile(r"^@@ends cache begin\n(.*?)^@@ends cache end 0$", re.M | re.S)
PROGRAM = """
try() {
  PING "$1" "$2" </dev/null >/dev/null 2>&1
  printf '\\n@@ends ping %s %s %s\\n' "$1" "$2" "$?"
}
PINGS
wait
printf '\\n@@ends cache begin\\n'
ARP </dev/null
printf '@@ends cache end %s\\n' "$?"
"""


# What a neighbour cache has of the far end.
COMPLETE, INCOMPLETE, EMPTY = "complete", "incomplete", "empty"


@dataclass(frozen=True)
class Heard:
    """What one end heard from the other. cache: of the far end, after the ping; None: not told."""

    answered: bool
    cache: str | None

    @property
    def silent(self) -> bool:
        """Nobody is there: no answer and no hardware address."""
        return not self.answered and self.cache != COMPLETE


# An end, by host and interface, to what it heard. An end that is not in it could not be asked.
Pings = Mapping[tuple[str, str], Heard]


def to_ping(networks: Mapping[str, Network], links: Sequence[Cable]) -> list[tuple[Side, Side]]:
    """(from, to) for both ends of every cable whose ends fit together."""
    known = [link for link in links if {link.a.host, link.b.host} <= set(networks)]
    pairs = [sides(networks, link) for link in known]
    return [pair for a, b in pairs if fits(a, b) for pair in ((a, b), (b, a))]


def program_for(wanted: Sequence[tuple[Side, Side]], hosts: Sequence[str]) -> bytes:
    """The same for every host; each finds its own pings by its place, which is the argument."""
    lines = ["case $1 in"]
    for place, host in enumerate(hosts):
        lines.append(f"  {place})")
        for a, b in wanted:
            if a.end.host == host:
                words = shlex.join([str(a.end.interface), str(b.address.ip)])
                lines.append(f"    try {words} &")
        lines.append("    ;;")
    text = PROGRAM.replace("PINGS", "\n".join([*lines, "esac"])).replace("PING", shlex.join(PING))
    return text.replace("ARP", shlex.join(ASKED["arp"])).encode()


def read_pings(wanted: Sequence[tuple[Side, Side]], outputs: Mapping[str, str]) -> Pings:
    """From what the program printed on each host. A ping without its line was not done."""
    heard = {}
    for host, text in outputs.items():
        text = text.replace("\r\n", "\n")
        codes = {
            (interface, address): int(code) for interface, address, code in _PING.findall(text)
        }
        table = _CACHE.search(text)
        cache = parse_neighbours(table[1]) if table else None
        for a, b in wanted:
            code = codes.get((str(a.end.interface), str(b.address.ip)))
            if a.end.host == host and code is not None and code not in (126, 127):
                known = None if cache is None else cached(cache, a, b)
                heard[host, str(a.end.interface)] = Heard(code == 0, known)
    return heard


def cached(cache: Sequence[Neighbour], a: Side, b: Side) -> str:
    """What the cache of a's Mac has of b, at the port of the cable."""
    at = (a.end.interface, str(b.address.ip))
    found = [entry.complete for entry in cache if (entry.interface, entry.address) == at]
    return COMPLETE if any(found) else INCOMPLETE if found else EMPTY


def ping_far_ends(
    networks: Mapping[str, Network],
    links: Sequence[Cable],
    *,
    within_s: float = PINGS_WITHIN_S,
    run: Callable[..., list[Answer]] = run_on_hosts,
) -> Pings:
    """Asks every host that has an end to ping from; one ssh each, all at once."""
    wanted = to_ping(networks, links)
    hosts = list(dict.fromkeys(a.end.host for a, _ in wanted))
    places = {host: str(place) for place, host in enumerate(hosts)}
    answers = run(
        hosts,
        lambda host: [*COMMAND, places[host]],
        within_s=within_s,
        stdin=program_for(wanted, hosts),
    )
    return read_pings(wanted, {answer.host: answer.output for answer in answers})


def find_silent(
    networks: Mapping[str, Network], links: Sequence[Cable], pings: Pings
) -> list[Fault]:
    """The cables whose ends fit together and do not hear each other; one fault each.

    Where nobody could ping, an end whose neighbour cache has no hardware address for the other.
    """
    found = []
    for pair in to_ping(networks, links)[::2]:
        told = [(side, other, pings.get(key(side))) for side, other in (pair, pair[::-1])]
        asked = [heard for _, _, heard in told if heard is not None]
        if not asked:
            found += _uncached(*pair) or _uncached(*pair[::-1])
        elif not any(heard.answered for heard in asked):
            # A stray frame may have come one way; RDMA needs both.
            found += [_silent(side, other, h) for side, other, h in told if h and h.silent][:1]
    return found


def key(side: Side) -> tuple[str, str]:
    return side.end.host, str(side.end.interface)


def _silent(side: Side, other: Side, heard: Heard) -> Fault:
    cache = f" (its neighbour cache: {heard.cache})" if heard.cache else ""
    # An end without a link is the one that is at fault, whoever asked.
    dead = next((s for s in (side, other) if _active(s) is False), None)
    if dead is not None:
        far = side if dead is other else other
        text = f"{dead.short} has no link (status: inactive), and gets no answer from {far.words}"
        return Fault(dead.end, SILENT, text)
    return Fault(
        side.end, SILENT, f"{side.short} gets no answer from the far end, {other.words}{cache}"
    )


def _active(side: Side) -> bool | None:
    interface = side.network.interfaces.get(str(side.end.interface))
    return None if interface is None else interface.active


def _uncached(side: Side, other: Side) -> list[Fault]:
    if side.network.neighbours is None:
        return []
    has = cached(side.network.neighbours, side, other)
    if has == COMPLETE:
        return []
    text = (
        f"{side.short}: its neighbour cache is {has} for the far end, {other.words}, and no ping "
        "could be tried"
    )
    return [Fault(side.end, UNCACHED, text)]


def ping_words(side: Side, other: Side) -> str:
    """What a person types to see for themselves."""
    port, address = side.end.interface, other.address.ip
    return f"ssh {side.end.host} /sbin/ping -c 3 -b {port} {address}"
