"""Loads this rank's shard of the model, piece by piece.

Called on the main thread of every rank. mlx-lm reads the folder and builds the model, splitting.py
shards it; mlx_lm.utils.sharded_load would then evaluate all weights in one go, which shows no
progress and on a GPU can run into the command buffer's time-out, so the pieces are evaluated here.
After each piece the ranks meet: so every rank knows how far all are, and a dead one is noticed at
once.
"""

import json
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from server.engine.last_logits import LastLogits, put_heads
from server.engine.split_head import split_heads
from server.observe.fleet import Loaded
from server.protocol.embedding_kind import EmbeddingKind
from server.protocol.failures import is_shared
from server.protocol.requests import Sampling
from server.startup.agreement import Found
from server.startup.arrangement import GENERIC_PIPELINE, PIPELINE, Arrangement
from server.startup.batching import Wrong, prove_ways
from server.startup.embedding_kind import embedding_kind
from server.startup.handshake import Mismatch
from server.startup.piece_pace import WHOLE, AllAtOnce, Failed, Pace, at_once
from server.startup.splitting import Indivisible, load_split
from server.startup.tokenizer import load as load_tokenizer
from server.wire.link import Link
from server.wire.link_speed import Sums, counting_sums
from server.wire.seal import Garbled

NO_METAL = "No Metal back-end"  # MLX's words
UNIT = 1024  # bytes, in which the ranks tell each other how far they are: an int32 reaches 2 TB

log = logging.getLogger(__name__)


class Unloadable(Found):
    """The model cannot be served as asked. Restarting would not help."""


@dataclass(frozen=True)
class Shard:
    """This rank's part. last: the same model, for prompts; vocab: size of the logits' last axis;
    context: tokens; hidden: values of one token between two layers; weights: bytes."""

    model: Any
    last: LastLogits
    tokenizer: Any
    vocab: int
    context: int
    hidden: int
    sums: Sums  # of a forward pass of one token
    sampling: Sampling
    arrangement: Arrangement
    embeddings: EmbeddingKind
    weights: int = 0


def load_shard(
    model_dir: Path,
    parallel: str,
    link: Link,
    context_max: int | None,
    progress: Callable[[str], None],
    on_loaded: Callable[[tuple[Loaded, ...]], None] = lambda loaded: None,
    trust: bool = False,
    memories: Sequence[int | None] = (),
    bits: int = 0,
    bits_from: int = 0,
) -> Shard:
    """Loads, shards and evaluates. on_loaded hears how far each rank is. trust: code of the folder
    may be run for its tokenizer. memories: bytes that each rank may use, as far as they are known.
    bits, bits_from: of keys and values, as prove_ways() has them.
    Raises Unloadable, and Mismatch."""
    pieces = load_pieces(
        model_dir, parallel, link, context_max, progress, on_loaded, trust, memories, bits,
        bits_from,
    )  # fmt: skip
    return at_once(pieces)


