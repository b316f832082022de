"""How a forward pass grows with its tokens, measured at each start: what drafts would cost.

Runs on the main thread of every rank, once a model is proven. A dense model reads its weights for
one token or for eight, and takes about as long; a mixture of experts reads more of them for each
token more. Seconds at most, as each size is computed a few times and a slow one ends it.
"""

import math
import time
from collections.abc import Callable, Generator
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from server.wire.link import Link

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)  # tokens
REPEATS = 3
MOST_S = 1.0  # of one size: larger ones would hold up the start, and no draft pays there


def measure_curve(
    model: Any,
    link: Link,
    progress: Callable[[str], None],
    bearable_s: Callable[[], float] = lambda: MOST_S,
) -> Generator[None, None, list[tuple[int, float]]]:
    """(tokens, seconds), ascending, two of them at least. Every rank calls it; rank 0's clock
    counts for all. Gives way after each pass: other models may be serving. bearable_s: seconds of
    one pass, beyond which no larger is tried; the same on every rank."""
    curve: list[tuple[int, float]] = []
    for tokens in SIZES:
        progress("measuring decode steps")
        best = math.inf
        for _ in range(1 + REPEATS):
            best = min(best, _time(model, link, tokens))
            yield
        (micros,) = link.share_ints([min(int(best * 1e6), 2**30)])
        # A larger pass that seems to be faster was measured in a quieter moment.
        seconds = max([micros / 1e6, 1e-6, *(before for _, before in curve)])
        curve.append((tokens, seconds))
        if seconds > bearable_s() and len(curve) > 1:
            break
    return curve


def _time(model: Any, link: Link, tokens: int) -> float:
    """Seconds of one pass, with all ranks at it together."""
    caches = make_prompt_cache(model)
    text = mx.array([[i * 7919 % 97 for i in range(1, tokens + 1)]])
    link.share_ints([0])
    mx.synchronize()  # a step of another model may be on its way
    began = time.perf_counter()
    logits = model(text, cache=caches)
    mx.eval(logits, [cache.state for cache in caches])
    return time.perf_counter() - began
