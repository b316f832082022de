"""What an error of MLX's backends means: whose it is, its cause, and what mends it.

Pure, and knows no mlx: called with the text of an exception on the main thread of the rank that got
it. JACCL and ring say what failed and a number; the number is errno, or what a verb returned. The
texts are those of MLX 0.32.4. Only sockets and work requests fail because of another rank; device,
GID, queue pair, memory region and address are this rank's own.
"""

import enum
import re
from dataclasses import dataclass


class Kind(enum.Enum):
    """What follows. LATE: the other rank is not there yet. PEER: it is gone. OWN: this machine's
    state, which may be another in a moment. FIX: a setting or a file, which will not be."""

    LATE, PEER, OWN, FIX = range(4)


@dataclass(frozen=True)
class Meaning:
    kind: Kind
    text: str  # cause; what mends it

    @property
    def is_own(self) -> bool:
        return self.kind in (Kind.OWN, Kind.FIX)


DOCTOR = "scripts/verify_cluster.sh"
HOSTFILE = "scripts/make_hostfile.sh writes the hostfile as the Macs are cabled"
CLOSED = "the rank at the other end closed the connection; the cause is in what that rank said last"

# Of macOS, then of Linux where it has another number.
NUMBERS = {
    1: "it may not (EPERM)",
    2: "no such entry (ENOENT)",
    12: "out of memory (ENOMEM)",
    13: "access denied (EACCES)",
    16: "busy (EBUSY)",
    17: "already there (EEXIST)",
    22: "not valid (EINVAL)",
    24: "too many open files (EMFILE)",
    **dict.fromkeys((48, 98), "in use (EADDRINUSE)"),
    **dict.fromkeys((49, 99), "not an address of this host (EADDRNOTAVAIL)"),
    **dict.fromkeys((50, 100), "the interface is down (ENETDOWN)"),
    **dict.fromkeys((51, 101), "no route (ENETUNREACH)"),
    **dict.fromkeys((54, 104), "reset (ECONNRESET)"),
    **dict.fromkeys((60, 110), "no answer (ETIMEDOUT)"),
    **dict.fromkeys((61, 111), "refused (ECONNREFUSED)"),
    **dict.fromkeys((64, 112), "the host is down (EHOSTDOWN)"),
    **dict.fromkeys((65, 113), "no way to the host (EHOSTUNREACH)"),
    96: "no data (ENODATA)",
}
RTR = "Changing queue pair to RTR"
_RULES = (
    # (what the text holds, numbers or () for any, kind, cause; fix)
    ("Couldn't connect", (61, 111), Kind.LATE,
     "nothing listens there yet: that rank has not started, or not got so far; what it says in the"
     " log tells why. Or the address in \"ips\" is another host's"),
    ("Couldn't connect", (60, 110), Kind.LATE,
     "nothing answers at that address: a firewall drops what this host sends, or rank 0's first"
     f" \"ips\" is stale; {DOCTOR} tries the way"),
    ("Couldn't connect", (65, 113, 51, 101, 64, 112), Kind.LATE,
     "no way to that address: rank 0's first \"ips\" is not of a network that both have, or macOS"
     f" keeps this process from the local network; {DOCTOR} tries the way"),
    ("Couldn't connect", (), Kind.LATE, f"the other rank was not reached; {DOCTOR} tries the way"),
    ("Couldn't bind socket", (49, 99), Kind.OWN,
     "the address in this rank's \"ips\" is none of this host's: correct the hostfile, or see to"
     " the interface that should have it"),
    ("Couldn't bind socket", (48, 98), Kind.LATE,
     "another program has the port where ranks meet; another start takes another, or set"
     " CLUSTER_PORT"),
    ("Couldn't bind socket", (13, 1), Kind.FIX, "choose a CLUSTER_PORT above 1023"),
    ("Can't parse address", (), Kind.FIX,
     "rank 0's first \"ips\" is no address that this host can look up: correct the hostfile"),
    ("connection to a peer was lost", (), Kind.PEER, CLOSED),
    ("Accept failed", (), Kind.PEER, "a rank that connected has gone"),
    ("failed with errno=", (54, 104), Kind.PEER, CLOSED),
    ("failed with errno=", (60, 110), Kind.PEER,
     "the rank at the other end does not answer any more: its host is down or cut off"),
    # A stream that ends is no error, so errno is what an earlier call left behind: 2 or 17, say.
    ("failed with errno=", (), Kind.PEER, CLOSED),
    ("failed with error code", (), Kind.PEER,
     "a work request could not be posted: the link or the rank at its other end is gone"),
    ("RDMA enabled", (), Kind.OWN,
     "RDMA is off: in macOS Recovery run `rdma_ctl enable`, and restart"),
    ("Cannot initialize", (), Kind.FIX,
     "this MLX has no JACCL: it is in the wheels for macOS 26 and later alone; install MLX anew"
     " with a Python that knows this macOS"),
    ("(0 available)", (), Kind.OWN,
     "this Mac has no RDMA device: RDMA is off, its Thunderbolt is older than 5, or it waits for a"
     f" restart; {DOCTOR} tells which"),
    ("Could not find device", (), Kind.FIX,
     f"this Mac has RDMA devices, but none of that name: correct the hostfile; {HOSTFILE}"),
    ("Could not open device", (), Kind.OWN,
     "the device is there, but cannot be used: a process that hangs holds it, or the Mac needs a"
     " restart"),
    ("protection domain", (), Kind.OWN,
     "the port is down (no cable, or RDMA is off at its far end), or failed starts have used up"
     f" this Mac's protection domains, which a restart of it gives back; {DOCTOR} tells which"),
    ("completion queue", (), Kind.OWN,
     "another process has what the device can give: end it; if there is none, restart the Mac"),
    ("Creating the queue pair", (), Kind.OWN,
     "the device has about ten queue pairs, and other processes have them, or one that hangs: end"
     " them; if there are none, restart the Mac"),
    ("memory region", (), Kind.OWN,
     "the device has about a hundred memory regions, or memory cannot be wired: end other processes"
     " that use RDMA; if there are none, restart the Mac"),
    ("IPv4-mapped GID", (), Kind.OWN,
     "the port has no IPv4 address of its own, or Thunderbolt Bridge has taken it; scripts/"
     "make_hostfile.sh prints the commands that give it one"),
    (RTR, (22,), Kind.OWN,
     "the two ends of a cable do not fit: one is in Thunderbolt Bridge, they are in different"
     f" subnets, or its IPv4 address is not the second of its GIDs; {DOCTOR} looks at all"),
    (RTR, (60, 110), Kind.OWN,
     "the far end of a cable does not answer: the hostfile's rdma matrix is not how the Macs are"
     f" cabled, or the neighbour is unknown since a replug (ping its address once); {HOSTFILE}"),
    (RTR, (2, 96), Kind.OWN,
     "the port has no GID to speak from: it has no IPv4 address, is in Thunderbolt Bridge, or ranks"
     f" that hang still hold it; {DOCTOR} tells which"),
    ("Changing queue pair", (), Kind.OWN,
     f"this port or the one at the far end of its cable is not as RDMA needs it; {DOCTOR} looks at"
     " both"),
    ("mesh supports up to", (), Kind.FIX, "set BACKEND=jaccl-ring, or use fewer hosts"),
    ("per direction supported", (), Kind.FIX, "list fewer devices a neighbour in the hostfile"),
    ("valid mesh", (), Kind.FIX, f"the rdma matrix has gaps: {HOSTFILE}"),
    ("valid ring", (), Kind.FIX, f"the rdma matrix has gaps: {HOSTFILE}"),
    ("device file", (), Kind.FIX, f"the rdma matrix is malformed: {HOSTFILE}"),
    ("Device names", (), Kind.FIX, f"the rdma matrix is malformed: {HOSTFILE}"),
    ("connectivity", (), Kind.FIX, f"the rdma matrix is malformed: {HOSTFILE}"),
)  # fmt: skip
_NUMBER = re.compile(r"(?:errno[= ]|\(error: |error code |\()(\d+)\)?")


def explain(error: str) -> Meaning | None:
    """None for an error that is none of these. What the last rule says is the machine's own."""
    if not re.search(r"\[(jaccl|ring)\]|distributed backend|Can't parse address|RDMA", error):
        return None
    found = _NUMBER.search(error)
    number = int(found.group(1)) if found else None
    name = NUMBERS.get(number, "") if number is not None else ""
    for words, numbers, kind, text in _RULES:
        if words in error and (not numbers or number in numbers):
            stale = text is CLOSED and number not in (54, 104)
            return Meaning(kind, text if stale or not name else f"{name}: {text}")
    # JACCL adds texts from version to version; those of a link begin as the rules above have them.
    return Meaning(Kind.OWN, f"{name + ': ' if name else ''}{DOCTOR} looks for the cause")
