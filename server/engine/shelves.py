"""Where the rows of a decoding batch lie: rows of like length share a rectangle, a shelf.

Used by shelved_kv.py, on the main thread of every rank. Nothing here holds an array: it says what
is to be done with those of each layer, and all layers do the same. The rows of a shelf end in one
column, so that a step appends to all of them at once; a shelf is so wide that some longer ones fit
before it. A row that leaves leaves its place empty; a newcomer takes it. Only when too much of a
shelf is empty, or its rows have grown to its end, is it built again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from server.protocol.row_lengths import MOST_RECTANGLES, SLACK, STEP, are_alike

SHORT = 1024  # tokens: a shelf of such rows costs little to build again
ROOM = 64  # columns that a new shelf has free on either side, at least
SPARE = 4  # one row in so many is, of a shelf that is built for newcomers: for fewer of them
WASTE = 1 / 4  # of a shelf may be padding


@dataclass(eq=False)
class Seat:
    """One row's. length: its tokens in the caches. quantised: whether these are. alone: no other
    row comes to its shelf, so that it can have several tokens a step."""

    length: int
    quantised: bool = False
    alone: bool = False


@dataclass(eq=False)
class Shelf:
    """seats: by row of its arrays, None where one is empty. end: the column of the next tokens.
    rows and columns: what its arrays have room for. quantised: whether its rows are."""

    seats: list[Seat | None]
    end: int
    rows: int
    columns: int
    quantised: bool = False

    @property
    def held(self) -> list[Seat]:
        return [seat for seat in self.seats if seat is not None]

    @property
    def longest(self) -> int:
        return max((seat.length for seat in self.held), default=0)

    @property
    def start(self) -> int:
        """The first column that a row has something in."""
        return self.end - self.longest

    @property
    def wasted(self) -> bool:
        """Whether more of it is empty than may be. A batch that is short costs nothing."""
        held, longest = self.held, self.longest
        seen = len(self.seats) * longest
        if len(held) < len(self.seats) and seen - sum(s.length for s in held) > seen * WASTE:
            return True
        tight = len(held) * (longest + 2 * STEP) + (2 * STEP if longest <= SHORT else 0)
        return self.rows * self.columns * (1 - WASTE) > tight

    def takes(self, newcomer: Seat, slack: int) -> bool:
        """Whether a row of its length may lie here."""
        if any(seat.alone for seat in self.held):
            return False
        lengths = [newcomer.length, *(seat.length for seat in self.held)]
        return are_alike(min(lengths), max(lengths), slack)

    def take(self, newcomer: Seat) -> None:
        """Gives it an empty row, or one more."""
        if None in self.seats:
            self.seats[self.seats.index(None)] = newcomer
        else:
            self.seats.append(newcomer)


@dataclass(frozen=True)
class Put:
    """A newcomer's caches go into a row of a shelf, so that they end in column end."""

    shelf: Shelf
    row: int
    newcomer: int
    length: int
    end: int


@dataclass(frozen=True)
class Build:
    """A shelf's arrays are made anew: rows: of the old ones, which are the first of the new; their
    columns from start to end go to column at. size: rows and columns of the new ones. like: a
    newcomer whose arrays are such as these, where there are no old ones."""

    shelf: Shelf
    rows: list[int]
    start: int
    end: int
    at: int
    size: tuple[int, int]
    like: int | None = None


@dataclass(frozen=True)
class Adopt:
    """A newcomer's own arrays are the shelf's."""

    shelf: Shelf
    newcomer: int


@dataclass(frozen=True)
class Drop:
    """A shelf is no more."""

    shelf: Shelf


Move = Put | Build | Adopt | Drop


