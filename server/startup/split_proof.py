"""Whether a generic split computes what the model does: found out at each start, on its weights.

Runs on the main thread of every rank, before the shards are loaded. The names of projections do not
say what is computed with them. So each rank also computes the model by itself, of a short text: a
small one as a whole; of a large one some layers, one of every kind, the others left out in both.
That reads these layers' weights once more, and gives them up again.
"""

import logging
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.cache import make_prompt_cache

from server.startup.layer_chain import Chain, Unfit, arrays_in, follow, leave_out, replaced

STAGE = "proving the split"
# Of all layers. Of more bytes some are left out, where they are a chain; where they are none, all
# are computed, which may take as long as the rest of the start, up to what every Mac can hold.
WHOLE_MOST, UNCHAINED_MOST = 2**28, 2**33  # bytes
TEXT = ((3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5), (8, 9), (7,))  # in pieces, as a prompt and two steps
# How far logits may be from those of the model alone, as a part of the largest. Layers are computed
# in 32 bits where they are cut; in a pipeline as they are, and chips round differently.
FAR_CUT, FAR_WHOLE = 2e-3, 5e-2

log = logging.getLogger(__name__)

Leave = Callable[[Chain | None, frozenset[int]], AbstractContextManager[None]]
Agree = Callable[[Callable[[], None]], str]


def compare(
    split: nn.Module,
    whole: Callable[[], nn.Module],
    leave: Leave,
    firsts: Iterable[int],
    cut: bool,
    agree: Agree,
) -> Generator[None, None, str]:
    """What is wrong with a split, "" for nothing. Every rank calls it, and all hear the same. Gives
    way after each pass.

    whole: makes the model once more, lazily. leave: leaves layers out of the split one for a while.
    firsts: layers that must not be left out. cut: its layers are cut; else they are whole, each on
    one rank. agree: what any rank says that goes wrong as it calls what it is given.
    """
    alone = _Alone(firsts, cut)
    wrong = agree(lambda: alone.compute(whole()))
    mx.clear_cache()
    yield
    if wrong:
        return wrong
    there = [layer for n, layer in enumerate(split.layers) if n not in alone.left_out]
    before = [(layer, layer.parameters()) for layer in there] if cut else []
    found: list[mx.array] = []
    try:
        with leave(alone.chain, alone.left_out):
            for layer, _ in before:
                _widen(layer)
            # Nothing is computed before all ranks have come through: one that failed would leave
            # the others waiting.
            wrong = agree(lambda: found.extend(_logits(split)))
            for logits in () if wrong else found:
                mx.eval(logits)
                yield
    finally:
        for layer, its in before:
            layer.update(its)
    return wrong or agree(lambda: _judge(found, alone.logits, FAR_CUT if cut else FAR_WHOLE))


class _Alone:
    """What one rank computes by itself, and which layers it leaves out."""

    def __init__(self, firsts: Iterable[int], cut: bool) -> None:
        self._firsts, self._cut = frozenset(firsts), cut
        self.chain: Chain | None = None
        self.left_out: frozenset[int] = frozenset()
        self.logits: list[mx.array] = []

    def compute(self, model: nn.Module) -> None:
        """Raises Unfit where it is too much."""
        layers = list(model.layers)
        nbytes = sum(a.nbytes for layer in layers for a in arrays_in(layer.parameters()))
        if nbytes > WHOLE_MOST:
            self._choose(model, nbytes)
        absent = [(layers[n], leave_out(self.chain, n)) for n in self.left_out]
        if self._cut:
            for number, layer in enumerate(layers):
                if number not in self.left_out:
                    _widen(layer)
        with replaced(absent):
            self.logits = list(_logits(model))
            mx.eval(self.logits)

    def _choose(self, model: nn.Module, nbytes: int) -> None:
        try:
            self.chain = follow(model)
        except Unfit as why:
            if nbytes > UNCHAINED_MOST:
                raise Unfit(f"it is too large to be proven as a whole, and {why}") from None
            return
        self.left_out = _left_out(self.chain, self._firsts)


def _left_out(chain: Chain, firsts: frozenset[int]) -> frozenset[int]:
    """All but one layer of each kind, those that have to be there, and those that these need."""
    kinds: dict[object, int] = {}
    for number in range(len(chain.layers)):
        kinds.setdefault(_kind(chain, number), number)
    there = {*kinds.values(), *firsts}
    runs = [run for run in chain.runs() if there & {*run}]
    return frozenset(range(len(chain.layers))) - {number for run in runs for number in run}


def _kind(chain: Chain, number: int) -> object:
    """What layers have in common that compute the same with other weights."""
    layer, call = chain.layers[number], chain.calls[number]
    arrays = sorted((name, a.shape, str(a.dtype)) for name, a in tree_flatten(layer.parameters()))
    return type(layer).__name__, tuple(arrays), call.more, call.fills, call.caches


def _widen(layer: nn.Module) -> None:
    """To 32 bits, in which a cut rounds as good as nothing."""
    floats = mx.float16, mx.bfloat16
    widened = tree_map(
        lambda a: a.astype(mx.float32) if a.dtype in floats else a, layer.parameters()
    )
    layer.update(widened)


def _logits(model: nn.Module) -> Iterable[mx.array]:
    """After each piece of TEXT, lazy."""
    caches = make_prompt_cache(model)
    for piece in TEXT:
        yield model(mx.array([piece]), cache=caches)


def _judge(found: list[mx.array], right: list[mx.array], limit: float) -> None:
    """Raises Unfit where they are further apart than limit, as a part of the largest."""
    for one, other in zip(found, right, strict=True):
        size = mx.max(mx.abs(mx.where(mx.isfinite(other), other, 0)))
        apart = mx.where(one == other, 0, mx.abs(one - other))  # some shut tokens out: -inf
        far = (mx.max(apart) / size).item()
        log.debug("logits are %.2g of the largest apart", far)
        if not far <= limit:  # written so that NaN fails, too
            raise Unfit(
                f"its logits are {far:.2g} of the largest apart from those of one rank alone "
                f"(at most {limit:g})"
            )
