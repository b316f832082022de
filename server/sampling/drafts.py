"""Drafts of a step: tokens that rank 0 expects, and how the ranks hear of them.

Used on the main thread of every rank. A row's input is followed by its drafts, the model computes
all of these places at once, and at each a token is chosen as if the drafts before it had been. A
draft is right when the token chosen at its place is the draft. So what comes of a row is what
comes of it without drafts: only the tokens up to the first wrong one count, and the one after them.
Drafts travel behind the header of the step's own sum: so many counts as there are rows, and then
the tokens of all of them in the room that the header before has told of.
"""

from collections.abc import Sequence

from server.wire.seal import Garbled

Drafts = Sequence[int]


def agreed(drafts: Drafts, tokens: Sequence[int]) -> int:
    """How many drafts are right. tokens: those chosen at the row's places, one more than drafts."""
    for n, draft in enumerate(drafts):
        if tokens[n] != draft:
            return n
    return len(drafts)


def split(tokens: Sequence[int], offered: Sequence[Drafts]) -> list[list[int]]:
    """Each row's tokens of a step that count. tokens: of all places; offered: by row."""
    taken, at = [], 0
    for drafts in offered:
        own = tokens[at : at + 1 + len(drafts)]
        taken.append(list(own[: 1 + agreed(drafts, own)]))
        at += len(own)
    return taken


def pack(drafts: Sequence[Drafts], room: int) -> list[int]:
    """The rows' drafts as numbers of the step's sum; of those beyond the room none."""
    counts, tokens = [], []
    for own in drafts:
        fits = list(own)[: room - len(tokens)]
        counts.append(len(fits))
        tokens += fits
    return [*counts, *tokens, *[0] * (room - len(tokens))]


def unpack(told: Sequence[int], rows: int, vocab: int) -> list[tuple[int, ...]]:
    """The drafts of so many rows. Raises Garbled for what rank 0 never sends."""
    counts, tokens = told[:rows], told[rows:]
    if min(counts, default=0) < 0 or sum(counts) > len(tokens):
        raise Garbled("step", f"drafts {list(counts)} in room for {len(tokens)}")
    if not 0 <= min(tokens, default=0) <= max(tokens, default=0) < vocab:
        raise Garbled("step", f"drafts {list(tokens)}, where the vocabulary ends at {vocab - 1}")
    drafts, at = [], 0
    for count in counts:
        drafts.append(tuple(tokens[at : at + count]))
        at += count
    return drafts
