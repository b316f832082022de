"""Which rows may be computed together is found out at each start. Models that fail the proof in one
way or the other, and what is left to them."""

import logging
from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models.cache import KVCache, RotatingKVCache

from server.engine.last_logits import LastLogits, put_heads
from server.engine.prefix_store import NO_REUSE, REUSE_CUT, REUSE_WHOLE, reuse_kind
from server.engine.rows_apart import Ways
from server.startup.batching import Wrong, prove_ways
from server.startup.piece_pace import at_once
from server.wire.link import Link
from tests.models.architectures import build
from tests.models.served import check_all
from tests.support.tiny_models import VOCAB

SHELVES = Ways(shelves=True)
PROMPTS_APART = Ways(prompts_apart=True)
ROWS_APART = Ways(prompts_apart=True, rows_apart=True)


class Changed(nn.Module):
    """A llama with something wrong with it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = build("llama")

    @property
    def layers(self):
        return self.inner.layers

    def make_cache(self):
        return [KVCache() for _ in self.layers]

    def __call__(self, tokens, cache=None):
        return self.change(self.inner(tokens, cache=cache), tokens, cache)

    def change(self, logits, tokens, cache):
        return logits


class SeesNeighbours(Changed):
    """A row's logits have a little of all the others' in them."""

    def change(self, logits, tokens, cache):
        return logits + 0.1 * mx.sum(logits, axis=0, keepdims=True)


class RunningSum(KVCache):
    """The sum of all tokens so far; of a batch, that of what looks like tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.total = mx.zeros(1)

    @classmethod
    def merge(cls, caches):
        batch = type("RunningSums", (BatchOfSums,), {})(KVCache.merge(caches))
        batch.total = mx.concatenate([c.total for c in caches])
        return batch


class BatchOfSums:
    def __init__(self, keys) -> None:
        self.keys_of_all = keys
        self.total = None

    def __getattr__(self, name):
        return getattr(self.keys_of_all, name)

    def filter(self, keep):
        self.keys_of_all.filter(keep)
        self.total = self.total[mx.array(keep)]

    def extend(self, other):
        self.keys_of_all.extend(other.keys_of_all)
        self.total = mx.concatenate([self.total, other.total])

    def extract(self, place):
        cache, inner = RunningSum(), self.keys_of_all.extract(place)
        cache.keys, cache.values, cache.offset = inner.keys, inner.values, inner.offset
        cache.total = self.total[place : place + 1]
        return cache

    @property
    def state(self):
        return [self.keys_of_all.state, self.total]


class SeesPadding(Changed):
    """What is padded in a chunk stays in a state, as in many recurrent layers."""

    def make_cache(self):
        return [RunningSum(), *super().make_cache()[1:]]

    def change(self, logits, tokens, cache):
        if cache is None:
            return logits
        sums = cache[0].total[:, None] + mx.cumsum(tokens + 1, axis=-1)
        cache[0].total = sums[:, -1]
        return logits + mx.sin(sums)[..., None] * mx.arange(VOCAB) / VOCAB


class BearsOneRow(Changed):
    def change(self, logits, tokens, cache):
        if len(tokens) > 1:
            raise ValueError("masks of one row")
        return logits


class NoHistoryInBatches(Changed):
    """Its caches are its own, and have no merge."""

    def make_cache(self):
        return [Plain() for _ in self.layers]


class Plain:
    def __init__(self) -> None:
        self.inner = KVCache()

    def __getattr__(self, name):
        if name in ("merge", "inner"):
            raise AttributeError(name)
        return getattr(self.inner, name)

    @property
    def state(self):
        return self.inner.state


class SeesCuts(Changed):
    """Logits depend on the size of the chunk that they are from."""

    def change(self, logits, tokens, cache):
        return logits + mx.sin(mx.arange(VOCAB) * tokens.shape[1])


class KeepsTooLittle(Changed):
    """Its mask shows a token more of a chunk than its caches keep for the next one."""

    def make_cache(self):
        return [RotatingKVCache(max_size=4096) for _ in self.layers]

    def __call__(self, tokens, cache=None):
        if cache is not None:
            cache[0].make_mask(tokens.shape[1], window_size=4097)
        return super().__call__(tokens, cache)


class NeverTwiceTheSame(Changed):
    calls = 0

    def change(self, logits, tokens, cache):
        type(self).calls += 1
        return logits + mx.sin(mx.arange(VOCAB) * self.calls)


def link() -> Link:
    return Link(mx.distributed.init())


def prove(model, through=None) -> LastLogits:
    last = LastLogits(model, put_heads(model))
    at_once(prove_ways(last, VOCAB, through or link(), lambda stage: None))
    return last


@pytest.mark.parametrize(
    ("model", "ways"),
    [
        (Changed, SHELVES),
        (SeesNeighbours, ROWS_APART),
        (SeesPadding, PROMPTS_APART),
        (BearsOneRow, ROWS_APART),
        (NoHistoryInBatches, ROWS_APART),
        (SeesCuts, Ways(shelves=True, prompts_apart=True, whole=True)),
        (KeepsTooLittle, Ways(shelves=True, whole=True)),
    ],
)
def test_a_model_is_computed_in_the_fastest_way_in_which_rows_do_not_see_each_other(
    model, ways, caplog
):
    with caplog.at_level(logging.INFO):
        last = prove(model())
    assert last.ways == ways
    said = [record.getMessage() for record in caplog.records]
    assert said[-1] == f"rows are computed {ways}"
    assert ways == SHELVES or len(said) > 1, "and why is said"


@pytest.mark.parametrize("model", [SeesPadding, BearsOneRow, NoHistoryInBatches])
def test_in_the_way_that_is_left_everybody_gets_what_they_get_alone(model):
    one = model()
    last = prove(one)
    last.prove(link())
    check_all(SimpleNamespace(model=one, last=last, vocab=VOCAB))


def test_a_model_that_is_right_in_no_way_is_refused():
    with pytest.raises(Wrong, match="differ"):
        prove(NeverTwiceTheSame())


def test_what_one_rank_finds_counts_for_all():
    """Or they would wait for each other."""

    class Told(Link):
        said = 0

        def gather_bytes(self, data):
            self.said += data == b'""'
            wrong = data == b'""' and self.said == 2
            return [data, b'"layer 7 has no mask"'] if wrong else [data]

    one = Told(mx.distributed.init())
    assert prove(Changed(), one).ways == Ways(shelves=True, prompts_apart=True)


def test_a_failing_machine_is_not_taken_for_a_model_that_bears_no_batch():
    class Lost(Changed):
        def change(self, logits, tokens, cache):
            if len(tokens) > 1:
                raise RuntimeError("[ring] connection to a peer was lost")
            return logits

    with pytest.raises(RuntimeError, match="peer was lost"):
        prove(Lost())


def test_layers_that_fill_no_cache_are_left_out_of_batches():
    last = prove(build("nemotron-nas"))
    assert last.ways == Ways(shelves=True, unused=last.ways.unused) and last.ways.unused
    assert reuse_kind(last.model, last.ways) == REUSE_CUT


def test_what_may_be_reused_depends_on_how_rows_are_computed():
    chunked = build("llama4")
    assert reuse_kind(chunked) == NO_REUSE
    assert reuse_kind(chunked, ROWS_APART) == REUSE_WHOLE
    assert reuse_kind(build("llama4_text"), Ways(whole=True)) == NO_REUSE
