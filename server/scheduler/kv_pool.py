"""One memory for the caches of all loaded models: what each may have, and who fits beside whom.

Every rank keeps one, of the same numbers, and changes it as the same messages come; rank 0 decides
by it. Imports no mlx.

A model that is loaded takes memory from the caches of the others. What a request costs is a part of
what its model could have alone, and the parts of all may make one whole: so a row that fits does on
each rank, whatever rows of other models lie beside it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from server.protocol.row_lengths import Precision
from server.scheduler.kv_budget import KvBudget, RankMemory, shared_budget

UNKNOWN_CONTEXT = 2**31
LEAST_TOKENS = 4096  # of caches, without which no model is loaded; less where its context is less


@dataclass(frozen=True)
class RankRoom:
    """One rank's, in bytes, with the first model loaded. caches: for them; spare: what its weights
    leave; spent: what each byte of more weights takes from the caches, of one."""

    caches: int
    spare: int
    spent: float


@dataclass(frozen=True)
class RankPart:
    """What a model takes on one rank, in bytes. fixed, token, whole: as RankMemory has them."""

    weights: int
    fixed: int
    token: int
    whole: int = 0

    def memory(self, caches: int) -> RankMemory:
        """With so much for its caches."""
        return RankMemory(caches, self.fixed, self.token, self.whole)


@dataclass(frozen=True)
class Need:
    """What a model takes on each rank. context: tokens; apart: as KvBudget has it; start: as
    Precision has it."""

    parts: tuple[RankPart, ...]
    context: int
    apart: bool = True
    start: int = 0

    @property
    def least(self) -> list[int]:
        """Bytes of caches on each rank, without which it is not loaded."""
        tokens = min(LEAST_TOKENS, self.context)
        precision = Precision(self.start)
        return [part.memory(0).of(tokens, tokens, precision) for part in self.parts]


class KvPool:
    """rooms: by rank. first: what the model takes that they were measured with. weights_most: bytes
    of all models' weights on a rank; None: as the memory allows."""

    def __init__(
        self, rooms: Sequence[RankRoom], first: Need, weights_most: int | None = None
    ) -> None:
        self._rooms = tuple(rooms)
        self._weights_most = weights_most
        self._first = first
        self._needs: dict[int, Need] = {}
        self._budgets: dict[int, KvBudget] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._needs

    def add(self, number: int, need: Need) -> None:
        """A model is loaded."""
        self._change({**self._needs, number: need})

    def remove(self, number: int) -> None:
        """It is no more."""
        self._change({n: need for n, need in self._needs.items() if n != number})

    def budget(self, number: int) -> KvBudget:
        """What a loaded model could have if nothing of the others ran."""
        return self._budgets[number]

    def budgets(self) -> list[KvBudget]:
        """Of all loaded models."""
        return list(self._budgets.values())

    def caches(self) -> list[int]:
        """Bytes of each rank for the caches of all loaded models."""
        return self._caches(list(self._needs.values()))

    def with_it(self, number: int, need: Need, without: Sequence[int] = ()) -> dict[int, KvBudget]:
        """What each model could have with one more, and without some."""
        stay = {n: one for n, one in self._needs.items() if n not in without}
        return self._share({**stay, number: need})

    def misfit(self, need: Need, peak: int = 0, without: Sequence[int] = ()) -> str:
        """Why a model cannot be loaded beside the loaded ones, but for some; "" if it can. peak:
        bytes of a rank that loading takes beside what it ends with."""
        beside = [one for n, one in self._needs.items() if n not in without]
        every = [*beside, need]
        caches = self._caches(every)
        for rank, room in enumerate(self._rooms):
            weights = sum(one.parts[rank].weights for one in every)
            least = sum(one.least[rank] for one in every)
            mine = need.parts[rank].weights
            what = f"rank {rank}: its {_size(mine)} of weights"
            if len(every) > 1:
                what += f", beside {_size(weights - mine)} of other models"
            if self._weights_most is not None and weights > self._weights_most:
                return f"{what}, are more than MODELS_GB, {_size(self._weights_most)}"
            whole = room.spare + self._first.parts[rank].weights
            if weights + max(peak, least) > whole:
                return f"{what}, leave too little of {_size(whole)}"
            if caches[rank] < least:
                return (
                    f"{what}, leave {_size(caches[rank])} for caches, where {_size(least)} is least"
                )
        return ""

    def _change(self, needs: Mapping[int, Need]) -> None:
        self._budgets = self._share(needs)
        self._needs = dict(needs)

    def _caches(self, needs: Sequence[Need]) -> list[int]:
        """Bytes for caches on each rank."""
        return [
            max(0, int(room.caches - room.spent * (weights - self._first.parts[rank].weights)))
            for rank, room in enumerate(self._rooms)
            for weights in [sum(one.parts[rank].weights for one in needs)]
        ]

    def _share(self, needs: Mapping[int, Need]) -> dict[int, KvBudget]:
        caches = self._caches(list(needs.values()))
        return {
            number: shared_budget(
                (part.memory(memory) for memory, part in zip(caches, need.parts, strict=True)),
                need.apart,
                need.start,
            )
            for number, need in needs.items()
        }


class KvShare:
    """A model's budget, as its scheduler asks for it. whole: what it could have alone; taken: the
    part of the memory that rows of others need, kept: that is kept for others and stays; alone:
    whether none of others run."""

    def __init__(
        self,
        whole: Callable[[], KvBudget],
        taken: Callable[[], float],
        kept: Callable[[], float],
        alone: Callable[[], bool],
    ) -> None:
        self._whole, self._taken, self._kept, self._alone = whole, taken, kept, alone

    @property
    def capacity(self) -> int:
        """Tokens of rows that it can have now."""
        taken = self._taken()
        whole = self._whole().capacity
        return int(whole * max(0.0, 1.0 - taken)) if taken else whole

    @property
    def row_cost(self) -> int:
        """As KvBudget.row_cost."""
        return self._whole().row_cost

    @property
    def precision(self) -> Precision:
        """As KvBudget.precision."""
        return self._whole().precision

    def rest(self, wanted: int) -> int:
        """As KvBudget.rest, without what others keep."""
        return self.capacity - wanted - int(self._whole().capacity * self._kept())

    def cost(self, lengths: Iterable[int]) -> int:
        """As KvBudget.cost."""
        return self._whole().cost(lengths)

    def holds(self, lengths: Iterable[int]) -> bool:
        """Whether such a batch fits. A row that is the only one of all models always does."""
        lengths = list(lengths)
        if len(lengths) <= 1 and self._alone():
            return True
        return not lengths or self.cost(lengths) <= self.capacity


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
