"""Loads the draft model, on rank 0 alone, while the other ranks keep step with it.

Called on the main thread of every rank, so that all learn what stands against it; only rank 0 reads
the folder. It has to have the tokens of the model that it drafts for, number by number: a draft is
nothing but numbers. Its caches have to be of a kind that can be cut, as what was not drawn is taken
back.
"""

import logging
import statistics
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from server.engine.draft_model import DraftModel
from server.engine.kv_memory import row_bytes
from server.engine.prefix_store import can_be_cut
from server.protocol.requests import Sampling
from server.sampling.random_state import RandomState
from server.startup.agreement import Found, agree
from server.startup.loading import Unloadable, context_length, evaluate, weights_of
from server.startup.piece_pace import AllAtOnce, Pace
from server.startup.tokenizer import load as load_tokenizer
from server.startup.trunk import load_lazy
from server.startup.vocabulary import difference
from server.startup.weights_index import read_weights, total
from server.wire.link import Link

READ, DRAFTED, REPEATS = 64, 4, 5  # tokens, and how often, in which it is measured
# Of the memory for caches. There is room for half as many tokens as in the model's own caches, as
# what is kept of earlier prompts has no draft cache, but no more than this part.
ROOM_SHARE = 0.25

log = logging.getLogger(__name__)


def load_draft(
    folder: Path,
    link: Link,
    tokenizer: Any,
    vocab: int,
    trust: bool,
    tell: Callable[[str], None],
    pace: Pace | None = None,
) -> Generator[None, None, DraftModel | None]:
    """Rank 0's; None elsewhere. tokenizer, vocab: of the model that it drafts for. Gives way
    between pieces. Raises Unloadable, on every rank alike."""
    made: list[DraftModel] = []
    parts: list[mx.array] = []

    def read() -> None:
        model, config = load_lazy(folder)
        own = load_tokenizer(folder, config, trust).get_vocab()
        if differs := difference(own, tokenizer.get_vocab()):
            raise Found(f"must have the tokens of the model that it drafts for: {differs}")
        caches = make_prompt_cache(model)
        if not can_be_cut(caches):
            raise Found(
                "must be a model whose layers all keep every token: its caches cannot be cut"
            )
        logits = model(mx.zeros((1, 1), dtype=mx.int32), cache=caches).shape[-1]
        if logits <= max(own.values()):
            raise Found(
                f"must know all tokens of its tokenizer, up to {max(own.values())}: it has logits "
                f"of {logits}"
            )
        parts.extend(weights_of(model))
        made.append(
            DraftModel(
                model,
                vocab=min(logits, vocab),
                context=context_length(config),
                token_bytes=row_bytes(model).token,
                weights=sum(array.nbytes for array in parts),
            )
        )

    def measure() -> None:
        measure_draft(made[0])

    def on_rank_0(act: Callable[[], None]) -> str:
        return agree(link, act if link.rank == 0 else lambda: None, Exception)

    tell("reading the draft model")
    if wrong := on_rank_0(read):
        raise Unloadable(f"DRAFT_MODEL_DIR={str(folder)!r}: {wrong}")
    yield
    for _ in evaluate(parts, link, pace or AllAtOnce()):
        tell("loading the draft model")
        yield
    if wrong := on_rank_0(measure):
        log.error("there are no drafts of the draft model: it cannot be computed: %s", wrong)
        return None
    return made[0] if made else None


def memories_beside(folder: Path, link: Link, memories: Sequence[int | None]) -> list[int | None]:
    """What the ranks may use beside it, by which a pipeline's layers are dealt. Every rank calls
    it, and has the same."""
    own = 0
    if link.rank == 0:
        with suppress(OSError, ValueError):  # load_draft() says so
            own = total(read_weights(folder))
    taken = map(int, link.gather_bytes(b"%d" % own))
    return [memory and max(1, memory - less) for memory, less in zip(memories, taken, strict=True)]


def measure_draft(model: DraftModel) -> None:
    """How long it takes to read, and to draft. Waits: parts of a second."""
    text = [i * 7919 % 97 for i in range(READ)]
    states = [RandomState(Sampling(temperature=0), 0, n) for n in range(DRAFTED)]
    read, drafted = [], []
    for key in range(1 + REPEATS):
        model.begin([key])
        began = time.perf_counter()
        model.read(key, text)
        between = time.perf_counter()
        model.draft(key, text[:1], states)
        read.append(between - began)
        drafted.append(time.perf_counter() - between)
    model.begin([])
    # The first of each compiles what it needs.
    model.read_s = statistics.median(read[1:]) / READ
    model.draft_s = statistics.median(drafted[1:]) / DRAFTED


def room_for(caches: int, token_bytes: int, draft_token_bytes: int) -> int:
    """Bytes of rank 0's memory for caches that the draft model's may take. token_bytes: of the
    model that it drafts for."""
    part = draft_token_bytes / max(1, 2 * token_bytes + draft_token_bytes)
    return int(caches * min(part, ROOM_SHARE))
