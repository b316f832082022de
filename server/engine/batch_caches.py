"""A batch's caches, as its model takes them: made of rows' own, which come and go.

Used by prompts.py (a chunk of several prompts) and decoding.py (the decoding rows), on the main
thread of every rank. Keys and values that grow stay apart, where the model bears that: prompts
side by side, decoding rows on shelves. Windows and recurrent states have a size of their own, and
are one array of all rows, as mlx-lm has them; so is everything in a model that bears nothing else.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import CacheList, trim_prompt_cache

from server.engine.attention import Layout
from server.engine.quantised_kv import GROWN, arrays_of, filled, is_quantised, next_caches
from server.engine.rows_apart import Ways
from server.engine.shelved_kv import ShelvedKV, SideBySide, shelved, side_by_side
from server.engine.shelves import Move, Shelves
from server.protocol.row_lengths import SLACK

Caches = list[Any]  # one a layer


class Unused:
    """A layer's caches that its model never fills."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self.state: list = []
        self.nbytes = 0

    def extract(self, place: int) -> Any:
        return copy.copy(self._cache)


class ChunkCaches:
    """Prompts that are computed together: each row's caches are its own again after it."""

    def __init__(self, rows: Sequence[Caches], widths: Sequence[int], ways: Ways) -> None:
        self._rows = rows
        parts: list[SideBySide] = []

        def side(caches: list) -> SideBySide:
            parts.append(SideBySide(caches))
            return parts[-1]

        self.layers = _lay_out(rows, ways, side)
        padding = [max(widths) - width for width in widths]
        self._padded = any(padding)
        if self._padded:
            for layer in _whole(self.layers):
                layer.prepare(lengths=list(widths), right_padding=padding)
        if parts:
            grown = [part.rows for part in parts]
            lengths = [_length(grown, i) for i in range(len(rows))]
            layout = side_by_side(lengths, widths, ways.latent, ways.by_shelf)
            _begin(parts, layout, lengths, widths)

    def finish(self, lazy: bool = False) -> None:
        """Gives each row what is its own. The chunk has been computed, but where it is lazy."""
        if self._padded:
            for layer in _whole(self.layers):
                layer.finalize()
        for i, row in enumerate(self._rows):
            row[:] = [_part_of(layer, own, i) for layer, own in zip(self.layers, row, strict=True)]
        if self._padded and not lazy:
            mx.eval([states(row) for row in self._rows])


def _part_of(layer: Any, own: Any, place: int) -> Any:
    if isinstance(layer, SideBySide | Unused):
        return own
    if type(layer) is CacheList and type(own) is CacheList:
        pairs = zip(layer.caches, own.caches, strict=True)
        return CacheList(*(_part_of(inner, its, place) for inner, its in pairs))
    return layer.extract(place)


class BatchCaches:
    """Decoding rows. layers: what the model is given. slack: as Shelves have it."""

    def __init__(self, ways: Ways, slack: int = SLACK) -> None:
        self.layers: Caches = []
        self._ways = ways
        self._shelves = Shelves(slack)
        self._parts: list[ShelvedKV] = []

    @property
    def cuttable(self) -> bool:
        """Whether rows can give up their last tokens: there is nothing but keys and values."""
        return bool(self._parts) and not any(_whole(self.layers))

    def join(self, rows: Sequence[Caches]) -> None:
        """Rows come in, behind the others. Their caches are the batch's from now on."""
        rows = [next_caches(self._ways.quantised, list(caches)) for caches in rows]
        fresh = not self.layers
        layers = [list(caches) for caches in zip(*rows, strict=True)]
        if fresh:
            self.layers = _lay_out(rows, self._ways, self._shelf)
        newcomers = list(_grown(layers, self._ways))
        if self._parts:
            lengths = [_length(newcomers, i) for i in range(len(rows))]
            columns = _columns(newcomers)
            kinds = list(map(is_quantised, rows))
            self._move(self._shelves.join(lengths, columns, kinds), newcomers)
        for layer, caches in zip(self.layers, layers, strict=True):
            if not fresh:
                _extend(layer, caches)

    def keep(self, places: Sequence[int]) -> None:
        """The rows at these places stay, and no others."""
        if not places:
            self.clear()
            return
        if self._parts:
            self._move(self._shelves.keep(places))
        for layer in _whole(self.layers):
            layer.filter(list(places))

    def clear(self) -> None:
        """Gives up all of it, whatever state it is in."""
        self.layers, self._parts = [], []
        self._shelves = Shelves(self._shelves.slack)

    def extract(self, place: int) -> Caches:
        """One row's caches, copied, lazy: the batch's go on."""
        return [layer.extract(place) for layer in self.layers]

    def step(self, compute: Callable[[Caches], Any], widths: Sequence[int]) -> Any:
        """So many more tokens of each row; more than one only of those that spread() has said."""
        if self._parts:
            self._quantise()
            self._move(self._shelves.grow(widths))
            lengths = [seat.length for seat in self._shelves.seats]
            layout = shelved(self._shelves, widths, self._ways.by_shelf)
            _begin(self._parts, layout, lengths, widths)
        computed = compute(self.layers)
        if self._parts:
            self._shelves.advance(widths)
        return computed

    def spread(self, places: Iterable[int]) -> set[int]:
        """Those of these rows that can have several tokens in the next step."""
        can: set[int] = set()
        if not self._ways.shelves:
            return can
        for place in places:
            if not (self._shelves.is_alone(place) or self._shelves.full):
                self._reseat(place, alone=True)
            if self._shelves.is_alone(place):
                self._shelves.seats[place].alone = True  # newcomers look for another shelf
                can.add(place)
        return can

    def gather(self) -> None:
        """Rows that have had a shelf of their own for several tokens a step come to others'."""
        for place in self._shelves.open_all():
            if self._shelves.has_company(place):
                self._reseat(place, alone=False)

    def cut(self, place: int, tokens: int) -> None:
        """A row that has had several tokens in a step gives up the last of them."""
        self._shelves.cut(place, tokens)

    def _reseat(self, place: int, alone: bool) -> None:
        own = [[part.extract(place)] for part in self._parts]
        self._move(self._shelves.move(place, alone), own)

    def _quantise(self) -> None:
        """Rows that are as long as that now get arrays of the other kind."""
        quantised = self._ways.quantised
        if quantised is None or not quantised.layers:
            return
        places = self._shelves.unquantised(quantised.start)
        if places:
            rows = [quantised.convert(self._extract_grown(place)) for place in places]
            newcomers = list(_grown(list(map(list, zip(*rows, strict=True))), self._ways))
            self._move(self._shelves.quantise(places, _columns(newcomers)), newcomers)

    def _extract_grown(self, place: int) -> Caches:
        """One row's caches, as far as they lie on shelves; the others are the batch's."""
        return [_extract_grown(layer, place) for layer in self.layers]

    def _shelf(self, caches: list) -> ShelvedKV:
        self._parts.append(ShelvedKV(self._shelves))
        return self._parts[-1]

    def _move(self, moves: list[Move], newcomers: Sequence[Sequence[Any]] = ()) -> None:
        for i, part in enumerate(self._parts):
            part.move(moves, newcomers[i] if newcomers else ())