def load_pieces(
    model_dir: Path,
    parallel: str,
    link: Link,
    context_max: int | None,
    progress: Callable[[str], None],
    on_loaded: Callable[[tuple[Loaded, ...]], None] = lambda loaded: None,
    trust: bool = False,
    memories: Sequence[int | None] = (),
    bits: int = 0,
    bits_from: int = 0,
    pace: Pace | None = None,
) -> Generator[None, None, Shard]:
    """The same, as a generator that gives way between pieces. pace: how large they are, and what
    becomes of a failure that one rank has alone."""
    pace = pace or AllAtOnce()
    # At the start whatever stands against the model ends the ranks, and each says what it met.
    # Later a failure in the midst of collectives is the model's only if all ranks have it.
    catches = is_shared if pace.local else _whatever
    with _or_unloadable(f"{model_dir} cannot be loaded", catches):
        part = yield from load_split(model_dir, parallel, link, memories, progress, pace)
        model, config = part.model, part.config
    yield
    tokenizer: Any = None

    def read_tokenizer() -> None:
        nonlocal tokenizer
        with _or_unloadable(f"the tokenizer of {model_dir} cannot be loaded"):
            tokenizer = load_tokenizer(model_dir, config, trust)

    progress("reading the tokenizer")
    yield from pace.aside(link, read_tokenizer)
    splits, heads = [], []

    def put() -> None:
        with _or_unloadable("the model cannot be split"):
            heads.extend(put_heads(model))
            if link.size > 1:
                splits.extend(split_heads(heads, link))

    pace.attempt(link, put)
    for loaded in evaluate(weights_of(model), link, pace):
        on_loaded(loaded)
        progress(f"loading: {_describe(loaded)}")
        yield
    progress(f"loaded: {_describe(loaded)}")
    progress("first forward pass")
    kind = config.get("model_type")
    made = []

    def pass_once() -> None:
        with _or_unloadable(f"{kind} cannot be computed on this machine"):
            made.append(model(mx.zeros((1, 1), dtype=mx.int32)))  # nothing is sent or computed yet

    with counting_sums() as sums:
        pace.attempt(link, pass_once)
    (logits,) = made
    mx.eval(logits)
    yield
    last = LastLogits(model, heads)
    last.alike = part.arrangement.kind not in (PIPELINE, GENERIC_PIPELINE)
    with _or_unloadable("this model cannot be served", is_shared):
        if not last.prove(link):
            log.warning("no output projection found: prompts compute logits of all their tokens")
        yield
        yield from prove_ways(last, logits.shape[-1], link, progress, bits, bits_from)
    yield
    for head in splits:
        progress("timing the output projection")
        yield from head.tune()
    if splits:
        log.info("output projection: split up to %d rows", max(head.rows for head in splits))
    return Shard(
        model,
        last,
        tokenizer,
        vocab=logits.shape[-1],
        context=min(context_length(config), context_max or 2**31),
        hidden=_config_integer(config, "hidden_size", "n_embd", "d_model") or 4096,
        sums=sums,
        sampling=default_sampling(model_dir),
        arrangement=part.arrangement,
        embeddings=embedding_kind(model_dir, config, last.hidden),
        weights=sum(array.nbytes for array in weights_of(model)),
    )


def _whatever(error: Exception) -> bool:
    return True


@contextmanager
def _or_unloadable(what: str, catches: Callable[[Exception], bool] = _whatever) -> Iterator[None]:
    """Whatever stands against a model comes from its files, or from what was made for other
    machines: the next start would meet it again, and a traceback helps nobody. catches: which
    errors are of that kind."""
    try:
        yield
    except (Unloadable, Mismatch, Garbled, Failed):
        raise
    except Exception as error:
        if not catches(error):
            raise
        ours = isinstance(error, Wrong | Indivisible)
        said = str(error) if ours else f"{type(error).__name__}: {error}"
        if NO_METAL in said:
            said += " (it needs Apple's GPU)"
        log.debug("%s", what, exc_info=error)
        raise Unloadable(f"{what}: {said}") from error


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


def _describe(loaded: tuple[Loaded, ...]) -> str:
    """How far the ranks are, in words."""
    share = sum(one.done for one in loaded) / max(1, sum(one.total for one in loaded))
    ranks = ", ".join(
        f"rank {rank} {_size(one.done)} of {_size(one.total)}" for rank, one in enumerate(loaded)
    )
    return f"{share:.0%} ({ranks})"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def weights_of(model: Any) -> list[mx.array]:
    """All that it has of them on this rank."""
    return [array for _, array in tree_flatten(model.parameters())]


def evaluate(weights: Sequence[mx.array], link: Link, pace: Pace) -> Iterator[tuple[Loaded, ...]]:
    """Brings the weights into memory; yields how far all ranks are, after each piece.

    The ranks hold unequal shares, in pipelines above all, but take the same pieces: of each one's
    share the part that rank 0 tells with the piece before, in millionths.
    """
    total = sum(array.nbytes for array in weights)
    totals = [int(data) for data in link.gather_bytes(str(total).encode())]
    yield tuple(Loaded(0, theirs) for theirs in totals)
    done = at = 0
    until = pace.first(max(totals))
    while True:
        piece = []
        while at < len(weights) and (done < total * until // WHOLE or until == WHOLE):
            piece.append(weights[at])
            done += weights[at].nbytes
            at += 1
        pace.evaluate(link, piece)
        mine = [0] * (link.size + 1)
        mine[link.rank] = done // UNIT
        mine[-1] = 0 if link.rank else pace.next(until, max(totals))
        *everywhere, following = link.sum(mx.array(mine, dtype=mx.int32)).tolist()
        yield tuple(
            Loaded(theirs if until == WHOLE else min(kilobytes * UNIT, theirs), theirs)
            for kilobytes, theirs in zip(everywhere, totals, strict=True)
        )
        if until == WHOLE:
            return
        until = following
