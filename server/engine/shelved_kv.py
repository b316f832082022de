"""One layer's keys and values of a batch, in parts: as models take them for a cache.

Used by batch_caches.py and by the models, on the main thread of every rank. ShelvedKV holds the
decoding rows of one layer, as shelves.py says. SideBySide is for a chunk of several prompts: each
goes on in its own cache, so none is padded or copied.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache, QuantizedKVCache

from server.engine.attention import Fetched, Layout, PartView
from server.engine.quantised_kv import Arrays, arrays_of, filled, flat, like, pair_of
from server.engine.shelves import Adopt, Build, Drop, Move, Put, Shelf, Shelves

Pair = tuple[Any, Any]  # keys and values: arrays, or three of each where they are quantised


class InParts:
    """What both have in common. layout: of the chunk or step that is being computed."""

    def __init__(self) -> None:
        self.layout: Layout | None = None
        self._offsets: tuple[mx.array, mx.array] | None = None  # before and after it
        self._fetched: Any = None  # what update_and_fetch gave

    def begin(self, layout: Layout, before: mx.array, after: mx.array) -> None:
        """The next chunk or step is laid out so. before, after: the rows' tokens, [B]."""
        self.layout, self._offsets, self._fetched = layout, (before, after), None

    @property
    def offset(self) -> mx.array:
        return self._offsets[self._fetched is not None]

    def make_mask(self, n: int, return_array: bool = False, window_size: int | None = None) -> Any:
        return self.layout.make_mask(n, return_array, window_size)

    def keys_and_values(self) -> Any:
        return self._fetched

    @property
    def keys(self) -> Any:
        """Pipelines make a rank's sending a part of them, lest it be left out."""
        return self.arrays(-1)[0]

    @keys.setter
    def keys(self, keys: Any) -> None:
        self.replace(-1, keys, self.values)

    @property
    def values(self) -> Any:
        return self.arrays(-1)[1]

    @values.setter
    def values(self, values: Any) -> None:
        self.replace(-1, self.keys, values)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
        """keys, values: [B, H, T, D]. Arrays where one part has all rows in order; else Fetched."""
        pairs = [
            self._put(i, view, view.of(keys), view.of(values))
            for i, view in enumerate(self.layout.views)
        ]
        if self.layout.plain:
            (self._fetched,) = pairs
            return self._fetched
        firsts, seconds = map(list, zip(*pairs, strict=True))
        if is_latent(keys, values) and keys.shape[2] > 1:
            # Models make new arrays of these before they ask for attention.
            self._fetched = self.layout.in_rectangle(firsts), self.layout.in_rectangle(seconds)
        elif is_latent(keys, values):
            # Models multiply these keys with queries before they ask for attention. By the
            # identity, so that the queries are still there then.
            identity = mx.eye(values.shape[3], dtype=values.dtype)[None, None]
            self._fetched = Fetched(self.layout, firsts, seconds), identity
        else:
            self._fetched = Fetched(self.layout, firsts), Fetched(self.layout, seconds)
        return self._fetched

    def put(self, i: int, keys: mx.array, values: mx.array) -> Pair:
        """One part's alone, where each part is computed by itself."""
        self._fetched = pair = self._put(i, self.layout.views[i], keys, values)
        return pair

    def offset_of(self, i: int) -> mx.array:
        """The tokens of one part's rows before this step."""
        return mx.array(self.layout.views[i].lengths)

    def arrays(self, i: int) -> Pair:
        """One part's."""
        raise NotImplementedError

    def replace(self, i: int, keys: Any, values: Any) -> None:
        """Other arrays for one part, of the same shapes."""
        raise NotImplementedError

    def _put(self, i: int, view: PartView, keys: mx.array, values: mx.array) -> Pair:
        """Puts them into the i-th part. Returns all that its rows have."""
        raise NotImplementedError


def is_latent(keys: mx.array, values: mx.array) -> bool:
    """Whether these are what latent attention keeps: one latent for keys and values, and rotated
    keys beside it."""
    return keys.shape[1] == values.shape[1] == 1 and keys.shape[3] != values.shape[3]


