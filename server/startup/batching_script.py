"""What is computed to see whether rows bear company: a script of prompts, played on an engine, and
by the model alone.

Used by batching.py, on the main thread of every rank. Tokens are dictated, so that every rank and
every way of computing has the same texts, and only logits have to be compared.
"""

import copy
import itertools
import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    KVCache,
    RotatingKVCache,
    make_prompt_cache,
)

from server.engine.engine import Engine
from server.engine.last_logits import LastLogits
from server.engine.prefix_store import REUSE_CUT, reuse_kind
from server.engine.quantised_kv import Quantised, next_caches
from server.engine.rows_apart import Ways
from server.sampling.random_state import RandomState
from server.wire.link import Link
from server.wire.mailbox import Header
from server.wire.messages import Draw, Submit

# By uid, which count from 1: three prompts at once, then a newcomer of one token, while the first
# has come half its way, then one that goes on from a kept part of it. They leave one after another.
LENGTHS = (45, 7, 2, 1, 29)  # tokens of prompts
ANSWERS = (7, 4, 3, 4, 3)  # tokens
SLACK = 6  # tokens: so some of them share arrays, and others do not
CHUNK = 32  # tokens: the first prompt takes several, with shorter ones beside it
KEPT, USED = 18, 16  # tokens of a prompt that are kept; and used, where that may be cut
BEGUN, ENTRY = 1, 2  # entries of prefixes: what the first prompt goes on from, and what it leaves
# The first prompt goes on from a long text where there are layers that treat long ones otherwise:
# beyond their windows, or where they choose what they look at.
LONG, LONG_MOST = 2304, 4608  # tokens


class Dictates:
    """A chooser that takes what the script says, and keeps the logits by uid and place."""

    def __init__(self, leads: bool, answers: dict[int, list[int]]) -> None:
        self._leads = leads
        self._answers = answers
        self.logits: dict[tuple[int, int], mx.array] = {}

    def row(self, uid: int, draw: Draw | None) -> "Scripted":
        return Scripted(uid, self._answers[uid])

    def header(self) -> list[int]:
        return [0] * Header.SIZE

    def propose(self, logits: mx.array, rows: list["Scripted"], inputs: mx.array, mine: list[int]):
        tokens = []
        for one, row in zip(logits, rows, strict=True):
            self.logits[row.uid, row.drawn] = one
            # A step may be one too many: it is computed before a row's end is known.
            tokens.append(row.tokens[min(row.drawn, len(row.tokens) - 1)])
        chosen = mx.array(tokens, dtype=mx.int32) * self._leads
        return mx.depends([chosen], [logits])[0], [logits]

    def score(self, uid: int, logits: mx.array, tokens: list[int]) -> list[mx.array]:
        return [logits]


class Scripted(RandomState):
    """A row whose tokens are known before; rank 0 says them."""

    def __init__(self, uid: int, tokens: Sequence[int]) -> None:
        told = RandomState.told(None)
        super().__init__(told.sampling, told.seed)
        self.uid, self.tokens = uid, tokens