@dataclass
class Shelves:
    """All of a batch. seats: in the batch's order. slack: tokens that rows may differ by at any
    length."""

    slack: int = SLACK
    seats: list[Seat] = field(default_factory=list)
    shelves: list[Shelf] = field(default_factory=list)

    def join(
        self, lengths: Sequence[int], columns: Sequence[int], quantised: Sequence[bool] = ()
    ) -> list[Move]:
        """Newcomers, behind the others. columns: those that their own arrays have. quantised: which
        of them are; none where it says nothing."""
        seats = list(map(Seat, lengths, quantised or [False] * len(lengths)))
        self.seats += seats
        return self._place_all(seats, columns)

    def unquantised(self, start: int) -> list[int]:
        """The places of rows that have so many tokens and are not quantised yet."""
        return [
            place
            for place, seat in enumerate(self.seats)
            if seat.length >= start and not seat.quantised
        ]

    def quantise(self, places: Sequence[int], columns: Sequence[int]) -> list[Move]:
        """These rows are quantised from now on, and so in other arrays: their own, as newcomers
        have them. They keep their places in the batch."""
        seats = [self.seats[place] for place in places]
        moves = self._leave(set(map(id, seats)))
        for seat in seats:
            seat.quantised = True
        return moves + self._place_all(seats, columns)

    def _place_all(self, seats: Sequence[Seat], columns: Sequence[int]) -> list[Move]:
        """Newcomers come to shelves."""
        chosen: dict[int, list[int]] = {}
        for newcomer, seat in enumerate(seats):
            shelf = self._choose(seat)
            shelf.take(seat)
            chosen.setdefault(self.shelves.index(shelf), []).append(newcomer)
        moves: list[Move] = []
        for number, newcomers in chosen.items():
            placed = [(newcomer, seats[newcomer]) for newcomer in newcomers]
            moves += self._place(self.shelves[number], placed, columns)
        return moves

    def keep(self, places: Sequence[int]) -> list[Move]:
        """The rows at these places stay, and no others."""
        stay = [self.seats[i] for i in places]
        gone = set(map(id, self.seats)) - set(map(id, stay))
        self.seats = stay
        return self._leave(gone)

    def is_alone(self, place: int) -> bool:
        """Whether a row has a shelf of its own."""
        return len(self.find(place)[0].seats) == 1

    @property
    def full(self) -> bool:
        """Whether there can be no other shelf."""
        return len(self.shelves) >= MOST_RECTANGLES

    def move(self, place: int, alone: bool) -> list[Move]:
        """A row leaves its shelf, and comes again as the only newcomer, of as many columns as it
        has tokens: to a shelf of its own, or to whichever fits."""
        seat = self.seats[place]
        moves = self._leave({id(seat)})
        if alone:
            self.shelves.append(Shelf([], 0, 0, 0, seat.quantised))
        seat.alone = alone
        shelf = self.shelves[-1] if alone else self._choose(seat)
        shelf.take(seat)
        return moves + self._place(shelf, [(0, seat)], [seat.length])

    def open_all(self) -> list[int]:
        """Others may come to all shelves again. Returns the rows that none has come to."""
        places = [place for place, seat in enumerate(self.seats) if seat.alone]
        for seat in self.seats:
            seat.alone = False
        return places

    def has_company(self, place: int) -> bool:
        """Whether a row that lies alone would fit on another shelf."""
        seat, (own, _, _) = self.seats[place], self.find(place)
        others = (s for s in self.shelves if s is not own and s.quantised == seat.quantised)
        return self.is_alone(place) and any(one.takes(seat, self.slack) for one in others)

    def cut(self, place: int, tokens: int) -> None:
        """A row that has a shelf of its own gives up its last tokens."""
        shelf, _, _ = self.find(place)
        shelf.end -= tokens
        self.seats[place].length -= tokens

    def _leave(self, gone: set[int]) -> list[Move]:
        """These seats, by id(), become empty."""
        moves: list[Move] = []
        for shelf in list(self.shelves):
            if not any(id(seat) in gone for seat in shelf.held):
                continue
            shelf.seats = [None if id(seat) in gone else seat for seat in shelf.seats]
            while shelf.seats and shelf.seats[-1] is None:
                shelf.seats.pop()
            if not shelf.seats:
                self.shelves.remove(shelf)
                moves.append(Drop(shelf))
            elif shelf.wasted:
                moves.append(self._rebuild(shelf))
        return moves

    def grow(self, widths: Sequence[int]) -> list[Move]:
        """Makes room for so many more tokens of each row."""
        return [
            self._rebuild(shelf)
            for shelf, width in zip(self.shelves, self.widths(widths), strict=True)
            if shelf.end + width > shelf.columns
        ]

    def advance(self, widths: Sequence[int]) -> None:
        """Each row has so many tokens more."""
        for shelf, width in zip(self.shelves, self.widths(widths), strict=True):
            shelf.end += width
            for seat in shelf.held:
                seat.length += width

    def widths(self, widths: Sequence[int]) -> list[int]:
        """The same by shelf: more than one token only has a row that lies alone."""
        by_seat = {id(seat): width for seat, width in zip(self.seats, widths, strict=True)}
        return [max(by_seat[id(seat)] for seat in shelf.held) for shelf in self.shelves]

    def find(self, place: int) -> tuple[Shelf, int, int]:
        """The shelf of a batch's row, its row there, and its tokens."""
        seat = self.seats[place]
        for shelf in self.shelves:
            for row, other in enumerate(shelf.seats):
                if other is seat:
                    return shelf, row, seat.length
        raise LookupError(f"row {place} of {len(self.seats)} is on no shelf")

    def _choose(self, seat: Seat) -> Shelf:
        """The shelf that a newcomer comes to, which may be a new one."""
        shelves = [shelf for shelf in self.shelves if shelf.quantised == seat.quantised]
        fitting = [shelf for shelf in shelves if shelf.takes(seat, self.slack)]
        if not fitting and len(shelves) < MOST_RECTANGLES:
            self.shelves.append(Shelf([], 0, 0, 0, seat.quantised))
            return self.shelves[-1]
        shelf = min(fitting or shelves, key=lambda shelf: _padding(shelf, seat.length))
        for other in shelf.held:
            other.alone = False  # where there are no more shelves
        return shelf

    def _place(
        self, shelf: Shelf, placed: list[tuple[int, Seat]], columns: Sequence[int]
    ) -> list[Move]:
        """Newcomers that have their seats on a shelf get into its arrays."""
        newcomers, seats = zip(*placed, strict=True)
        if shelf.rows == 0 and len(newcomers) == 1:
            shelf.rows, shelf.columns, shelf.end = 1, columns[newcomers[0]], seats[0].length
            return [Adopt(shelf, newcomers[0])]
        moves: list[Move] = []
        if len(shelf.seats) > shelf.rows or shelf.longest > shelf.end:
            moves.append(self._rebuild(shelf, seats, newcomers[0]))
        for newcomer, seat in zip(newcomers, seats, strict=True):
            row = next(i for i, other in enumerate(shelf.seats) if other is seat)
            moves.append(Put(shelf, row, newcomer, seat.length, shelf.end))
        return moves

    def _rebuild(
        self, shelf: Shelf, newcomers: Sequence[Seat] = (), like: int | None = None
    ) -> Build:
        """Packs a shelf's rows in the batch's order, with room on both sides."""
        new = set(map(id, newcomers))
        order = {id(seat): place for place, seat in enumerate(self.seats)}
        held = sorted(
            (i for i, seat in enumerate(shelf.seats) if seat is not None and id(seat) not in new),
            key=lambda i: order[id(shelf.seats[i])],
        )
        old = [shelf.seats[i] for i in held]
        width = max((seat.length for seat in old), default=0)
        start, end = shelf.end - width, shelf.end
        shelf.seats = [*old, *newcomers]
        count, longest = len(shelf.seats), shelf.longest
        shelf.rows = count + (max(1, count // SPARE) if longest <= SHORT and new else 0)
        shelf.columns = -(-(longest + 2 * ROOM) // STEP) * STEP
        shelf.end = longest + (shelf.columns - longest) // 2
        return Build(shelf, held, start, end, shelf.end - width, (shelf.rows, shelf.columns), like)


def _padding(shelf: Shelf, length: int) -> int:
    """Tokens of padding that a row adds, by its own and by that of those that are shorter."""
    longest = shelf.longest
    if length <= longest:
        return longest - length
    return (length - longest) * len(shelf.held)