def _lay_out(rows: Sequence[Caches], ways: Ways, grown: Callable[[list], Any]) -> Caches:
    """The rows' caches as a batch's. grown: makes one of those that grow, where they stay apart."""
    return [
        Unused(caches[0]) if layer in ways.unused else _put_together(list(caches), ways, grown)
        for layer, caches in enumerate(zip(*rows, strict=True))
    ]


def _put_together(caches: list, ways: Ways, grown: Callable[[list], Any]) -> Any:
    if ways.shelves and type(caches[0]) in GROWN:
        return grown(caches)
    if ways.shelves and type(caches[0]) is CacheList:
        inner = zip(*(cache.caches for cache in caches), strict=True)
        return CacheList(*(_put_together(list(one), ways, grown) for one in inner))
    return caches[0].merge(caches)


def _begin(
    parts: Sequence[Any], layout: Layout, lengths: Sequence[int], widths: Sequence[int]
) -> None:
    """Tells all layers how the next chunk or step is laid out."""
    before = mx.array(lengths)
    after = mx.array([length + width for length, width in zip(lengths, widths, strict=True)])
    for part in parts:
        part.begin(layout, before, after)


def snapshot(caches: Sequence[Any]) -> Caches:
    """A copy of a row's caches, lazy, that holds no more than their tokens: they have room for the
    next ones, which would be kept for nothing."""
    return [_snapshot(cache) for cache in caches]


def _snapshot(cache: Any) -> Any:
    if type(cache) is CacheList:
        return CacheList(*map(_snapshot, cache.caches))
    if type(cache) not in GROWN or cache.keys is None:
        return copy.deepcopy(cache)  # which shares the arrays: nobody changes them in place
    length = cache.offset
    return filled([mx.contiguous(part[..., :length, :]) for part in arrays_of(cache)], length)


def trimmed(caches: Caches, tokens: int) -> Caches:
    """A row's caches, which can be cut, without their last tokens."""
    if tokens:
        trim_prompt_cache(caches, tokens)
    return caches


def states(caches: Sequence[Any]) -> list:
    """Of a row or a batch: all that it takes to compute them."""
    return [cache.state for cache in caches]


def _whole(layers: Sequence[Any]) -> Iterator[Any]:
    """The layers, or parts of layers, that are one of all rows."""
    for layer in layers:
        if type(layer) is CacheList:
            yield from _whole(layer.caches)
        elif not isinstance(layer, ShelvedKV | SideBySide | Unused):
            yield layer


def _grown(layers: Sequence[list], ways: Ways) -> Iterator[list]:
    """Of each layer or part of one that lies on shelves, the rows' caches."""
    for layer, caches in enumerate(layers):
        if layer not in ways.unused:
            yield from _grown_of(caches)


def _grown_of(caches: list) -> Iterator[list]:
    if type(caches[0]) in GROWN:
        yield caches
    elif type(caches[0]) is CacheList:
        for inner in zip(*(cache.caches for cache in caches), strict=True):
            yield from _grown_of(list(inner))


def _extend(layer: Any, caches: list) -> None:
    if type(layer) is CacheList:
        for i, inner in enumerate(layer.caches):
            _extend(inner, [cache.caches[i] for cache in caches])
    elif not isinstance(layer, ShelvedKV | Unused):
        layer.extend(caches[0].merge(caches))


def _columns(layers: Sequence[list]) -> list[int]:
    """Of each row's own arrays, what all layers have."""
    return [min(arrays_of(cache)[0].shape[2] for cache in row) for row in zip(*layers, strict=True)]


def _extract_grown(layer: Any, place: int) -> Any:
    if type(layer) is CacheList:
        return CacheList(*(_extract_grown(inner, place) for inner in layer.caches))
    return layer.extract(place) if isinstance(layer, ShelvedKV) else None


def _length(layers: Sequence[list], row: int) -> int:
    """Tokens of a row in all of its layers."""
    lengths = {caches[row].offset for caches in layers}
    if len(lengths) > 1:
        raise ValueError(f"the layers of one row hold {sorted(lengths)} tokens")
    return lengths.pop()
