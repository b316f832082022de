"""Numbers from lists of times. No I/O, no clocks."""

import math
import statistics
from collections.abc import Sequence

PERCENTILES = (50, 95, 99)


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` percent lie, linear between the two nearest.

    Raises ValueError without values, or with a share outside 0 to 100.
    """
    if not values:
        raise ValueError("no values to take a percentile of")
    if not 0 <= share <= 100:
        raise ValueError(f"share is {share}: must be from 0 to 100")
    ordered = sorted(values)
    place = (len(ordered) - 1) * share / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spread(values: Sequence[float]) -> dict[str, float | int | None]:
    """count, mean, p50, p95, p99 and most; all but the count None without values."""
    result: dict[str, float | int | None] = {"count": len(values)}
    result["mean"] = statistics.fmean(values) if values else None
    for share in PERCENTILES:
        result[f"p{share}"] = percentile(values, share) if values else None
    result["most"] = max(values, default=None)
    return result


def median(values: Sequence[float | None]) -> float | None:
    """The median of what was measured; None if nothing was."""
    present = [value for value in values if value is not None]
    return statistics.median(present) if present else None


def slope(points: Sequence[tuple[float, float]]) -> float:
    """How much y grows for each x, by least squares; 0 where x does not vary."""
    if len(points) < 2 or len({x for x, _ in points}) < 2:
        return 0.0
    return statistics.linear_regression(*zip(*points, strict=True)).slope
