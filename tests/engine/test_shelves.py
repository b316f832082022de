"""Where rows lie: at every moment all of them somewhere, with little between, and nothing copied
that need not be."""

import random

import pytest

from server.engine.shelves import SHORT, Adopt, Build, Drop, Put, Shelves
from server.protocol.row_lengths import (
    FAR,
    MOST_RECTANGLES,
    SLACK,
    STEP,
    are_alike,
    rectangles,
)


class Laid(Shelves):
    """With arrays of one column a token: what is in them, as (row, place in its text)."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.arrays: dict = {}
        self.names: list[int] = []
        self.count = 0

    def come(self, *lengths: int) -> list:
        own = []
        for length in lengths:
            self.count += 1
            self.names.append(self.count)
            own.append([(self.count, i) for i in range(length)] + [None] * (-length % STEP))
        moves = self.join(lengths, [len(columns) for columns in own])
        self.do(moves, own)
        return moves

    def go(self, *names: int) -> list:
        places = [i for i, name in enumerate(self.names) if name not in names]
        self.names = [self.names[i] for i in places]
        moves = self.keep(places)
        self.do(moves, [])
        return moves

    def step(self) -> list:
        moves = self.grow([1] * len(self.names))
        self.do(moves, [])
        for place, name in enumerate(self.names):
            shelf, row, length = self.find(place)
            self.arrays[shelf][row][shelf.end] = (name, length)
        self.advance([1] * len(self.names))
        return moves

    def do(self, moves: list, own: list) -> None:
        for move in moves:
            match move:
                case Adopt(shelf, newcomer):
                    self.arrays[shelf] = [list(own[newcomer])]
                case Put(shelf, row, newcomer, length, end):
                    self.arrays[shelf][row][end - length : end] = own[newcomer][:length]
                case Drop(shelf):
                    del self.arrays[shelf]
                case Build(shelf, rows, start, end, at, (count, columns)):
                    old = self.arrays.get(shelf)
                    new = [[None] * columns for _ in range(count)]
                    for i, row in enumerate(rows):
                        new[i][at : at + end - start] = old[row][start:end]
                    self.arrays[shelf] = new

    def check(self) -> None:
        assert len(self.seats) == len(self.names)
        assert set(self.arrays) == set(self.shelves)
        for place, name in enumerate(self.names):
            shelf, row, length = self.find(place)
            array = self.arrays[shelf]
            assert array[row][shelf.end - length : shelf.end] == [(name, i) for i in range(length)]
        for shelf in self.shelves:
            assert shelf.end <= len(self.arrays[shelf][0])
            assert len(shelf.seats) <= len(self.arrays[shelf])

    def padding(self) -> float:
        seen = sum(len(shelf.seats) * shelf.longest for shelf in self.shelves)
        slack = sum(len(shelf.seats) * self.slack for shelf in self.shelves)
        return max(0, seen - slack - sum(seat.length for seat in self.seats)) / max(1, seen)

    def draft(self, rng: random.Random) -> None:
        """A step in which some rows have several tokens, of which some are cut off again."""
        widths = [1] * len(self.names)
        for place in rng.sample(range(len(self.names)), rng.randrange(1 + len(self.names))):
            if not self.is_alone(place):
                if self.full:
                    continue
                shelf, row, length = self.find(place)
                own = self.arrays[shelf][row][shelf.end - length : shelf.end]
                self.do(self.move(place, alone=True), [own])
            self.seats[place].alone = True
            widths[place] = rng.randrange(1, 9)
        self.do(self.grow(widths), [])
        for place, (name, width) in enumerate(zip(self.names, widths, strict=True)):
            shelf, row, length = self.find(place)
            new = [(name, length + i) for i in range(width)]
            self.arrays[shelf][row][shelf.end : shelf.end + width] = new
        self.advance(widths)
        for place, width in enumerate(widths):
            if width > 1:
                self.cut(place, rng.randrange(width))

    def gather(self) -> None:
        for place in self.open_all():
            if self.has_company(place):
                shelf, row, length = self.find(place)
                own = self.arrays[shelf][row][shelf.end - length : shelf.end]
                self.do(self.move(place, alone=False), [own])


@pytest.mark.parametrize("seed", range(20))
def test_rows_that_have_several_tokens_a_step_keep_what_is_theirs_among_others(seed):
    rng, laid = random.Random(seed), Laid(slack=rng_slack(seed))
    for _ in range(80):
        act = rng.random()
        if act < 0.2 and len(laid.names) < 12:
            laid.come(*(rng.randrange(1, 900) for _ in range(rng.randrange(1, 4))))
        elif act < 0.3 and laid.names:
            laid.go(*rng.sample(laid.names, rng.randrange(1, 1 + len(laid.names))))
        elif act < 0.8 and laid.names:
            laid.draft(rng)
        elif act < 0.9:
            laid.gather()
            assert not any(seat.alone for seat in laid.seats)
        elif laid.names:
            laid.step()
        laid.check()
        assert len(laid.shelves) <= MOST_RECTANGLES


@pytest.mark.parametrize("seed", range(20))
def test_rows_that_come_and_go_in_any_order_keep_what_is_theirs(seed):
    rng, laid = random.Random(seed), Laid(slack=rng_slack(seed))
    for _ in range(60):
        act = rng.random()
        if act < 0.3 and len(laid.names) < 12:
            laid.come(*(rng.choice((1, 3, 40, 300, 900, 3000)) + rng.randrange(9) for _ in "ab"))
        elif act < 0.6 and laid.names:
            laid.go(*rng.sample(laid.names, rng.randint(1, min(3, len(laid.names)))))
        else:
            for _ in range(rng.choice((1, 5, 130))):
                laid.step()
        laid.check()
        assert len(laid.shelves) <= MOST_RECTANGLES
        if len(laid.shelves) < MOST_RECTANGLES:
            assert laid.padding() <= 1 / 4


def rng_slack(seed: int) -> int:
    return (SLACK, 3)[seed % 2]


def test_a_long_row_costs_short_ones_nothing():
    laid = Laid()
    laid.come(6000)
    laid.come(*[50] * 7)
    assert [len(shelf.seats) for shelf in laid.shelves] == [1, 7]
    sizes = [len(array) * len(array[0]) for array in laid.arrays.values()]
    assert sum(sizes) < 1.35 * (6000 + 7 * STEP)


def test_a_lone_row_is_not_copied_and_one_that_leaves_copies_nobody():
    laid = Laid()
    (adopted,) = laid.come(100_000)
    assert isinstance(adopted, Adopt)
    laid.come(*[90_000] * 4)
    assert len(laid.shelves) == 2
    assert [type(move) for move in laid.go(1)] == [Drop]
    assert laid.go(3) == [], "its place is empty, and that is all"
    (put,) = laid.come(89_000)
    assert isinstance(put, Put), "the newcomer takes it, and no other is touched"
    laid.check()


def test_equal_rows_share_one_shelf_however_they_come():
    laid = Laid()
    for _ in range(32):
        laid.come(500)
        laid.step()
    assert len(laid.shelves) == 1
    laid.check()


def test_where_lengths_are_all_unlike_the_calls_are_bounded_and_the_nearest_are_padded():
    laid = Laid()
    laid.come(*(int(300 * 1.5**n) for n in range(14)))
    assert len(laid.shelves) == MOST_RECTANGLES
    laid.check()


def test_an_empty_shelf_gives_its_memory_back_before_the_next_row_comes():
    laid = Laid()
    laid.come(*[SHORT * 4] * 8)
    laid.go(*range(2, 9))
    (array,) = laid.arrays.values()
    assert len(array) == 1
    laid.check()


# What rank 0 reckons by the same lengths.


def test_rows_are_alike_within_a_third_and_never_by_more_than_costs_more_than_a_call():
    assert are_alike(1, 1 + SLACK) and not are_alike(1, 2 + SLACK)
    assert are_alike(3000, 4000) and not are_alike(3000, 4001)
    assert are_alike(90_000, 90_000 + FAR) and not are_alike(90_000, 90_001 + FAR)


@pytest.mark.parametrize("seed", range(10))
def test_rectangles_hold_every_row_and_are_few(seed):
    rng = random.Random(seed)
    sizes = rng.choices((20, 800, 9000, 60000), k=rng.randint(1, 40))
    lengths = [int(size * rng.random()) + 1 for size in sizes]
    found = rectangles(lengths)
    assert sum(rows for rows, _ in found) == len(lengths)
    assert len(found) <= MOST_RECTANGLES and max(longest for _, longest in found) == max(lengths)
    assert sum(rows * longest for rows, longest in found) >= sum(lengths)
    assert rectangles(lengths[::-1]) == found, "whatever their order"


def test_no_rows_take_nothing():
    assert rectangles([]) == []
