"""Which rows may be computed together: found out at each start, on the very model.

Runs on the main thread of every rank, once the weights are there. Prompts of different length, a
newcomer, some that leave, and one that goes on from a kept prefix run through the engine; what it
computes for each must be what the model computes for that one alone. Where it is not, the engine
falls back: prompts one at a time, then attention a shelf at a time, then mlx-lm's caches of a
batch, in which all rows are as long as the longest, then a row at a time. Nothing here knows
architectures by name.

Logits are compared. They may differ by no more than some times what it makes to cut a prompt at
another place, which is rounding. So nobody's likeliest token can change, but where two are as good
as equal.
"""

import json
import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

from server.engine.attention import put_attention
from server.engine.batch_caches import BatchCaches, ChunkCaches
from server.engine.by_shelf import put_by_shelf
from server.engine.last_logits import LastLogits
from server.engine.prefix_store import NO_REUSE
from server.engine.quantised_kv import CANNOT, Quantised, fits
from server.engine.rows_apart import TOGETHER, Ways, is_unused
from server.engine.shelved_kv import is_latent
from server.startup.agreement import Found, agree, agree_by_pieces
from server.startup.batching_script import CHUNK, SLACK, USED, Script, far, rotating
from server.wire.link import Link

STAGE = "proving batches"
# How far logits may be from those of the model alone, as a part of the largest: so many times what
# rounding makes of them, within these bounds. Weights of 32 bits leave nothing to rounding.
NOISES, FAR_LEAST, FAR_MOST = 5, 0.005, 0.3

# Tokens from which on they are while it is proven: so some rows get there as they decode.
BITS_FROM = 8

# The best first. The last one computes what mlx-lm does for a prompt alone.
# Keys and values in fewer bits (KV_BITS) go with shelves, and with rows that are computed apart.
ALL_WAYS = (
    Ways(shelves=True),
    Ways(shelves=True, prompts_apart=True),
    Ways(shelves=True, by_shelf=True),
    TOGETHER,
    Ways(prompts_apart=True),
    Ways(prompts_apart=True, rows_apart=True),
)

log = logging.getLogger(__name__)


class Wrong(Found):
    """What a way, or the model itself, does wrong."""


def prove_ways(
    last: LastLogits,
    vocab: int,
    link: Link,
    progress: Callable[[str], None],
    bits: int = 0,
    bits_from: int = 0,
) -> Generator[None, None, Ways]:
    """The fastest right way, which is last.ways from now on. bits, bits_from: as KV_BITS and
    KV_BITS_FROM have them; 0: all. Every rank calls it. Gives way after each pass of the model,
    none of which has more tokens than a short chunk of prompts. Raises Wrong, on every rank, where
    there is none."""
    progress(STAGE)
    script = Script.of(last.model, vocab, link)
    unused, windows, latent = _look_at_layers(last.model)
    latent = script.of_any(latent)
    most = FAR_LEAST if _is_exact(last.model) else FAR_MOST
    whole, noise = yield from _look_at_cuts(script, windows, most, link)
    if whole:
        log.warning("what this model answers depends on where its prompts are cut: %s", whole)
    put_attention(last.model)
    quantised, unfit = None, ""
    if bits:
        unfit = "its answer depends on where a prompt is cut" if whole else ""
        quantised, unfit = (None, unfit) if unfit else _look_at_bits(last.model, bits, link)
    if quantised is not None:
        _, fewer_noise = yield from _look_at_cuts(script, windows, FAR_MOST, link, quantised)
    alone = {one: _Alone(script, CHUNK if whole else None, one) for one in (None, quantised)}
    limits = {None: min(most, max(FAR_LEAST, NOISES * noise))}
    if quantised is not None:
        limits[quantised] = min(FAR_MOST, max(FAR_LEAST, NOISES * fewer_noise))
    grows = script.of_any(bool(list(_growing(make_prompt_cache(last.model)))))
    found = partial(replace, whole=bool(whole), latent=latent, unused=unused)
    for way, fewer in _in_order(quantised):
        if not (grows or way.apart):
            continue  # there is nothing that could be longer than a row's own
        put_by_shelf(last.model, way.by_shelf)
        last.ways = found(way, quantised=fewer)
        trying = _try(last, script, link, alone[fewer], limits[fewer], progress)
        wrong = yield from agree_by_pieces(link, trying)
        if not wrong:
            if fewer is not None:
                last.ways = replace(last.ways, quantised=replace(fewer, start=bits_from))
            elif bits:
                last.ways = replace(last.ways, unfit=unfit)
                log.warning("KV_BITS=%d: keys and values are whole: %s", bits, unfit)
            log.info("rows are computed %s", last.ways)
            return last.ways
        if fewer is not None:
            unfit = f"rows cannot be computed {last.ways} with them: {wrong}"
        else:
            log.warning("rows of this model cannot be computed %s: %s", last.ways, wrong)
    raise Wrong(f"its rows differ in this server from what it computes alone: {wrong}")


def _in_order(quantised: Quantised | None) -> Iterator[tuple[Ways, Quantised | None]]:
    """All ways, and before them those with keys and values in fewer bits that are as fast."""
    if quantised is not None:
        yield from ((way, quantised) for way in ALL_WAYS if way.shelves)
    for way in ALL_WAYS:
        if way.rows_apart and quantised is not None:
            yield way, quantised
        yield way, None


