"""How a rank joins the group: MLX's init, and a first sum that only this run's ranks get right.

Called once on the main thread of every rank, under a limit of its own (JOIN_TIMEOUT). MLX asks
nobody who connects: over ring the first caller of a rank's port is taken for its neighbour, over
JACCL for a rank. A scanner, or a rank of a server that starts at the same moment, can so take a
peer's place, and nothing says so until the first collective. All that can go wrong here is over
when the ranks are started again, which the exit code tells the supervisor.
"""

import zlib
from collections.abc import Mapping, MutableMapping

import mlx.core as mx

from server.startup.handshake import Mismatch, promised_group
from server.wire.link import Link

TOKEN_BITS = 0xFFFFFF  # of the run's name: sums of it stay well within int32

# What JACCL says of a machine that somebody has to see to. Each start that fails there is reported
# to cost a protection domain, of about 11, until that Mac is restarted.
TO_BE_MENDED = (
    "RDMA enabled",
    "Could not find device",
    "protection domain",
    "GID",
    "malformed",
    "Cannot initialize",
)


class ToBeMended(Exception):
    """This machine cannot join before somebody has seen to it. Not a lost peer's doing."""


class NotJoined(Exception):
    """The ranks of this run did not come together. Another try may succeed."""


def join(env: MutableMapping[str, str], run_id: str) -> Link:
    """Joins the ranks of this run. Raises Mismatch for another number of them than the launcher
    meant, NotJoined when they did not find each other or somebody else is among them, ToBeMended
    where no other try is due."""
    backend, ranks = promised_group(env)
    if ranks == 1:
        # For one rank mlx.launch writes an empty hostfile, which MLX cannot parse.
        env.pop("MLX_HOSTFILE", None)
        return Link(mx.distributed.init())
    try:
        group = mx.distributed.init(strict=True, backend=backend)
    except Exception as error:
        if any(words in str(error) for words in TO_BE_MENDED):
            raise ToBeMended(f"this machine cannot join over {backend}: {error}") from error
        raise NotJoined(f"the ranks did not join over {backend}: {error}") from error
    if group.size() != ranks:
        raise Mismatch(f"the launcher started {ranks} ranks, but {group.size()} joined")
    link = Link(group)
    prove_peers(link, run_id)
    return link


def prove_peers(link: Link, run_id: str) -> None:
    """One sum in which each rank has a place for the run's name: whoever joined is of this run."""
    token = zlib.crc32(run_id.encode()) & TOKEN_BITS | 1  # not 0, which would be no word at all
    mine = [token if rank == link.rank else 0 for rank in range(link.size)]
    try:
        total = link.sum(mx.array(mine, dtype=mx.int32))
        mx.eval(total)
    except Exception as error:
        raise NotJoined(f"the ranks joined, and lost each other at once: {error}") from error
    if total.tolist() != [token] * link.size:
        raise NotJoined(
            "what joined is not this run's ranks alone: another server's, or a stranger, "
            "connected to a port where ranks meet"
        )


def name_backend(env: Mapping[str, str]) -> str:
    """What carries the collectives: "ring", "jaccl", "jaccl-ring", or "none" for a single rank."""
    backend, ranks = promised_group(env)
    if ranks == 1:
        return "none"
    around = env.get("MLX_JACCL_RING") or env.get("JACCL_RING")
    return "jaccl-ring" if backend == "jaccl" and around else backend