@dataclass(frozen=True)
class Script:
    """Prompts and answers by uid. begun: the caches of what comes before the first prompt, one a
    layer, and before: its tokens, 0 for none. In a pipeline ranks have other layers each, so what
    these allow is asked of all."""

    model: Any
    link: Link
    prompts: dict[int, list[int]]
    answers: dict[int, list[int]]
    begun: list
    before: int

    @classmethod
    def of(cls, model: Any, vocab: int, link: Link) -> "Script":
        ids = (i * 7919 % vocab for i in itertools.count(1))
        prompts, answers = (
            {uid: list(itertools.islice(ids, length)) for uid, length in enumerate(lengths, 1)}
            for lengths in (LENGTHS, ANSWERS)
        )
        prompts[5][:USED] = prompts[1][:USED]
        begun, before = make_prompt_cache(model), 0
        windows = [cache.max_size + USED for cache in rotating(begun)]
        plain = all(type(cache) is KVCache for cache in begun)
        long = max([0 if plain else LONG, *(n for n in windows if n <= LONG_MOST)])
        ranks = _of_all(link, [long, int(all(map(_stretches, begun)))])
        if all(can for _, can in ranks) and any(length for length, _ in ranks):
            before = max(length for length, _ in ranks)
            mx.eval(model(mx.array([prompts[1][:USED]]), cache=begun))
            for cache in begun:
                _stretch(cache, before)
            mx.eval([cache.state for cache in begun])
        return cls(model, link, prompts, answers, begun, before)

    def reuse(self, ways: Ways) -> int:
        """What the ranks' caches allow, as reuse_kind."""
        return min(kind for (kind,) in _of_all(self.link, [reuse_kind(self.model, ways)]))

    def of_any(self, mine: bool) -> bool:
        """Whether it is so on any rank."""
        return any(said for (said,) in _of_all(self.link, [int(mine)]))

    def alone(
        self,
        uid: int,
        begun: bool,
        chunk: int | None = None,
        quantised: Quantised | None = None,
    ) -> Generator[None, None, list[mx.array]]:
        """The logits that the answer's tokens are chosen from, by the model itself. begun: the
        prompt goes on from the text before. chunk: None for the prompt at once; else it is computed
        in chunks, and its last token by itself."""
        prompt, answer = self.prompts[uid], self.answers[uid]
        if chunk is None and uid != 1:
            # Where texts may be cut anywhere, which the first one shows, one pass says all.
            return (
                yield from self.in_pieces(
                    [prompt + answer[:-1]], len(answer), begun=begun, quantised=quantised
                )
            )
        pieces = [prompt]
        if chunk is not None:
            cuts = [*range(0, len(prompt) - 1, chunk), len(prompt) - 1, len(prompt)]
            pieces = [prompt[a:b] for a, b in itertools.pairwise(cuts)]
        pieces += [[token] for token in answer[:-1]]
        return (yield from self.in_pieces(pieces, len(answer), begun=begun, quantised=quantised))

    def in_pieces(
        self,
        pieces: list[list[int]],
        places: int,
        *,
        begun: bool,
        quantised: Quantised | None = None,
    ) -> Generator[None, None, list[mx.array]]:
        """The logits of the last places of a text. Gives way after each piece."""
        cache = copy.deepcopy(self.begun) if begun else make_prompt_cache(self.model)
        found: list[mx.array] = []
        if quantised is not None:
            # Cut there, too, where the caches change.
            at = max(0, quantised.start - (self.before if begun else 0))
            text = list(itertools.chain(*pieces))
            ends = sorted({0, at, *itertools.accumulate(map(len, pieces))})
            pieces = [text[a:b] for a, b in itertools.pairwise(ends) if a < len(text)]
        for piece in pieces:
            cache = next_caches(quantised, cache)
            found += list(self.model(mx.array([piece]), cache=cache)[0, -places:])
            mx.eval(found, [layer.state for layer in cache])
            yield
        return found[-places:]

    def play(
        self, last: LastLogits, reuse: int
    ) -> Generator[None, None, dict[tuple[int, int], mx.array]]:
        """All of it on an engine: logits by uid and place. Gives way after each turn of it."""
        chooser = Dictates(self.link.rank == 0, self.answers)
        engine = Engine(
            last, self.link, chooser, max_batch=8, prefill_step=CHUNK, eos=[], slack=SLACK
        )
        before = [0] * self.before

        def submit(uid: int, prompt: list[int], **more: Any) -> None:
            tokens = len(self.answers[uid])
            engine.submit(Submit(uid, prompt, tokens, ignore_eos=True, **more))

        if before:
            engine.prefixes.put(BEGUN, copy.deepcopy(self.begun), self.before)
        kept = self.before + (KEPT if reuse == REUSE_CUT else USED)
        submit(
            1, before + self.prompts[1],
            reuse=(BEGUN, self.before) if before else (), keep=((kept, ENTRY),) if reuse else (),
        )  # fmt: skip
        submit(2, self.prompts[2])
        submit(3, self.prompts[3])
        yield from _step(engine)
        submit(4, self.prompts[4])  # beside a prompt that is begun
        while (1, 0) not in chooser.logits:
            yield from _step(engine)
        if reuse:
            submit(5, before + self.prompts[5], reuse=(ENTRY, self.before + USED))
        else:
            submit(5, self.prompts[5])
        while engine.busy:
            yield from _step(engine)
        return chooser.logits


def _of_all(link: Link, numbers: list[int]) -> list[list[int]]:
    """Each rank's."""
    return [json.loads(data) for data in link.gather_bytes(json.dumps(numbers).encode())]


def _step(engine: Engine) -> Iterator[None]:
    """One turn. Raises what the engine would end requests for."""
    for _, error in engine.step().refused:
        raise error
    yield


def rotating(caches: Sequence[Any]) -> Iterator[RotatingKVCache]:
    """Those among the layers' caches that keep a window."""
    for cache in caches:
        if isinstance(cache, RotatingKVCache):
            yield cache
        yield from rotating(getattr(cache, "caches", ()))


def _stretches(cache: Any) -> bool:
    """Whether _stretch knows what it is: layers that do not agree on what was before could not be
    computed."""
    if type(cache) is CacheList:
        return all(map(_stretches, cache.caches))
    return type(cache) in (KVCache, RotatingKVCache, ArraysCache)


def _stretch(cache: Any, tokens: int) -> None:
    """Makes one layer's cache as that of a longer text: what is in it again and again, each time a
    little different, or a layer might choose any of it. Others than keys and values stay."""
    for part in getattr(cache, "caches", ()):
        _stretch(part, tokens)
    if type(cache) not in (KVCache, RotatingKVCache) or cache.empty():
        return
    held, length = cache.size(), tokens
    if type(cache) is RotatingKVCache:
        length = min(tokens, cache.max_size)
    again = -(-length // held)
    keys, values = (
        _varied(mx.tile(array[..., :held, :], (1, 1, again, 1))[..., :length, :])
        for array in (cache.keys, cache.values)
    )
    if type(cache) is RotatingKVCache:
        cache.state = (keys, values, tokens, cache.keep, cache.max_size, length)
    else:
        cache.keys, cache.values, cache.offset = keys, values, tokens


def _varied(array: mx.array) -> mx.array:
    if not array.size:  # as the values of layers that only choose
        return array
    noise = mx.random.normal(array.shape, key=mx.random.key(array.size)) * mx.std(array)
    return array + noise.astype(array.dtype)


def far(logits: mx.array, right: mx.array) -> float:
    """The largest difference, as a part of the largest logit from their middle. Places that are
    shut (minus infinity) in both are left out."""
    right, logits = right.astype(mx.float32), logits.astype(mx.float32)
    is_open = mx.isfinite(right)
    middle = mx.sum(mx.where(is_open, right, 0)) / mx.sum(is_open)
    size = mx.max(mx.where(is_open, mx.abs(right - middle), 0))
    apart = mx.where(right == logits, 0, mx.abs(logits - right))
    return (mx.max(apart) / size).item()
