"""Gives each rank a run of a model's layers, for architectures without a pipeline.

Called on the main thread of every rank, before the weights are evaluated: each rank reads those of
its own layers alone, and what is in no layer (embeddings, the head). As in mlx-lm's pipelines the
last rank has the first layers; neighbours send and receive, and rank 0's hidden state is gathered
by all, so that every rank has logits.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import ArraysCache, CacheList

from server.startup.deal import deal_runs
from server.startup.layer_chain import (
    Chain,
    Unfit,
    arrays_in,
    caches_in,
    follow,
    leave_out,
    replace,
)


class Stage:
    """One rank's part of a forward pass. dealt: how many layers each rank has. left_out: layers
    that nobody computes for now."""

    def __init__(
        self,
        model: nn.Module,
        group: mx.distributed.Group,
        fixed: int,
        memories: Sequence[int | None],
    ) -> None:
        """Splits the model in place. fixed, memories: as in deal(). Raises Unfit."""
        self.chain = chain = follow(model)
        runs = chain.runs()
        if len(runs) < group.size():
            raise Unfit(f"its layers use what others have: {len(runs)} runs of them stand alone")
        sizes = [sum(a.nbytes for a in arrays_in(layer.parameters())) for layer in chain.layers]
        self.dealt = deal_runs(runs, sizes, fixed, memories)
        self.left_out: frozenset[int] = frozenset()
        end = sum(self.dealt[group.rank() :])
        self._group = group
        self._mine = range(end - self.dealt[group.rank()], end)
        self._cache: Any = None  # the last one that was filled in this pass
        self._sent: mx.array | None = None  # what no cache waits for as yet
        for number, layer in enumerate(chain.layers):
            self._take(number, layer)

    def _take(self, number: int, layer: nn.Module) -> None:
        """Gives the layer of this number its place."""
        mine, rank = self._mine, self._group.rank()
        fills = self.chain.calls[number].fills
        stand_in = leave_out(self.chain, number)
        receives = number == mine.start and rank < self._group.size() - 1
        sends = number == mine[-1] and rank > 0
        last = number == len(self.chain.layers) - 1

        def call(own: Callable, hidden: mx.array, *args: Any, **named: Any) -> Any:
            if number == 0:
                self._cache = self._sent = None
            if receives:
                hidden = mx.distributed.recv_like(hidden, rank + 1, group=self._group)
            absent = number not in mine or number in self.left_out
            result = (partial(stand_in, own) if absent else own)(hidden, *args, **named)
            if fills:
                self._cache = next(iter(caches_in([args, named])), self._cache)
            if sends:
                result = _with_hidden(result, self._send)
            self._make_wait()
            return _with_hidden(result, self._gather) if last else result

        replace(layer, call)
        if number not in mine:
            _drop_weights(layer)

    def firsts(self) -> list[int]:
        """The first layer of each rank's."""
        return [sum(self.dealt[rank + 1 :]) for rank in range(len(self.dealt))]

    @contextmanager
    def leave(self, chain: Chain | None, numbers: frozenset[int]) -> Iterator[None]:
        """For a while nobody computes these layers."""
        self.left_out = numbers
        try:
            yield
        finally:
            self.left_out = frozenset()

    def _send(self, hidden: mx.array) -> mx.array:
        self._sent = mx.distributed.send(hidden, self._group.rank() - 1, group=self._group)
        return self._sent

    def _make_wait(self) -> None:
        """Of a prompt only the caches are computed: one of them has to wait for what is sent, or it
        would not be."""
        if self._sent is not None and self._cache is not None:
            _wait(self._cache, self._sent)
            self._sent = None

    def _gather(self, hidden: mx.array) -> mx.array:
        """Rank 0's, on every rank."""
        return mx.distributed.all_gather(hidden, group=self._group)[: hidden.shape[0]]


def _with_hidden(result: Any, change: Callable[[mx.array], mx.array]) -> Any:
    """A layer's result with another hidden state."""
    if isinstance(result, tuple):
        return (change(result[0]), *result[1:])
    return change(result)


def _wait(cache: Any, sent: mx.array) -> None:
    """Makes one of a cache's arrays depend on what was sent."""
    if isinstance(cache, CacheList):
        _wait(cache.caches[0], sent)
    elif isinstance(cache, ArraysCache):
        place = next(i for i, held in enumerate(cache.cache) if held is not None)
        cache[place] = mx.depends(cache[place], sent)
    else:
        cache.keys = mx.depends(cache.keys, sent)


def _drop_weights(layer: nn.Module) -> None:
    """What else it has stays: models look at their layers' kinds and windows."""
    for module in layer.modules():
        for name in [name for name, value in module.items() if isinstance(value, mx.array)]:
            del module[name]
