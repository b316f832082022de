"""Loads a model whose files hold its trunk alone, as those of models made for embeddings do.

Called on the main thread of every rank. sentence-transformers saves what is below the output
projection, under names that lack their first part. mlx-lm builds the whole model, so the names get
that part back, and the projection is taken for the embedding: nobody reads what it gives.
"""

import inspect
from functools import partial
from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx_lm.utils import load_model

from server.startup.weights_index import read_weights

PREFIX = "model."
EMBEDDING = "embed_tokens.weight"


def load_lazy(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The model and its config, nothing of it read. Raises what load_model() raises."""
    if not holds_trunk(folder):
        return load_model(folder, lazy=True)
    classes = inspect.signature(load_model).parameters["get_model_classes"].default
    return load_model(
        folder,
        lazy=True,
        model_config={"tie_word_embeddings": True},
        get_model_classes=partial(_classes, classes),
    )


def holds_trunk(folder: Path) -> bool:
    """Whether it is one of these. A folder that cannot be read is not: mlx-lm says why."""
    try:
        return EMBEDDING in read_weights(folder)
    except (OSError, ValueError):
        return False


def _classes(classes: Any, config: dict[str, Any]) -> tuple[type, type]:
    model, arguments = classes(config)

    class Trunk(model):
        def sanitize(self, weights: dict[str, Any]) -> dict[str, Any]:
            whole = {PREFIX + name: array for name, array in weights.items()}
            return super().sanitize(whole) if hasattr(model, "sanitize") else whole

    return Trunk, arguments
