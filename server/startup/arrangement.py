"""How a model would run on so many ranks: which ways of splitting it are possible, which is taken.

The one place where this is decided: run, the doctor and check_model ask before launch, and every
rank asks at its start, of the same numbers. Pure; imports no mlx, reads nothing.

    tensor            mlx-lm's shard(): each rank has a part of every layer
    generic tensor    the same for architectures without one, by the names of projections
    pipeline          mlx-lm's pipeline(): each rank has a run of layers
    generic pipeline  the same for architectures without one

What is possible here may still fail its proof at the start; then the next one is tried.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from server.startup.deal import deal
from server.startup.mlx_lm_source import Architecture
from server.startup.split_plan import plan_split
from server.startup.tensor_sizes import number, sizes_of, tensor_obstacles
from server.startup.weights_index import Weight, by_layer, total

WHOLE = "one rank"
TENSOR, GENERIC_TENSOR = "tensor", "generic tensor"
PIPELINE, GENERIC_PIPELINE = "pipeline", "generic pipeline"
# PARALLEL's values, each with the kinds that it allows, the best first.
KINDS = {
    "auto": (TENSOR, GENERIC_TENSOR, PIPELINE, GENERIC_PIPELINE),
    "tensor": (TENSOR, GENERIC_TENSOR),
    "pipeline": (PIPELINE, GENERIC_PIPELINE),
}
WEIGHTS_MOST = 0.9  # of a rank's memory: the rest is for KV caches and what is computed
LAYER_COUNTS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "num_transformer_layers")


@dataclass(frozen=True)
class Arrangement:
    """One kind of split. reasons: why it is impossible, a sentence each; none: it is possible.
    tight: which ranks' memory is too small for their weights, "" if none is known to be.
    layers: how many each rank gets, in pipelines; shares: bytes of weights that each rank holds.
    Both are empty where they are not known."""

    kind: str
    reasons: tuple[str, ...] = ()
    tight: str = ""
    layers: tuple[int, ...] = ()
    shares: tuple[int, ...] = ()

    @property
    def possible(self) -> bool:
        return not self.reasons

    def __str__(self) -> str:
        if not self.layers:
            return self.kind
        return f"{self.kind} of {', '.join(map(str, self.layers))} layers"


def arrangements(
    config: dict,
    weights: Mapping[str, Weight],
    ranks: int,
    memories: Sequence[int | None],
    architecture: Architecture,
    parallel: str = "auto",
) -> tuple[Arrangement, ...]:
    """Each kind that PARALLEL allows, in the order in which they are tried.

    config: the whole config.json. weights: from weights_index; empty where nobody knows, and then
    it goes by config.json alone. memories: bytes that each rank may use, None or () if unknown.
    """
    model = _Model(config, weights, ranks, tuple(memories) or (None,) * ranks, architecture)
    if ranks == 1:
        return (model.fitted(WHOLE, [], (), model.even(0)),)
    return tuple(model.arrange(kind) for kind in KINDS[parallel])


def choose(found: Sequence[Arrangement]) -> Arrangement | None:
    """The one that is taken: the first that is possible and fits; where none fits, the first
    possible one, since what is free is known better once the ranks run. None: none is possible."""
    possible = [one for one in found if one.possible]
    return next((one for one in possible if not one.tight), possible[0] if possible else None)


@dataclass(frozen=True)
class _Model:
    config: dict
    weights: Mapping[str, Weight]
    ranks: int
    memories: tuple[int | None, ...]
    architecture: Architecture

    def arrange(self, kind: str) -> Arrangement:
        if kind == TENSOR:
            reasons = tensor_obstacles(self.config, self.architecture, self.ranks)
            layers, _ = by_layer(self.weights)
            return self.fitted(kind, reasons, (), self.even(sum(map(total, layers))))
        if kind == GENERIC_TENSOR:
            return self._generic_tensor()
        return self._pipeline(kind)

    def even(self, split: int) -> tuple[int, ...]:
        """Each rank's bytes where so many are split evenly, and the rest is on all."""
        if not self.weights:
            return ()
        return (total(self.weights) - split + split // self.ranks,) * self.ranks

    def fitted(
        self, kind: str, reasons: Sequence[str], layers: tuple[int, ...], shares: tuple[int, ...]
    ) -> Arrangement:
        tight = [
            f"rank {rank} would hold {share / 1e9:.1f} GB of weights in {memory / 1e9:.1f} GB"
            for rank, (share, memory) in enumerate(zip(shares, self.memories, strict=False))
            if memory is not None and share > WEIGHTS_MOST * memory
        ]
        return Arrangement(kind, tuple(reasons), "; ".join(tight), layers, shares)

    def _generic_tensor(self) -> Arrangement:
        if why := self.architecture.unfit.get(GENERIC_TENSOR):
            return Arrangement(GENERIC_TENSOR, (why,))
        plan = plan_split(self.weights, sizes_of(self.config), self.ranks)
        return self.fitted(GENERIC_TENSOR, plan.reasons, (), self.even(plan.split_bytes))

    def _pipeline(self, kind: str) -> Arrangement:
        if kind == PIPELINE and not self.architecture.can_pipeline:
            name = self.architecture.name
            return Arrangement(kind, (f"mlx-lm's {name} cannot be split into a pipeline",))
        if why := self.architecture.unfit.get(kind):
            return Arrangement(kind, (why,))
        layers, others = by_layer(self.weights)
        sizes = sizes_of(self.config)
        count = next((n for n in (number(sizes, key) for key in LAYER_COUNTS) if n), len(layers))
        if 0 < count < self.ranks:
            reason = f"{count} layers are too few for a pipeline of {self.ranks} ranks"
            return Arrangement(kind, (reason,))
        if not count:
            return Arrangement(kind)
        # Layers beyond the model's own (drafts) are not loaded. Unknown ones are as good as equal.
        nbytes = [total(layer) for layer in layers[:count]] if len(layers) >= count else [1] * count
        if kind == PIPELINE and not self.architecture.takes_split:
            dealt = tuple(count // self.ranks + (r < count % self.ranks) for r in range(self.ranks))
        else:
            dealt = deal(nbytes, total(others), self.memories)
        shares: tuple[int, ...] = ()
        if len(layers) >= count:
            ends = [sum(dealt[rank:]) for rank in range(self.ranks)]
            shares = tuple(
                total(others) + sum(nbytes[end - n : end])
                for end, n in zip(ends, dealt, strict=True)
            )
        return self.fitted(kind, (), dealt, shares)
