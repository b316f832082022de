"""Logits of a prompt's last token, from the very chunk that it ends in.

mlx-lm computes a chunk's logits for every token of it, and of a prompt only the last ones are
wanted: with a large vocabulary the rest costs more than many layers. So mlx-lm leaves a prompt's
last token for a step of its own. Here the model's output projection is given a head that first
takes the wanted places out of the hidden states.
"""

import copy
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from server.wire.link import Link

# In mlx-lm's models, where it is not the embedding. None of them gives the names to anything else.
NAMES = {"lm_head", "output", "embed_out"}
FAR = 1e-2  # of the largest logit: rounding is far below, another token's logits far above

Projection = Callable[[mx.array], mx.array]


class Head:
    """One output projection. project may be replaced by another with the same result; layer is
    the one that it comes from."""

    def __init__(self, layer: nn.Module, project: Projection) -> None:
        self.layer = layer
        self.project = project
        self.places: tuple[mx.array, mx.array] | None = None  # rows and positions wanted

    def __call__(self, x: mx.array) -> mx.array:
        """x: [B, T, H]. Returns [B, T, V], or of W wanted places [W, 1, V]."""
        if self.places is not None:
            rows, positions = self.places
            x = x[rows, positions][:, None]
        return self.project(x)


class HeadLayer(nn.Module):
    """Takes the place of a layer that is the head."""

    def __init__(self, layer: nn.Module, head: Head) -> None:
        super().__init__()
        self.whole = layer
        self._head = head

    def __call__(self, x: mx.array) -> mx.array:
        return self._head(x)

    @property
    def weight(self) -> mx.array:
        """Some models take their head's type from it."""
        return self.whole.weight


def put_heads(model: nn.Module) -> list[Head]:
    """Puts them in place, before the weights are evaluated. Of an embedding nobody knows yet
    whether it is the head, too; one that isn't is never called as one."""
    heads = []
    for _, module in model.named_modules():
        for name, layer in module.children().items():
            if name in NAMES and isinstance(layer, nn.Module):
                head = Head(layer, layer)
                setattr(module, name, HeadLayer(layer, head))
            elif type(layer) in (nn.Embedding, nn.QuantizedEmbedding):
                head = Head(copy.copy(layer), layer.as_linear)
                layer.as_linear = head.__call__
            else:
                continue
            heads.append(head)
    return heads


class LastLogits:
    """A model, and the heads that were put in it. As a model it can stand where mlx-lm computes
    prompts; take() then gives the logits of the places that want() has named."""

    def __init__(self, model: Any, heads: list[Head]) -> None:
        self.model = model
        self._heads = heads
        self._narrow = False  # until prove() has seen that the heads do it
        self._places: tuple[mx.array, mx.array] | None = None
        self._logits: mx.array | None = None

    def prove(self, link: Link) -> bool:
        """Whether logits of places are computed alone, and right. Every rank calls it; rank 0's
        finding counts for all. Where they are not, all are computed, and the places taken."""
        tokens = mx.array([[1, 2, 3], [4, 5, 6]])
        every = self.model(tokens, cache=make_prompt_cache(self.model))
        self._narrow = True
        self.want([0, 1], [2, 1])
        self(tokens, make_prompt_cache(self.model))
        few, wanted = self.take(), mx.stack([every[0, 2], every[1, 1]])
        same = few.shape == wanted.shape
        if same:
            far = mx.max(mx.abs(few - wanted)) <= FAR * mx.max(mx.abs(wanted))
            same = bool(far.item())
        else:
            mx.eval(few, wanted)  # the other ranks do, and meet in the layers
        (self._narrow,) = map(bool, link.share_ints([same]))
        return self._narrow

    def want(self, rows: list[int], positions: list[int]) -> None:
        """Of the next chunk: these rows' logits at these positions. None: nothing is wanted."""
        self._places = (mx.array(rows), mx.array(positions)) if rows else None

    def take(self) -> mx.array:
        """[W, V], lazy: the logits of the last chunk at the W places that were wanted."""
        logits, self._logits = self._logits, None
        return logits

    def __call__(self, tokens: mx.array, cache: list[Any]) -> None:
        """A chunk, [B, T]. It is computed as far as the caches need it, when they are evaluated;
        the rest with what take() gives."""
        places, self._places = self._places, None
        for head in self._heads:
            head.places = places if self._narrow else None
        logits = self.model(tokens, cache=cache)
        for head in self._heads:
            head.places = None
        if places is None:
            self._logits = None
        else:
            self._logits = logits[:, 0] if self._narrow else logits[places]
