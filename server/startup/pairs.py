"""Each two ranks that share a link prove it, before anything is read or loaded.

Called once on the main thread of every rank, after joining and before the first sum. A dead wire or
a hostfile with the cables in other places says nothing: the first sum would hang, with nobody to
blame. So the two ranks of each pair exchange a word, the lower one first, in rounds that are the
same on all ranks: whether a send waits for its receiver or not, none can wait for each other. A
rank whose peer is held up by another pair is held up, too, but in a later round; each round may
take a little longer than the one before, so the pair whose link is dead is the first to say so.
A mesh divides only long messages between the cables of a pair, so where there is more than one each
pair exchanges such as well. In a ring only neighbours have a link.
"""

import zlib
from collections.abc import Callable
from itertools import combinations

from server.startup.wiring import Wiring
from server.wire.link import Link

TOKEN_BITS = 0xFFFFFF  # of the run's name: sums of it stay well within int32
WORD = 32  # numbers, so that each cable of a ring carries some
LONG = 2**19  # numbers: 2 MB, of which a mesh's every cable carries a part from 512 KB on
ROUND_S = 2.0  # by which a rank waits longer in each round: more than watchdogs differ
WAITING = "waiting until all pairs have exchanged a word"
WHAT_TO_DO = (
    "look for what the cables do not have as the hostfile says, with scripts/verify_cluster.sh, and"
    " measure each pair with its --link; scripts/make_hostfile.sh writes it as they are cabled"
)

# What comes next, and the seconds beyond the limit that it may take.
Tell = Callable[[str, float], None]


class Stranger(Exception):
    """What answers at the other end of a link is no rank of this run."""


def run_token(run_id: str) -> int:
    """The run's name as a number; not 0, which would be no word at all."""
    return zlib.crc32(run_id.encode()) & TOKEN_BITS | 1


def plan_rounds(wiring: Wiring) -> list[tuple[int, tuple[int, int]]]:
    """Every pair that has a link, each after all earlier ones of its two ranks, with its round."""
    next_round = [0] * wiring.size
    planned = []
    for a, b in combinations(range(wiring.size), 2):
        if b in wiring.peers(a):
            number = max(next_round[a], next_round[b])
            next_round[a] = next_round[b] = number + 1
            planned.append((number, (a, b)))
    return sorted(planned)


def prove_pairs(link: Link, wiring: Wiring, run_id: str, tell: Tell) -> None:
    """Raises Stranger. tell hears of each pair of this rank's before it is tried."""
    token, rounds = run_token(run_id), plan_rounds(wiring)
    for number, pair in rounds:
        if link.rank in pair:
            a, b = pair
            tell(f"{wiring.end(a, b)} and {wiring.end(b, a)} exchange a word", number * ROUND_S)
            _exchange(link, wiring, pair, WORD, token)
    tell(WAITING, (rounds[-1][0] + 1) * ROUND_S)
    if wiring.cables > 1 and not wiring.around:
        link.share_ints([0])
        for _, pair in rounds:
            a, b = pair
            tell(f"all cables between {wiring.end(a, b)} and {wiring.end(b, a)}", 0.0)
            if link.rank in pair:
                _exchange(link, wiring, pair, LONG, token)
            link.share_ints([0])  # so that every rank knows which pair is at it


def _exchange(link: Link, wiring: Wiring, pair: tuple[int, int], count: int, token: int) -> None:
    """A word of so many numbers each way, the lower rank's first. Judged when both are through: the
    other end shall be able to judge, too."""
    stranger = None
    for sender, hearer in (pair, pair[::-1]):
        word = [token, sender] * (count // 2)
        if link.rank == sender:
            link.send_ints(word, hearer)
        elif link.hear_ints(count, sender) != word:
            stranger = sender
    if stranger is not None:
        raise Stranger(
            "what joined is not this run's ranks alone: another server's, or a stranger, connected "
            f"to a port where ranks meet, in the place of {wiring.host(stranger)}"
        )
