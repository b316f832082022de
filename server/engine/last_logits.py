"""Logits of a prompt's last token, or its hidden state, from the very chunk that it ends in.

mlx-lm computes a chunk's logits for every token of it, and of a prompt only the last ones are
wanted: with a large vocabulary the rest costs more than many layers. So mlx-lm leaves a prompt's
last token for a step of its own. Here the model's output projection is given a head that first
takes the wanted places out of the hidden states. They are what an embedding is made of, too.
"""

import copy
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from server.engine.rows_apart import TOGETHER
from server.protocol.failures import is_shared
from server.wire.link import Link

# In mlx-lm's models, where it is not the embedding. None of them gives the names to anything else.
NAMES = {"lm_head", "output", "embed_out"}
FAR = 1e-2  # of the largest logit: rounding is far below, another token's logits far above

# What the proof computes. Of rows, positions, places and the model's own sizes no two are the same
# number, and the places are in no order, so that none can stand for another.
ROWS, LENGTH = 3, 5
PLACES = ((2, 4), (0, 3), (2, 1), (1, 0))
TRIES = (
    4  # with other tokens: some have the same embedding, and then any place would do for another
)
UNLIKE, ALIKE, INDISTINCT = range(3)

Projection = Callable[[mx.array], mx.array]


def _judge(few: mx.array, right: mx.array) -> int:
    """Whether few is what is right, by a proof that can tell."""
    # One after the other: in a pipeline nothing else orders what the two receive. The other ranks
    # do the same, and meet in the layers.
    mx.eval(right)
    mx.eval(few)
    if few.shape != right.shape:
        return UNLIKE
    few, right = few.astype(mx.float32), right.astype(mx.float32)
    open_ = mx.where(mx.isfinite(right), right, 0)
    apart = mx.max(mx.abs(open_[:, None] - open_[None]), axis=-1)
    size = mx.max(mx.abs(open_))
    others = apart + mx.where(mx.eye(len(PLACES)) > 0, mx.inf, 0)
    if not mx.min(others) > 2 * FAR * size:
        return INDISTINCT
    off = mx.where(few == right, 0, mx.abs(few - right))  # some shut tokens out: minus infinity
    return ALIKE if mx.max(off) <= FAR * size else UNLIKE


class Head:
    """One output projection. project may be replaced by another with the same result; layer is
    the one that it comes from."""

    def __init__(self, layer: nn.Module, project: Projection) -> None:
        self.layer = layer
        self.project = project
        self.places: tuple[mx.array, mx.array] | None = None  # rows and positions wanted
        self.seen: list[mx.array] = []  # hidden states of wanted places, [W, H], of each call

    def __call__(self, x: mx.array) -> mx.array:
        """x: [B, T, H]. Returns [B, T, V], or of W wanted places [W, 1, V]."""
        if self.places is not None:
            rows, positions = self.places
            x = x[rows, positions][:, None]
            self.seen.append(x[:, 0])
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
    prompts; take() then gives the logits of the places that want() has named, take_hidden() their
    hidden states."""

    def __init__(self, model: Any, heads: list[Head]) -> None:
        self.model = model
        self.ways = TOGETHER  # until startup/batching.py has seen what the model bears
        self.alike = True  # all ranks have the same layers, or their parts: not in a pipeline
        self.hidden = 0  # values of a hidden state that take_hidden() gives; 0: of none
        self._heads = heads
        self._narrow = False  # until prove() has seen that the heads do it
        self._places: tuple[mx.array, mx.array] | None = None
        self._logits: mx.array | None = None
        self._hidden: list[mx.array] = []

    def prove(self, link: Link) -> bool:
        """Whether logits of places are computed alone, and right. Every rank calls it; rank 0's
        finding counts for all. Where they are not, all are computed, and the places taken."""
        self._narrow = True
        vocab = self.model(mx.zeros((1, 1), dtype=mx.int32)).shape[-1]  # nothing is computed
        finding = UNLIKE
        for start in range(1, 1 + TRIES):
            ids = [(start + TRIES * i) * 7919 % vocab for i in range(ROWS * LENGTH)]
            found, built = None, True
            try:
                found = self._compare(mx.array(ids).reshape(ROWS, LENGTH))
            except Exception as error:
                if not is_shared(error):
                    raise
                built = False
            # In a pipeline one rank may fail alone; nothing has been computed yet.
            if not all(map(int, link.gather_bytes(b"%d" % built))):
                finding = UNLIKE
                break
            (finding,) = link.share_ints([_judge(*found)])
            if finding != INDISTINCT:
                break
        self._narrow = finding == ALIKE
        # Of two projections in one pass nobody knows which has the state that text goes on from.
        size = self._hidden[0].shape[-1] if self._narrow and len(self._hidden) == 1 else 0
        self.hidden = min(map(int, link.gather_bytes(b"%d" % size)))
        self._hidden = []
        return self._narrow

    def _compare(self, tokens: mx.array) -> tuple[mx.array, mx.array]:
        """Logits of PLACES, lazy: computed alone, and among all."""
        every = self.model(tokens, cache=make_prompt_cache(self.model))
        rows, positions = map(list, zip(*PLACES, strict=True))
        self.want(rows, positions)
        self(tokens, make_prompt_cache(self.model))
        return self.take(), every[mx.array(rows), mx.array(positions)]

    def want(self, rows: list[int], positions: list[int]) -> None:
        """Of the next chunk: these rows' logits at these positions. None: nothing is wanted."""
        self._places = (mx.array(rows), mx.array(positions)) if rows else None

    def take(self) -> mx.array:
        """[W, V], lazy: the logits of the last chunk at the W places that were wanted."""
        logits, self._logits = self._logits, None
        return logits

    def take_hidden(self) -> mx.array:
        """[W, H], lazy: what the output projection was given there. Only if `hidden` is not 0."""
        (hidden,), self._hidden = self._hidden, []
        return hidden

    def __call__(self, tokens: mx.array, cache: list[Any]) -> None:
        """A chunk, [B, T]. It is computed as far as the caches need it, when they are evaluated;
        the rest with what take() gives."""
        places, self._places = self._places, None
        for head in self._heads:
            head.places = places if self._narrow else None
        try:
            logits = self.model(tokens, cache=cache)
        finally:  # or the next step would take out places of its own
            self._hidden = [hidden for head in self._heads for hidden in head.seen]
            for head in self._heads:
                head.places, head.seen = None, []
        if places is None:
            self._logits = None
        else:
            self._logits = logits[:, 0] if self._narrow else logits[places]
