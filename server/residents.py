"""The models that a rank holds beside each other, and the one that is on its way.

On the main thread of every rank, as rank 0's messages say. Turns go round: each is one model's, of
those that have work. A model that is being loaded comes a piece nearer with each turn, so that the
others' answers go on meanwhile. All ranks hold the same models, under the same numbers: the places
in the list of all that are served.
"""

import gc
from collections.abc import Callable, Generator
from dataclasses import dataclass

import mlx.core as mx

from server.engine.engine import Engine
from server.engine.prefix_disk import PrefixDisk
from server.scheduler.scheduler import Scheduler
from server.scheduler.spectator import Spectator

FIRST = 0  # whose messages are those that name no model


class NotLoaded(Exception):
    """A model could not be loaded, for this reason. Every rank has it, and none holds the model."""


@dataclass(frozen=True)
class Resident:
    """A model on this rank. scheduler: rank 0's for it, elsewhere a Spectator. canary: proves that
    all ranks compute the same. disk: this rank's kept prefixes there, where they are kept there."""

    engine: Engine
    scheduler: Scheduler | Spectator
    canary: Callable[[Callable[[str], None]], None]
    disk: PrefixDisk | None = None


Pieces = Generator[None, None, Resident]


def _cannot(number: int) -> Pieces:
    raise NotLoaded(f"there is no model {number}")
    yield


class Residents:
    """first: the model that is there from the start. load: makes one resident, piece by piece;
    raises NotLoaded. let_go: hears of one that is unloaded."""

    def __init__(
        self,
        first: Resident,
        load: Callable[[int], Pieces] = _cannot,
        let_go: Callable[[int], None] = lambda number: None,
    ) -> None:
        self._load, self._let_go = load, let_go
        self._here = {FIRST: first}
        self._loading: tuple[int, Pieces] | None = None
        self._last = FIRST  # whose turn was the last
        self._turn: Resident | None = first  # whose turn it is

    def __getitem__(self, number: int) -> Resident:
        """Raises KeyError for one that is not here."""
        return self._here[number]

    def __iter__(self):
        return iter(self._here.values())

    @property
    def busy(self) -> bool:
        """Whether any has work."""
        return any(one.engine.busy for one in self)

    @property
    def decoding(self) -> int:
        """Rows that wait for whatever comes between two steps."""
        return sum(one.engine.decoding.live for one in self)

    @property
    def loading(self) -> bool:
        return self._loading is not None

    @property
    def prefilling(self) -> bool:
        """Whether any has a chunk of prompts to compute."""
        return any(one.engine.prefilling for one in self)

    def next(self) -> Resident | None:
        """Whose turn it is: of those with work the one after the last; without any, the first that
        is here."""
        order = sorted(self._here, key=lambda number: (number <= self._last, number))
        before = self._last
        for number in order:
            if self._here[number].engine.busy:
                self._last = number
                break
        else:
            self._turn = next(iter(self), None)
            return self._turn
        others = sum(one.engine.decoding.live for n, one in self._here.items() if n != number)
        self._turn = self._here[number]
        self._turn.engine.beside = others
        self._turn.engine.interrupted = number != before or self.loading
        return self._turn

    def drafts(self) -> int:
        """Rank 0's: the room for drafts behind the header after the next of whose turn it is."""
        return self._turn.scheduler.drafts() if self._turn is not None else 0

    def load(self, number: int) -> None:
        """Begins; advance() goes on with it. Not while another is on its way."""
        self._loading = number, self._load(number)

    def advance(self) -> tuple[int, str] | None:
        """The next piece of what is being loaded. Returns its number and why it could not be, where
        that shows, on every rank alike."""
        if self._loading is None:
            return None
        number, pieces = self._loading
        try:
            next(pieces)
            return None
        except StopIteration as done:
            self._here[number] = done.value
            self._loading = None
            return None
        except NotLoaded as error:
            self._loading = None
            reason = str(error)
        # Not within the handler: there the exception, and all that it came through, is still held.
        give_back()
        return number, reason

    def unload(self, number: int) -> None:
        """Lets go of a model that has no work, and of all that is kept for it."""
        resident = self._here.pop(number)
        if self._turn is resident:
            self._turn = None
        if resident.disk is not None:
            resident.disk.close()
        del resident
        self._let_go(number)
        give_back()


def give_back() -> None:
    """Frees what nobody uses. Models are full of cycles; and what MLX keeps for reuse is of sizes
    that the next has not."""
    gc.collect()
    mx.clear_cache()
