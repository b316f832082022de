"""Small models of random weights, one of every architecture that the installed mlx-lm has.

A config is one set of common sizes with what an architecture calls otherwise: mlx-lm's ModelArgs
take the names that they know. Windows are shorter than the tests' prompts, and every kind of
layer that an architecture has is there.
"""

import importlib
import json
import pkgutil
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.utils import save_model

from tests.models.sizes import COMMON, CONTEXT, IN_TEXT_CONFIG, OWN, VARIANTS
from tests.support.tiny_models import VOCAB, write_byte_tokenizer

GROUP = 32  # of quantised weights: the smallest that MLX has


@cache
def architectures() -> tuple[str, ...]:
    """Every module of mlx_lm.models that is one."""
    found = []
    for module in pkgutil.iter_modules(mlx_lm.models.__path__):
        try:
            names = dir(importlib.import_module(f"mlx_lm.models.{module.name}"))
        except SystemExit:  # olmo leaves the program where a package of its own is missing
            continue
        if {"Model", "ModelArgs"} <= set(names):
            found.append(module.name)
    return tuple(found)


def config_of(name: str) -> dict[str, Any]:
    """A small config.json of an architecture, or of one of VARIANTS."""
    architecture, own = VARIANTS.get(name, (name, OWN.get(name, {})))
    config = COMMON | OWN.get(architecture, {}) | own | {"model_type": architecture}
    around = IN_TEXT_CONFIG.get(architecture)
    if around is None:
        return config
    return {"model_type": architecture, "vocab_size": VOCAB, "text_config": config} | around


def build(name: str, seed: int = 0) -> nn.Module:
    """A model with random weights, the same for the same arguments."""
    config = config_of(name)
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    mx.random.seed(seed)  # MLX starts some by chance, and fill() leaves those nearly as they are
    model = module.Model(module.ModelArgs.from_dict(config))
    fill(model, seed)
    model.eval()
    return model


def fill(model: nn.Module, seed: int) -> None:
    """Random weights: what a layer makes of its input is about as large as that."""
    weights = {}
    for number, (name, old) in enumerate(sorted(tree_flatten(model.parameters()))):
        key = mx.random.key(1000 * seed + number)
        if not mx.issubdtype(old.dtype, mx.floating):
            weights[name] = mx.random.randint(0, 256, old.shape, key=key).astype(old.dtype)
            continue
        noise = mx.random.normal(old.shape, key=key)
        if name.endswith(".signs"):
            new = mx.sign(noise)
        elif old.ndim < 2 or min(old.shape) == 1 and "conv" not in name:
            # A norm's factor, a bias, a decay: about what it starts with. MLX starts biases by
            # chance, from a seed that is not ours.
            start = mx.zeros_like(old) if name.endswith("bias") else old
            new = start + 0.1 * noise
        else:
            fan = old.size // old.shape[0] if "conv" in name else old.shape[-1]
            new = noise * fan**-0.5
        weights[name] = new.astype(old.dtype)
    model.update(tree_unflatten(list(weights.items())))
    mx.eval(model.parameters())


def quantize(model: nn.Module, bits: int | None) -> None:
    """Weights of so many bits, where their widths allow it; None: as they are."""
    if bits is not None:
        fits = lambda _, m: hasattr(m, "to_quantized") and m.weight.shape[-1] % GROUP == 0  # noqa: E731
        nn.quantize(model, group_size=GROUP, bits=bits, class_predicate=fits)


def write(
    folder: Path, name: str, seed: int = 0, *, bits: int | None = None, **config: Any
) -> Path:
    """A folder that a server can load. config: more of its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    model = build(name, seed)
    if bits is not None:
        quantize(model, bits)
        config["quantization"] = {"group_size": GROUP, "bits": bits}
    save_model(folder, model)
    (folder / "config.json").write_text(json.dumps(config_of(name) | config, indent=2))
    write_byte_tokenizer(folder, VOCAB, CONTEXT)
    return folder
