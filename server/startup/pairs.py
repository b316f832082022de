"""Each two ranks that share a link prove it, before anything is read or loaded.

Called once on the main thread of every rank, after joining and before the first sum. A dead wire or
a hostfile with the cables in other places says nothing: the first sum would hang, with nobody to
blame. So every rank first sends each of its peers a word, which takes no answer, and then listens
to each in turn: who hears nothing is at an end of the link that is dead, and its watchdog says so
by the stage that it was told. A mesh divides only long messages between the cables of a pair, so
where there is more than one each pair exchanges such, the others waiting meanwhile. In a ring only
neighbours have a link.
"""

import zlib
from collections.abc import Callable
from itertools import combinations

from server.startup.wiring import Wiring
from server.wire.link import Link

TOKEN_BITS = 0xFFFFFF  # of the run's name: sums of it stay well within int32
WORD = 32  # numbers, so that each cable of a ring carries some
LONG = 2**19  # numbers: 2 MB, of which a mesh's every cable carries a part from 512 KB on
WAITING = "waiting until all ranks have heard their peers"
WHAT_TO_DO = (
    "look for what the cables do not have as the hostfile says, with scripts/verify_cluster.sh, and"
    " measure each pair with its --link; scripts/make_hostfile.sh writes it as they are cabled"
)


class Stranger(Exception):
    """What answers at the other end of a link is no rank of this run."""


def run_token(run_id: str) -> int:
    """The run's name as a number; not 0, which would be no word at all."""
    return zlib.crc32(run_id.encode()) & TOKEN_BITS | 1


def prove_pairs(link: Link, wiring: Wiring, run_id: str, tell: Callable[[str], None]) -> None:
    """Raises Stranger. tell is called with what comes next: where a link is dead, with its ends."""
    token, me, peers = run_token(run_id), link.rank, wiring.peers(link.rank)
    for peer in peers:
        tell(f"{wiring.end(me, peer)} sends {wiring.end(peer, me)} a word")
        link.send_ints([token, me] * (WORD // 2), peer)
    for peer in peers:
        tell(f"{wiring.end(me, peer)} hears {wiring.end(peer, me)}")
        _compare(link.hear_ints(WORD, peer), [token, peer] * (WORD // 2), wiring.host(peer))
    tell(WAITING)
    if wiring.cables > 1 and not wiring.around:
        _prove_cables(link, wiring, token, tell)


def _prove_cables(link: Link, wiring: Wiring, token: int, tell: Callable[[str], None]) -> None:
    """One pair after the other, so that every rank knows which is at it."""
    for pair in combinations(range(wiring.size), 2):
        tell(f"all cables between {wiring.end(*pair)} and {wiring.end(*reversed(pair))}")
        for a, b in (pair, pair[::-1]):
            if link.rank == a:
                link.send_ints([token] * LONG, b)
            elif link.rank == b:
                _compare(link.hear_ints(LONG, a), [token] * LONG, wiring.host(a))
        link.share_ints([0])


def _compare(heard: list[int], due: list[int], sender: str) -> None:
    if heard != due:
        raise Stranger(
            f"what answers in the place of {sender} is no rank of this run: another server's, or a "
            "stranger, connected to a port where ranks meet"
        )
