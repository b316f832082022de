"""Attention of a model that does more with its keys than hand them on: called once for each shelf.

Where a model makes something of what its cache gives back (which tokens to look at, say), its rows
cannot be told apart behind its back. Then its attention as a whole is called with the rows of one
shelf after another, each time with a cache that knows no others. That reads its projections'
weights as many times as there are shelves; the rest of a layer is computed for all rows together.
Used while a model is called, on the main thread of every rank.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import CacheList

from server.engine.attention import CAUSAL, Layout, PartView, Windowed
from server.engine.shelved_kv import InParts

NAME = "self_attn"  # as most of mlx-lm's models call it


class PartOf:
    """One layer's cache, as far as it is of one part."""

    def __init__(self, whole: InParts, part: int) -> None:
        self._whole, self._part = whole, part

    @property
    def offset(self) -> mx.array:
        return self._whole.offset_of(self._part)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        return self._whole.put(self._part, keys, values)

    @property
    def keys(self) -> Any:
        return self._whole.arrays(self._part)[0]

    @keys.setter
    def keys(self, keys: Any) -> None:
        self._whole.replace(self._part, keys, self.values)

    @property
    def values(self) -> Any:
        return self._whole.arrays(self._part)[1]

    @values.setter
    def values(self, values: Any) -> None:
        self._whole.replace(self._part, self.keys, values)


class ByShelf(nn.Module):
    """Takes the place of a layer's attention."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __call__(self, x: mx.array, *given: Any, **named: Any) -> mx.array:
        """x: [B, T, H]. The rest as the model has it; mask and cache are among it."""
        layouts = [layout for one in (*given, *named.values()) if (layout := _layout(one))]
        if not layouts or not layouts[0].by_part:
            return self.inner(x, *given, **named)
        outputs = []
        for i, view in enumerate(layouts[0].views):
            own = view.of(x[:, None])[:, 0]
            rest = (_of_part(one, view, i) for one in given)
            more = {name: _of_part(one, view, i) for name, one in named.items()}
            outputs.append(self.inner(own, *rest, **more)[:, None])
        return layouts[0].join(outputs, x.shape[1])[:, 0]

    def __getattr__(self, name: str) -> Any:
        if name in self or "inner" not in self:
            return super().__getattr__(name)
        return getattr(self["inner"], name)


def _layout(argument: Any) -> Layout | None:
    """Of a cache that is in parts."""
    if type(argument) is CacheList:
        return _layout(argument.caches[0])
    return argument.layout if isinstance(argument, InParts) else None


def _of_part(argument: Any, view: PartView, i: int) -> Any:
    """What the i-th part's rows have for an argument of all rows."""
    if isinstance(argument, Windowed):
        return _mask(view, argument)
    if type(argument) is CacheList:
        return CacheList(*(_of_part(inner, view, i) for inner in argument.caches))
    if isinstance(argument, InParts):
        return PartOf(argument, i)
    if argument is None or isinstance(argument, bool | int | float | str):
        return argument
    raise TypeError(f"a {type(argument).__name__} of rows that are apart")


def _mask(view: PartView, mask: Windowed) -> mx.array | str | None:
    made = view.mask(mask.window)
    if isinstance(made, str) and made == CAUSAL and mask.array:
        return create_causal_mask(view.width, view.columns)
    return made


def put_by_shelf(model: nn.Module, on: bool) -> None:
    """Has each layer's attention go through it, or no longer."""
    for _, module in model.named_modules():
        inner = module.children().get(NAME)
        if isinstance(inner, ByShelf) and not on:
            setattr(module, NAME, inner.inner)
        elif isinstance(inner, nn.Module) and not isinstance(inner, ByShelf) and on:
            setattr(module, NAME, ByShelf(inner))
