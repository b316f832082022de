"""What of a model can be split over ranks by the names and shapes of its projections.

Pure; imports no mlx. The same plan says before launch whether a split is possible, and at the
start what is split.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from server.startup.weights_index import Weight


@dataclass(frozen=True)
class Plan:
    """reasons: why there is none. split_bytes: bytes of weights that are split over the ranks."""

    reasons: tuple[str, ...] = ()
    split_bytes: int = 0


def plan_split(weights: Mapping[str, Weight], sizes: dict, ranks: int) -> Plan:
    return Plan(("no generic split yet",))
