"""Random weights for a model, the same on every run and machine for the same seed.

For tests and benchmarks that need a model's shape but no sense. Needs mlx.
"""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.utils import save_model

HEAD = "lm_head.weight"


def write_random_weights(
    path: Path, model, seed: int, head: Callable[[mx.array], mx.array] | None = None
) -> dict[str, mx.array]:
    """Gives the model random weights and saves them in `path`; returns them by name.

    head: what to make of the output layer, [vocabulary, hidden].
    """
    path.mkdir(parents=True, exist_ok=True)
    weights = {}
    names = sorted(tree_flatten(model.parameters()), key=lambda item: item[0])
    for number, (name, old) in enumerate(names):
        key = mx.random.key(seed * 1000 + number)
        if old.ndim == 1:
            # MLX would start the biases at random, from a seed that is not ours.
            weights[name] = mx.zeros_like(old) if name.endswith(".bias") else mx.ones_like(old)
            continue
        # Every layer's output is about as large as its input. The wider head makes the
        # best token stand out, so that rounding on 1, 2 or 4 ranks cannot change it.
        size = {"model.embed_tokens.weight": 1.0, HEAD: 4.0 * old.shape[1] ** -0.5}
        weights[name] = mx.random.normal(old.shape, key=key) * size.get(name, old.shape[1] ** -0.5)
        if name == HEAD and head is not None:
            weights[name] = head(weights[name])
    model.update(tree_unflatten(list(weights.items())))
    save_model(path, model)
    return weights
