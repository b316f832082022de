"""Attention over rows whose keys and values lie in more than one array.

Models call mlx-lm's scaled_dot_product_attention with what their cache gives back. Where that is a
Fetched, each part gets a call of its own here, with its own rows' queries; all else passes through.
Used while a model is called, on the main thread of every rank; put in place when it is loaded.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import create_causal_mask, scaled_dot_product_attention

from server.engine.quantised_kv import attend_quantised

NAME = scaled_dot_product_attention.__name__
CAUSAL = "causal"


@dataclass(eq=False)
class PartView:
    """What one part has of a batch: which rows, how many new tokens of them, and which of its
    columns each row may see. lengths: tokens of each row before these."""

    places: list[int]  # in the batch, by row of the part; for rows that are empty any
    width: int  # new tokens
    columns: int  # of the part, before the new ones
    lengths: list[int]

    @cached_property
    def _index(self) -> slice | mx.array:
        first, count = self.places[0], len(self.places)
        if self.places == list(range(first, first + count)):
            return slice(first, first + count)
        return mx.array(self.places)

    def of(self, array: mx.array) -> mx.array:
        """Its rows of a batch's array, [B, H, T, D], and its own of their T tokens."""
        if self.places != list(range(len(array))):
            array = array[self._index]
        return array if array.shape[2] == self.width else array[:, :, : self.width]

    @property
    def padded(self) -> bool:
        return any(length != self.columns for length in self.lengths)

    def mask(self, window: int | None = None) -> mx.array | str | None:
        """None where every new token may see all; rows are left-padded."""
        key = window if window is not None and self.columns + self.width > window else None
        if key not in self._masks:
            self._masks[key] = self._make_mask(key)
        return self._masks[key]

    @cached_property
    def _masks(self) -> dict:
        return {}

    def _make_mask(self, window: int | None) -> mx.array | str | None:
        if window is None and not self.padded:
            return CAUSAL if self.width > 1 else None
        padding = None
        if self.padded:
            padding = mx.array([self.columns - length for length in self.lengths])
        return create_causal_mask(self.width, self.columns, window, left_padding=padding)


@dataclass(frozen=True)
class Windowed:
    """A mask that is made for each part when it is used. window: tokens that are seen; None: all.
    array: whether it is wanted as an array in any case."""

    window: int | None
    array: bool = False


class Layout:
    """How the rows of a batch are spread over parts."""

    def __init__(
        self, views: Sequence[PartView], batch: int, latent: bool = False, by_part: bool = False
    ) -> None:
        """latent: what is kept is put into one array for a chunk, and so is the mask. by_part: all
        of a layer's attention is called for one part after another."""
        self.views = list(views)
        self._batch = batch
        self._latent = latent
        self.by_part = by_part and not self.plain

    @property
    def plain(self) -> bool:
        """Whether one part has just the batch's rows, in their order."""
        return len(self.views) == 1 and self.views[0].places == list(range(self._batch))

    def make_mask(
        self, n: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | Windowed | None:
        """As mlx-lm's caches make them, for n new tokens."""
        if self.plain:
            (view,) = self.views
            mask = view.mask(window_size)
            if return_array and mask == CAUSAL:
                return create_causal_mask(view.width, view.columns)
            return mask
        if window_size is not None or self.by_part:
            return Windowed(window_size, return_array)
        if n == 1:
            return None  # attend() knows what each row may see
        if return_array and not self._latent:
            raise TypeError("a mask in one array, of rows that are apart")
        return self._rectangle() if self._latent else CAUSAL

    def _rectangle(self) -> mx.array:
        """The mask of all rows in one array, padded on both sides. Every part is of one row."""
        columns = max(view.columns for view in self.views)
        padding = mx.array([columns - view.columns for view in self.views])
        width = max(view.width for view in self.views)
        return create_causal_mask(width, columns, left_padding=padding)

    def in_rectangle(self, parts: Sequence[mx.array]) -> mx.array:
        """The parts in one array, padded as the mask has it."""
        columns = max(view.columns for view in self.views)
        width = max(view.width for view in self.views)
        padded = [
            mx.pad(part, [(0, 0), (0, 0), (columns - view.columns, width - view.width), (0, 0)])
            for view, part in zip(self.views, parts, strict=True)
        ]
        return mx.concatenate(padded)

    def join(self, parts: list[mx.array], tokens: int) -> mx.array:
        """The batch's array of its parts', [n, H, T, D] each; T is padded to `tokens`."""
        padded = [
            part
            if part.shape[2] == tokens
            else mx.pad(part, [(0, 0), (0, 0), (0, tokens - part.shape[2]), (0, 0)])
            for part in parts
        ]
        joined = mx.concatenate(padded) if len(padded) > 1 else padded[0]
        return joined if self._order is None else joined[self._order]

    @cached_property
    def _order(self) -> mx.array | None:
        """Where each row of the batch is, of the parts one after another."""
        at, found = 0, {}
        for view in self.views:
            for place, length in zip(view.places, view.lengths, strict=True):
                if length or place not in found:  # an empty row has another's place
                    found[place] = at
                at += 1
        order = [found[place] for place in range(self._batch)]
        return None if order == list(range(at)) else mx.array(order)


class Fetched:
    """Keys or values of a batch in parts, each an array or quantised. turned: in latent attention,
    which scores a second kind of keys beside the first, those."""

    def __init__(
        self, layout: Layout, parts: list[Any], turned: list[mx.array] | None = None
    ) -> None:
        self.layout = layout
        self.parts = parts
        self.turned = turned


def attend(
    queries: mx.array,
    keys: Any,
    values: Any,
    cache: Any,
    scale: float,
    mask: Any,
    sinks: mx.array | None = None,
) -> mx.array:
    """mlx-lm's scaled_dot_product_attention, over parts where there are some."""
    if isinstance(keys, tuple | list):
        return attend_quantised(queries, keys, values, scale, mask, sinks)
    if not isinstance(keys, Fetched):
        return scaled_dot_product_attention(queries, keys, values, cache, scale, mask, sinks)
    window = mask.window if isinstance(mask, Windowed) else None
    scores = None
    if keys.turned is not None:
        scores, mask = mask, None
    if isinstance(mask, mx.array):
        raise TypeError("a mask of the model's own, for rows that are apart")
    outputs = []
    for i, view in enumerate(keys.layout.views):
        own = view.mask(window)
        if scores is not None:
            # They came as the queries alone: their keys stood in for by the identity.
            score = view.of(scores) @ keys.turned[i].swapaxes(-1, -2)
            if own is not None:
                least = mx.array(mx.finfo(score.dtype).min, score.dtype)
                score = mx.where(own, score, least)
            own = score
        outputs.append(
            attend(view.of(queries), keys.parts[i], values.parts[i], None, scale, own, sinks)
        )
    return keys.layout.join(outputs, queries.shape[2])


def put_attention(model: nn.Module) -> None:
    """Has a model's attention go through attend(): where its code has mlx-lm's under its name."""
    for kind in {type(module) for module in model.modules()}:
        code = sys.modules.get(kind.__module__)
        if getattr(code, NAME, None) is scaled_dot_product_attention and code is not _HERE:
            setattr(code, NAME, attend)


_HERE = sys.modules[__name__]