def _look_at_bits(model: Any, bits: int, link: Link) -> tuple[Quantised | None, str]:
    """Which of its layers' keys and values can be in fewer bits, or why none. In a pipeline some
    ranks may have none of them, and what one cannot do all leave."""
    layers: frozenset[int] = frozenset()
    why = ""

    def look() -> None:
        nonlocal layers, why
        layers, why = fits(model, bits)

    failed = agree(link, look)
    told = link.gather_bytes(json.dumps([len(layers), why]).encode())
    ranks = [json.loads(one) for one in told]
    failed = failed or next((said for _, said in ranks if said.startswith(CANNOT)), "")
    if failed or not any(count for count, _ in ranks):
        return None, failed or ranks[0][1]
    return Quantised(bits, BITS_FROM, layers), ""


class _Alone:
    """What the model computes for one prompt alone, by uid: once."""

    def __init__(self, script: Script, chunk: int | None, quantised: Quantised | None) -> None:
        self._script, self._chunk, self._quantised = script, chunk, quantised
        self._found: dict[tuple[int, bool], list[mx.array]] = {}

    def __call__(self, uid: int, begun: bool) -> Generator[None, None, list[mx.array]]:
        key = uid, begun
        if key not in self._found:
            self._found[key] = yield from self._script.alone(*key, self._chunk, self._quantised)
        return self._found[key]


def _try(
    last: LastLogits,
    script: Script,
    link: Link,
    alone: _Alone,
    limit: float,
    progress: Callable[[str], None],
) -> Iterator[None]:
    """Whether all get what they get alone. Raises Wrong, or what the model raises."""
    progress(STAGE)
    if not last.ways.rows_apart:
        wrong = agree(link, partial(_build, last.model, last.ways))
        if wrong:
            raise Wrong(wrong)
    reuse = script.reuse(last.ways)
    logits = yield from script.play(last, reuse)
    for uid, answer in script.answers.items():
        progress(STAGE)
        goes_on = uid == 1 or (uid == 5 and reuse != NO_REUSE)
        rights = yield from alone(uid, goes_on)
        for place, right in enumerate(rights):
            off = far(logits[uid, place], right)
            # Written so that NaN fails too.
            if not off <= limit:
                raise Wrong(
                    f"token {place + 1} of {len(answer)} after a prompt of "
                    f"{len(script.prompts[uid])} is off by {off:.2g} of the largest logit "
                    f"(at most {limit:.2g})"
                )


def _build(model: Any, ways: Ways) -> None:
    """A batch with a newcomer and one that leaves, as a graph that is never computed. In a pipeline
    the ranks have other layers each, and one that failed in a step would leave others waiting."""
    rows = [make_prompt_cache(model) for _ in range(3)]
    if ways.prompts_apart:
        for one, length in zip(rows, (3, 2, 1), strict=True):
            model(mx.ones((1, length), dtype=mx.int32), cache=one)
    else:
        chunk = ChunkCaches(rows[:2], [3, 1], ways)
        model(mx.array([[1, 2, 3], [4, 0, 0]]), cache=chunk.layers)
        chunk.finish(lazy=True)
        model(mx.array([[5]]), cache=rows[2])
    batch = BatchCaches(ways, SLACK)
    batch.join(rows[:2])
    batch.join(rows[2:])
    batch.step(lambda layers: model(mx.array([[1], [2], [3]]), cache=layers), [1] * 3)
    batch.keep([0, 2])
    batch.step(lambda layers: model(mx.array([[1], [2]]), cache=layers), [1] * 2)


def _look_at_layers(model: Any) -> tuple[frozenset[int], list[tuple[int, int]], bool]:
    """Which layers have a cache and do not fill it; for each that keeps a window, the tokens that
    it sees within a chunk, and those that it keeps; and whether any has a latent. Nothing is
    computed for that."""
    caches = make_prompt_cache(model)
    windows: list[tuple[int, int]] = []

    def note(kept: RotatingKVCache, make_mask: Callable, n: int, **named: Any):
        windows.append((named.get("window_size") or kept.max_size, kept.max_size))
        return make_mask(n, **named)

    for kept in rotating(caches):
        kept.make_mask = partial(note, kept, kept.make_mask)
    model(mx.array([[1, 2, 3]]), cache=caches)
    unused = frozenset(i for i, layer in enumerate(caches) if is_unused(layer))
    latent = any(is_latent(*part.state[:2]) for part in _growing(caches) if not part.empty())
    return unused, windows, latent


def _growing(caches: Iterable[Any]) -> Iterator[KVCache]:
    """Those of the layers' caches, or parts of them, that can lie apart."""
    for one in caches:
        if type(one) is KVCache:
            yield one
        yield from _growing(getattr(one, "caches", ()))


def _is_exact(model: Any) -> bool:
    types = {array.dtype for _, array in tree_flatten(model.parameters())}
    return types == {mx.float32}


def _look_at_cuts(
    script: Script,
    windows: list[tuple[int, int]],
    most: float,
    link: Link,
    quantised: Quantised | None = None,
) -> Generator[None, None, tuple[str, float]]:
    """What speaks against cutting prompts anywhere, or ""; and how far logits come apart by it."""
    text, places = script.prompts[1] + script.answers[1][:-1], len(script.answers[1])
    straight = yield from script.alone(1, True, quantised=quantised)
    cut = yield from script.in_pieces(
        [text[:USED], text[USED:]], places, begun=True, quantised=quantised
    )
    noise = max(far(one, other) for one, other in zip(cut, straight, strict=True))

    def judge() -> None:
        # Most windows are longer than the prompts here, so they are looked at by themselves.
        for seen, kept in windows:
            if seen > kept:
                raise Wrong(f"its layers see {seen} tokens within a chunk, and keep {kept}")
        if not noise <= most:
            raise Wrong(f"logits change by {noise:.2g} of the largest")

    return agree(link, judge), noise