class ShelvedKV(InParts):
    """Decoding rows. parts: by shelf, arrays of [rows, H, columns, D]."""

    def __init__(self, shelves: Shelves) -> None:
        super().__init__()
        self._shelves = shelves
        self._parts: dict[Shelf, Arrays] = {}

    def move(self, moves: Sequence[Move], newcomers: Sequence[KVCache | QuantizedKVCache]) -> None:
        """Carries out what the shelves have decided; newcomers: this layer's caches of theirs."""
        for move in moves:
            match move:
                case Drop(shelf):
                    del self._parts[shelf]
                case Adopt(shelf, newcomer):
                    self._parts[shelf] = arrays_of(newcomers[newcomer])
                case Put(shelf, row, newcomer, length, end):
                    arrays = arrays_of(newcomers[newcomer])
                    for part, own in zip(self._parts[shelf], arrays, strict=True):
                        part[row : row + 1, :, end - length : end] = own[..., :length, :]
                case Build(shelf):
                    old = self._parts.get(shelf) or arrays_of(newcomers[move.like])
                    self._parts[shelf] = tuple(_build(array, move) for array in old)

    def extract(self, place: int) -> KVCache | QuantizedKVCache:
        """A copy of one row's cache, lazy."""
        shelf, row, length = self._shelves.find(place)
        own = [
            mx.contiguous(part[row : row + 1, :, shelf.end - length : shelf.end])
            for part in self._parts[shelf]
        ]
        return filled(own, length)

    def _put(self, i: int, view: PartView, keys: mx.array, values: mx.array) -> Pair:
        shelf = self._shelves.shelves[i]
        rows, start, end = len(view.places), shelf.end - view.columns, shelf.end
        parts = self._parts[shelf]
        after = end + view.width
        for part, new in zip(parts, like(parts, keys, values), strict=True):
            part[:rows, :, end:after] = new
        return pair_of([part[:rows, :, start:after] for part in parts])

    def arrays(self, i: int) -> Pair:
        return pair_of(self._parts[self._shelves.shelves[i]])

    def replace(self, i: int, keys: Any, values: Any) -> None:
        self._parts[self._shelves.shelves[i]] = flat(keys, values)

    @property
    def state(self) -> list[Arrays]:
        return list(self._parts.values())

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for part in self._parts.values() for array in part)


def _build(old: mx.array, build: Build) -> mx.array:
    rows, columns = build.size
    new = mx.zeros((rows, old.shape[1], columns, old.shape[3]), dtype=old.dtype)
    if not build.rows:
        return new
    first, count = build.rows[0], len(build.rows)
    together = build.rows == list(range(first, first + count))
    kept = old[first : first + count] if together else old[mx.array(build.rows)]
    width = build.end - build.start
    new[:count, :, build.at : build.at + width] = kept[:, :, build.start : build.end]
    return new


class SideBySide(InParts):
    """Prompts of one chunk, each in its own cache."""

    def __init__(self, rows: Sequence[KVCache | QuantizedKVCache]) -> None:
        super().__init__()
        self.rows = list(rows)

    def _put(self, i: int, view: PartView, keys: mx.array, values: mx.array) -> Pair:
        return self.rows[i].update_and_fetch(keys, values)

    def arrays(self, i: int) -> Pair:
        return self.rows[i].keys, self.rows[i].values

    def replace(self, i: int, keys: Any, values: Any) -> None:
        self.rows[i].keys, self.rows[i].values = keys, values

    @property
    def state(self) -> list:
        return [row.state for row in self.rows]


def side_by_side(
    lengths: Sequence[int], widths: Sequence[int], latent: bool = False, by_part: bool = False
) -> Layout:
    """Each row by itself: lengths before, and new tokens of each."""
    views = [
        PartView([place], width, length, [length])
        for place, (length, width) in enumerate(zip(lengths, widths, strict=True))
    ]
    return Layout(views, len(views), latent, by_part)


def shelved(shelves: Shelves, widths: Sequence[int], by_part: bool = False) -> Layout:
    """A decode step over shelves. widths: new tokens of each row."""
    places = {id(seat): place for place, seat in enumerate(shelves.seats)}
    views = [
        PartView(
            [places.get(id(seat), 0) for seat in shelf.seats],
            width,
            shelf.longest,
            [seat.length if seat is not None else 0 for seat in shelf.seats],
        )
        for shelf, width in zip(shelves.shelves, shelves.widths(widths), strict=True)
    ]
    return Layout(views, len(shelves.seats), by_part=by_part)
