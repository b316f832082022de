"""How many layers of a pipeline each rank gets, by what its memory holds.

Pure. The last rank has the first layers, as in mlx-lm's pipelines, and rank 0 the last ones.
"""

from collections.abc import Sequence


def deal(nbytes: Sequence[int], fixed: int, memories: Sequence[int | None]) -> tuple[int, ...]:
    """Layers for each rank, one at least. nbytes: of each layer; fixed: bytes that every rank has
    beside them; memories: bytes that each may use, None where that is unknown.

    The fullest rank is as little full as can be: what a rank has left is its room for the KV
    caches of its layers, and the one with the least room sets the limit for all.
    """
    known = [memory for memory in memories if memory is not None]
    # Nobody knows: all alike. One that is smaller than what all ranks hold counts as very small.
    room = [max(1, (known and (memory or min(known)) or 1 << 60) - fixed) for memory in memories]
    ranks, count = len(room), len(nbytes)
    before = [0]
    for size in nbytes:
        before.append(before[-1] + size)
    # best[n]: how full the fullest of the ranks so far is, with the first n layers among them, and
    # how many layers the latest of them has. Ranks are filled from the last.
    best: list[tuple[float, int]] = [(0.0, 0)] + [(float("inf"), 0)] * count
    taken = []
    for rank in reversed(range(ranks)):
        now: list[tuple[float, int]] = [(float("inf"), 0)] * (count + 1)
        for end in range(1, count + 1):
            for start in range(end):
                full = max(best[start][0], (before[end] - before[start]) / room[rank])
                if full < now[end][0]:
                    now[end] = (full, end - start)
        best = now
        taken.append(now)
    dealt, end = [], count
    for row in reversed(taken):
        dealt.append(row[end][1])
        end -= row[end][1]
    return tuple(dealt)


def deal_runs(
    runs: Sequence[range], nbytes: Sequence[int], fixed: int, memories: Sequence[int | None]
) -> tuple[int, ...]:
    """The same where some layers have to stay together: runs of them, in order."""
    dealt = deal([sum(nbytes[n] for n in run) for run in runs], fixed, memories)
    ends = [sum(dealt[rank:]) for rank in range(len(dealt))]
    return tuple(
        sum(len(run) for run in runs[end - count : end])
        for end, count in zip(ends, dealt, strict=True)
    )
