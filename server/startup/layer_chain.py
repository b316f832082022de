"""A model's layers as a chain: what each hands to the next, and layers that can be left out.

Used on the main thread of every rank, before the weights are evaluated. mlx-lm's models have no
common code that runs their layers, so a forward pass is watched, of which nothing is computed. A
layer that is left out hands on what it got. It still fills its caches, with one zero a token: where
a model looks into the first layer's cache for how far it has come, that is right on every rank.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import ArraysCache, CacheList, make_prompt_cache

from server.engine.rows_apart import is_unused
from server.startup.agreement import Found

LENGTH = 5  # tokens of the pass that is watched: no other size of a hidden state


class Unfit(Found):
    """Why this arrangement does not suit this model. Another one may."""


@dataclass(frozen=True)
class Call:
    """How a layer is called. more: of a tuple that it returns, the number of parts after the hidden
    state, 0 for no tuple. fills: it puts something into a cache of its own. needs: layers whose
    caches or results it uses beside the hidden state. caches: of what kinds its caches are."""

    more: int
    fills: bool
    needs: frozenset[int]
    caches: tuple[tuple[str, int | None], ...] = ()


@dataclass(frozen=True)
class Chain:
    """The layers in the order in which they run. axis: of a hidden state, that of the tokens; the
    rows' is the one before."""

    layers: list[nn.Module]
    calls: tuple[Call, ...]
    axis: int

    def runs(self) -> list[range]:
        """Layers that have to stay together, since one uses what another has: runs of them."""
        runs: list[range] = []
        for number, call in enumerate(self.calls):
            start = min({number, *call.needs})
            while runs and runs[-1].stop > start:
                start = min(start, runs.pop().start)
            runs.append(range(start, number + 1))
        return runs


def follow(model: nn.Module) -> Chain:
    """Watches a forward pass. Raises Unfit where the layers are no chain."""
    layers = list(model.layers)
    if len({id(layer) for layer in layers}) < len(layers) or None in layers:
        raise Unfit("some of its layers are the same")
    watched: list[tuple[int, list, dict, Any]] = []

    def watch(number: int) -> Callable:
        def call(own: Callable, *args: Any, **named: Any) -> Any:
            result = own(*args, **named)
            watched.append((number, list(args), named, result))
            return result

        return call

    caches = make_prompt_cache(model)
    with replaced([(layer, watch(number)) for number, layer in enumerate(layers)]):
        _pass_unseen(lambda tokens: model(tokens, cache=caches))
    if [number for number, *_ in watched] != list(range(len(layers))):
        raise Unfit("its layers do not run one after another, once each")
    calls = []
    owners: dict[int, int] = {}  # of caches, and of arrays that layers returned, by id
    before = None
    for number, args, named, result in watched:
        hidden, *more = result if isinstance(result, tuple) else (result,)
        if not args or not isinstance(args[0], mx.array) or not isinstance(hidden, mx.array):
            raise Unfit("its layers do not take and give a hidden state")
        if before is not None and args[0] is not before:
            raise Unfit("what a layer gives is not all that the next one takes")
        if (hidden.shape, hidden.dtype) != (args[0].shape, args[0].dtype):
            raise Unfit("its layers change the hidden state's shape or type")
        before = hidden
        its = caches_in([args, named], caches)
        own = [cache for cache in its if id(cache) not in owners and not is_unused(cache)]
        given = [*its, *arrays_in([args[1:], named])]
        needs = frozenset(owners[id(one)] for one in given if id(one) in owners)
        owners |= dict.fromkeys(map(id, [*own, *arrays_in(more)]), number)
        kinds = tuple((type(one).__name__, getattr(one, "max_size", None)) for one in own)
        calls.append(Call(len(more), bool(own), needs, kinds))
    if before is None or LENGTH not in before.shape[1:]:
        raise Unfit("its hidden state has no axis of tokens")
    return Chain(layers, tuple(calls), before.shape.index(LENGTH, 1))


class _Passed(Exception):
    """The pass has gone to its end."""


def _pass_unseen(forward: Callable[[mx.array], Any]) -> None:
    """A pass in which no number can be looked at: a rank that did in the midst of its layers would
    wait for one that waits for it. Raises Unfit where somebody does."""

    def forward_and_stop(tokens: mx.array) -> None:
        forward(tokens)
        raise _Passed

    try:
        mx.compile(forward_and_stop)(mx.arange(1, 1 + LENGTH)[None])
    except _Passed:
        return
    except ValueError as error:
        if "[eval]" in str(error):
            raise Unfit("it looks at numbers in the midst of its layers") from None
        raise


def arrays_in(value: Any) -> Iterator[mx.array]:
    """All arrays within lists, tuples and dictionaries."""
    if isinstance(value, mx.array):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from arrays_in(part)
    elif isinstance(value, dict):
        yield from arrays_in(list(value.values()))


def caches_in(value: Any, caches: list | None = None) -> list[Any]:
    """The caches among a layer's arguments; if caches are given, only those."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [cache for part in value for cache in caches_in(part, caches)]
    if caches is not None:
        return [value] if any(value is cache for cache in caches) else []
    known = hasattr(value, "update_and_fetch") or isinstance(value, ArraysCache | CacheList)
    return [value] if known else []


def replace(layer: nn.Module, call: Callable) -> None:
    """From now on it is called as call(own, *args, **named), own being what it was before."""
    own = type(layer)

    def called(self: nn.Module, *args: Any, **named: Any) -> Any:
        return call(lambda *a, **n: own.__call__(self, *a, **n), *args, **named)

    layer.__class__ = type(own.__name__, (own,), {"__call__": called})


@contextmanager
def replaced(calls: Iterable[tuple[nn.Module, Callable]]) -> Iterator[None]:
    """The same for a while."""
    before = [(layer, type(layer), replace(layer, call)) for layer, call in calls]
    try:
        yield
    finally:
        for layer, own, _ in before:
            layer.__class__ = own


def leave_out(chain: Chain, number: int) -> Callable:
    """What to call in place of a layer that is not there."""
    its = chain.calls[number]

    def call(own: Callable, hidden: mx.array, *args: Any, **named: Any) -> Any:
        if its.fills:
            for cache in caches_in([args, named]):
                rows, length = hidden.shape[chain.axis - 1 : chain.axis + 1]
                _fill(cache, rows, length, hidden.dtype)
        return (hidden, *(None,) * its.more) if its.more else hidden

    return call


def _fill(cache: Any, rows: int, length: int, dtype: mx.Dtype) -> None:
    if isinstance(cache, CacheList):
        for part in cache.caches:
            _fill(part, rows, length, dtype)
    elif isinstance(cache, ArraysCache):
        for place, held in enumerate(cache.cache):
            if held is None:
                cache[place] = mx.zeros((rows, 1), dtype=dtype)
        cache.advance(length)
    else:
        zeros = mx.zeros((rows, 1, length, 1), dtype=dtype)
        cache.update_and_fetch(zeros, zeros)
