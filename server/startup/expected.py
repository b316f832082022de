"""What models that are not loaded would take on each rank, from their folders alone.

Called once on rank 0's main thread, before it serves; no weights are read.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from server.protocol.settings import Settings
from server.startup.arrangement import arrangements, choose
from server.startup.mlx_lm_source import find_architecture, mlx_lm_folder
from server.startup.weights_index import Weight, read_weights, total

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Expected:
    """Bytes of a model: of all its weights, of those that each rank would hold, and what loading
    takes beside these at its peak."""

    whole: int
    shares: tuple[int, ...]
    peak: int


def expect(settings: Settings, ranks: int, memories: Sequence[int | None]) -> list[Expected]:
    """Of each model in the list. A folder that cannot be read is told of when it is asked for."""
    found = []
    for model in settings.models:
        weights: dict[str, Weight] = {}
        shares: tuple[int, ...] = ()
        try:
            weights = read_weights(model.folder)
            config = json.loads((model.folder / "config.json").read_text("utf-8"))
            package = mlx_lm_folder()
            architecture = find_architecture(config, package) if package else None
            if architecture is not None:
                every = arrangements(
                    config, weights, ranks, memories, architecture, settings.parallel
                )
                one = choose(every)
                shares = one.shares if one is not None else ()
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            log.warning("%s cannot be looked at: %s", model.name, error)
        whole = total(weights)
        # What is cut for this rank is read whole.
        peak = max((weight.nbytes for weight in weights.values()), default=0)
        found.append(Expected(whole, shares or (-(-whole // ranks),) * ranks, peak))
    return found
