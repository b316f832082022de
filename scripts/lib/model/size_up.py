"""How a model would run on 1 to 8 ranks: which split, what each rank holds, what context is left.

The split is the arrangement's (server/startup/arrangement.py), the KV cache the estimate's; room
and context are reckoned as the server does when it has loaded. Needs mlx, and computes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from scripts.lib.hosts.reach import MOST_RANKS
from scripts.lib.model.hosts_memory import Machines
from scripts.lib.model.kv_estimate import Unknown, rank_rows
from server.engine.kv_memory import SPARE_SHARE, RowBytes
from server.scheduler.kv_budget import RankMemory, shared_budget
from server.startup.arrangement import Arrangement, arrangements, choose
from server.startup.mlx_lm_source import Architecture
from server.startup.weights_index import Weight, total


@dataclass(frozen=True)
class Sized:
    """So many ranks. how: in words, "" where none is possible. weights: bytes on each rank; rows:
    what a row takes on each, empty where kv says why that is not known. memories: bytes of each,
    None where not known, empty where there are not so many hosts. context: tokens of a request that
    fit, 0: none; None: not known. reasons: against it."""

    ranks: int
    how: str
    weights: tuple[int, ...] = ()
    rows: tuple[RowBytes, ...] = ()
    kv: str = ""
    memories: tuple[int | None, ...] = ()
    context: int | None = None
    reasons: tuple[str, ...] = ()

    @property
    def possible(self) -> bool:
        return bool(self.how) and not self.reasons


@dataclass(frozen=True)
class Subject:
    """What is sized. context: tokens that it was made for, or that CONTEXT_MAX allows; None: not
    told. kv_budget: bytes on each rank, in place of what is left. kv_bits, kv_bits_from: of keys
    and values, as the server's settings have them. draft_bytes: of a draft model's weights, which
    are rank 0's."""

    config: Mapping[str, Any]
    weights: Mapping[str, Weight]
    architecture: Architecture
    context: int | None
    parallel: str = "auto"
    kv_budget: int | None = None
    kv_bits: int = 0
    kv_bits_from: int = 0
    draft_bytes: int = 0


def size_up(subject: Subject, machines: Machines, counts: Sequence[int] = ()) -> list[Sized]:
    """For each number of ranks."""
    return [
        _with(subject, ranks, machines.of_ranks(ranks))
        for ranks in counts or range(1, MOST_RANKS + 1)
    ]


def _with(subject: Subject, ranks: int, memories: tuple[int | None, ...] | None) -> Sized:
    found = arrangements(
        subject.config,
        subject.weights,
        ranks,
        memories or (),
        subject.architecture,
        subject.parallel,
    )
    how = choose(found)
    if how is None:
        reasons = tuple(f"{one.kind}: {reason}" for one in found for reason in one.reasons)
        return Sized(ranks, "", memories=memories or (), reasons=reasons)
    first, *others = how.shares or (-(-total(subject.weights) // ranks),) * ranks
    weights = (first + subject.draft_bytes, *others)
    rows, unknown = _rows(subject, ranks, how)
    against, context = (), None
    if memories and None not in memories:
        context, against = _room(subject, weights, rows, memories)
    return Sized(ranks, str(how), weights, tuple(rows), unknown, memories or (), context, against)


def _rows(subject: Subject, ranks: int, how: Arrangement) -> tuple[Sequence[RowBytes], str]:
    try:
        name, bits = subject.architecture.name, subject.kv_bits
        return rank_rows(dict(subject.config), name, ranks, how, bits), ""
    except Unknown as error:
        return (), str(error)


def _room(
    subject: Subject,
    weights: Sequence[int],
    rows: Sequence[RowBytes],
    memories: Sequence[int],
) -> tuple[int | None, tuple[str, ...]]:
    """The context that fits, and what stands against it."""
    full = [
        f"rank {rank} would hold {held / 1e9:.1f} GB of weights in {memory / 1e9:.1f} GB"
        for rank, (held, memory) in enumerate(zip(weights, memories, strict=True))
        if held >= memory
    ]
    if full:
        return 0, tuple(full)
    if not rows:
        return None, ()
    ranks = [
        RankMemory(subject.kv_budget or int((memory - held) * SPARE_SHARE), *astuple(row))
        for held, memory, row in zip(weights, memories, rows, strict=True)
    ]
    fewer = any(row.whole for row in rows)
    budget = shared_budget(ranks, start=subject.kv_bits_from if fewer else 0)
    fits = min(budget.reach, subject.context or budget.reach)
    return fits, () if fits else ("no room is left for the KV cache of a single request",)
