"""Loads a model and splits it over the ranks, in the best way that holds.

Called on the main thread of every rank. What is possible is decided by arrangement.py, of the same
numbers on every rank; what fails here, or computes something else than the model does, gives way to
the next. No weights are read but those that the proof of a generic split needs.
"""

import inspect
import json
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from server.startup.agreement import Local, agree
from server.startup.arrangement import (
    GENERIC_PIPELINE,
    GENERIC_TENSOR,
    PIPELINE,
    TENSOR,
    WHOLE,
    Arrangement,
    arrangements,
    choose,
)
from server.startup.generic_pipeline import Stage
from server.startup.generic_tensor import split_layers
from server.startup.handshake import Mismatch
from server.startup.layer_chain import Chain, leave_out, replaced
from server.startup.mlx_lm_source import find_architecture, mlx_lm_folder
from server.startup.piece_pace import AllAtOnce, Pace
from server.startup.split_proof import STAGE, compare
from server.startup.tensor_sizes import sizes_of
from server.startup.trunk import load_lazy
from server.startup.weights_index import by_layer, read_weights, total
from server.wire.link import Link

log = logging.getLogger(__name__)


class Indivisible(ValueError):
    """There is no way to split this model over these ranks; why, of each way."""


@dataclass(frozen=True)
class Split:
    """This rank's part of a model, lazy: nothing of it is read yet."""

    model: nn.Module
    config: dict[str, Any]
    arrangement: Arrangement


def load_split(
    folder: Path,
    parallel: str,
    link: Link,
    memories: Sequence[int | None],
    progress: Callable[[str], None],
    pace: Pace | None = None,
) -> Generator[None, None, Split]:
    """Every rank calls it, and gets the same arrangement. memories: bytes that each rank may use.
    Gives way between its parts. pace: as load_pieces() has it.

    Raises Indivisible; Mismatch where the ranks decide differently; and what load_model() raises.
    """
    pace, lazy = pace or AllAtOnce(), []

    def load() -> None:
        lazy[:] = load_lazy(folder)

    if link.size == 1:
        pace.attempt(link, load)
        return Split(*lazy, Arrangement(WHOLE))
    found = _decide(folder, parallel, link, memories, pace)
    said = [f"{one.kind}: {reason}" for one in found for reason in one.reasons]
    tried = []
    while (one := choose([one for one in found if one not in tried])) is not None:
        tried.append(one)
        pace.attempt(link, load)
        model, config = lazy
        yield
        progress(f"splitting: {one.kind}")
        way = _Way(folder, model, config, one, memories, pace.local)
        wrong = yield from way.take(link, progress)
        yield
        if not wrong:
            one = way.arrangement
            log.info("how it is split: %s", one)
            if one.tight:
                log.warning("memory may not suffice: %s", one.tight)
            return Split(model, config, one)
        log.warning("this model cannot be split as %s: %s", one.kind, wrong)
        said.append(f"{one.kind}: {wrong}")
    raise Indivisible("; ".join(said))


def _decide(
    folder: Path, parallel: str, link: Link, memories: Sequence[int | None], pace: Pace
) -> tuple[Arrangement, ...]:
    found: list[Arrangement] = []

    def decide() -> None:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        package = mlx_lm_folder()
        architecture = find_architecture(config, package) if package else None
        if architecture is None:
            raise ValueError(f"mlx-lm does not know model_type {config.get('model_type')!r}")
        weights = read_weights(folder)
        found[:] = arrangements(config, weights, link.size, memories, architecture, parallel)

    pace.attempt(link, decide)
    mine = "; ".join(f"{one}{' (no)' * bool(one.reasons)}" for one in found)
    theirs = [data.decode() for data in link.gather_bytes(mine.encode())]
    for rank, other in enumerate(theirs):
        if other != theirs[0]:
            raise Mismatch(f"rank {rank} would split the model as {other}, rank 0 as {theirs[0]}")
    return tuple(found)


@dataclass
class _Way:
    """One arrangement of a model that was just loaded. Its layers are what they were dealt as, once
    it is taken: some may have to stay together, which only the model itself can tell."""

    folder: Path
    model: nn.Module
    config: dict[str, Any]
    arrangement: Arrangement
    memories: Sequence[int | None]
    local: Local = ()

    def take(self, link: Link, progress: Callable[[str], None]) -> Generator[None, None, str]:
        """Splits the model in place; what is wrong with that, "" for nothing."""
        made: list[Stage] = []
        wrong = agree(link, lambda: made.extend(self._split(link.group)), self.local)
        if wrong or self.arrangement.kind not in (GENERIC_TENSOR, GENERIC_PIPELINE):
            return wrong
        progress(STAGE)
        leave, firsts = self._leave, ()
        if made:
            leave, firsts = made[0].leave, made[0].firsts()
            self.arrangement = replace(self.arrangement, layers=made[0].dealt)
        return (
            yield from compare(
                self.model,
                lambda: load_lazy(self.folder)[0],
                leave,
                firsts,
                not made,
                partial(agree, link, local=self.local),
            )
        )

    def _split(self, group: mx.distributed.Group) -> Iterator[Stage]:
        kind = self.arrangement.kind
        if kind == TENSOR:
            self.model.shard(group)
        elif kind == PIPELINE:
            self._mlx_lm_pipeline(group)
        elif kind == GENERIC_TENSOR:
            split_layers(self.model, sizes_of(self.config), group)
        else:
            _, others = by_layer(read_weights(self.folder))
            yield Stage(self.model, group, total(others), self.memories)

    def _mlx_lm_pipeline(self, group: mx.distributed.Group) -> None:
        pipeline = self.model.model.pipeline
        if "split" in inspect.signature(pipeline).parameters:
            pipeline(group, split=list(self.arrangement.layers))
        else:
            pipeline(group)

    def _leave(self, chain: Chain | None, numbers: frozenset[int]) -> AbstractContextManager[None]:
        layers = self.model.layers
        return replaced([(layers[n], leave_out(chain, n)) for n in numbers])
