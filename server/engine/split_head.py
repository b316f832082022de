"""Splits the output projection over the ranks, where that is faster than computing it whole.

mlx-lm's shard() leaves it whole in most models, so each rank reads all of it for every token: in a
small model with a large vocabulary, a third of all bytes. The parts are gathered on all ranks, as
mlx-lm does in the models where it splits it: not every backend can send to one rank alone. To
gather costs time for each row and to read weights does not, so up to how many rows it pays depends
on the model, the machines and the link: it is measured.
"""

import copy
import math
import time
from collections.abc import Iterator

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import gather_last_axis

from server.engine.last_logits import Head, Projection
from server.wire.link import Link

MOST_ROWS = 64
REPEATS = 5
WORTH = 0.7  # of the time of the whole: while it serves, more threads want the processor


class SplitProjection:
    """One projection. Whole until tune() has found out for how many rows to split it."""

    def __init__(self, whole: Projection, part: Projection, link: Link) -> None:
        self._whole = whole
        self._part = part
        self._link = link
        self._width, self._type = 0, mx.float32  # of its inputs, known from the first of them
        self.rows = 0  # are split at most

    def __call__(self, x: mx.array) -> mx.array:
        """x: [..., H]. Returns [..., V], the same on every rank."""
        self._width, self._type = x.shape[-1], x.dtype
        return self._split(x) if x.size <= self.rows * self._width else self._whole(x)

    def tune(self) -> Iterator[None]:
        """Measures. Every rank calls it, after a forward pass; rank 0's clock decides for all.
        Gives way between the sizes."""
        if not self._width:
            return
        rows, pays = 1, True
        while pays and rows <= MOST_ROWS:
            whole, split = self._time(mx.zeros((rows, 1, self._width), dtype=self._type))
            (pays,) = self._link.share_ints([split < WORTH * whole])
            if pays:
                self.rows = rows
            rows *= 4
            yield

    def _split(self, x: mx.array) -> mx.array:
        return gather_last_axis(self._part(x), self._link.group)

    def _time(self, x: mx.array) -> tuple[float, float]:
        """Seconds that whole and split take at best, with all ranks at it together."""
        best = [math.inf, math.inf]
        for _ in range(REPEATS):
            for i, compute in enumerate((self._whole, self._split)):
                self._link.share_ints([0])
                began = time.perf_counter()
                mx.eval(compute(x))
                best[i] = min(best[i], time.perf_counter() - began)
        return best[0], best[1]


def split_heads(heads: list[Head], link: Link) -> list[SplitProjection]:
    """Gives the heads split projections, before the weights are evaluated. What mlx-lm has split
    itself, and a vocabulary that does not divide by the ranks, stays as it is."""
    splits = []
    for head in heads:
        layer = head.layer
        embedding = type(layer) in (nn.Embedding, nn.QuantizedEmbedding)
        if not embedding and type(layer) not in (nn.Linear, nn.QuantizedLinear):
            continue
        if layer.weight.shape[0] % link.size:
            continue
        part = _part(layer, link)
        head.project = SplitProjection(head.project, part.as_linear if embedding else part, link)
        splits.append(head.project)
    return splits


def _part(layer: nn.Module, link: Link) -> nn.Module:
    """This rank's rows of a layer's arrays, in a layer of the same kind. They share memory."""
    part = copy.copy(layer)
    for name, array in layer.items():
        if isinstance(array, mx.array):
            part[name] = mx.split(array, link.size)[link.rank]
    return part
