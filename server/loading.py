"""Loads this rank's shard of the model, piece by piece.

Called on the main thread of every rank. mlx-lm reads the folder, builds the model and shards it;
mlx_lm.utils.sharded_load would then evaluate all weights in one go, which shows no progress and
on a GPU can run into the command buffer's time-out, so the pieces are evaluated here.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model, load_tokenizer

from server.link import Link
from server.requests import Sampling

PIECE_BYTES = 2**30


class Unloadable(Exception):
    """The model cannot be served as asked. Restarting would not help."""


@dataclass(frozen=True)
class Shard:
    """This rank's part. vocab: size of the logits' last axis; context: tokens; hidden: values
    of one token between two layers."""

    model: Any
    tokenizer: Any
    vocab: int
    context: int
    hidden: int
    sampling: Sampling


def load_shard(
    model_dir: Path,
    parallel: str,
    link: Link,
    context_max: int | None,
    progress: Callable[[str], None],
) -> Shard:
    """Loads, shards and evaluates. Raises Unloadable."""
    try:
        model, config = load_model(model_dir, lazy=True)
        tokenizer = load_tokenizer(model_dir, eos_token_ids=config.get("eos_token_id"))
    except (ValueError, FileNotFoundError, KeyError) as error:
        raise Unloadable(f"{model_dir}: {error}") from error
    if link.size > 1:
        _split(model, parallel, link)
    _evaluate(model, progress)
    progress("first forward pass")
    logits = model(mx.zeros((1, 1), dtype=mx.int32))
    mx.eval(logits)
    return Shard(
        model,
        tokenizer,
        vocab=logits.shape[-1],
        context=min(context_length(config), context_max or 2**31),
        hidden=_config_integer(config, "hidden_size", "n_embd", "d_model") or 4096,
        sampling=default_sampling(model_dir),
    )


def context_length(config: dict[str, Any]) -> int:
    """Tokens that the model was made for, from its config.json."""
    names = ("max_position_embeddings", "max_sequence_length", "model_max_length", "n_ctx")
    found = _config_integer(config, *names)
    if found is None:
        raise Unloadable(
            "config.json names no context length; set CONTEXT_MAX to the tokens it takes"
        )
    return found


def _config_integer(config: dict[str, Any], *names: str) -> int | None:
    """The first of names that the config, or its text part, has as a number."""
    for part in (config, config.get("text_config") or {}):
        for name in names:
            if isinstance(part.get(name), int):
                return part[name]
    return None


def default_sampling(model_dir: Path) -> Sampling:
    """What the model's makers recommend (generation_config.json), or OpenAI's defaults."""
    try:
        made_for = json.loads((model_dir / "generation_config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return Sampling()
    if made_for.get("do_sample") is False:
        return Sampling()
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    return Sampling(**{n: made_for[n] for n in names if isinstance(made_for.get(n), int | float)})


def _split(model: Any, parallel: str, link: Link) -> None:
    if parallel == "pipeline":
        if not hasattr(getattr(model, "model", None), "pipeline"):
            raise Unloadable("PARALLEL='pipeline': this architecture has no pipeline; use tensor")
        model.model.pipeline(link.group)
        return
    if not hasattr(model, "shard"):
        raise Unloadable("PARALLEL='tensor': this architecture cannot be sharded; use pipeline")
    try:
        model.shard(link.group)
    except ValueError as error:
        raise Unloadable(f"the model does not split over {link.size} ranks: {error}") from error


def _evaluate(model: Any, progress: Callable[[str], None]) -> None:
    weights = [array for _, array in tree_flatten(model.parameters())]
    total = sum(array.nbytes for array in weights)
    done, piece, size = 0, [], 0
    for i, array in enumerate(weights):
        piece.append(array)
        size += array.nbytes
        if size >= PIECE_BYTES or i == len(weights) - 1:
            mx.eval(piece)
            done += size
            progress(f"loading: {done / 1e9:.1f} of {total / 1e9:.1f} GB")
            piece, size = [], 0
