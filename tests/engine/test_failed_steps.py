"""A step that fails because of data that every rank has ends that batch's requests and no others,
and not the ranks; what one rank alone can see still does."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import mlx.core as mx
import pytest
from mlx_lm.models.cache import BatchKVCache

from server.engine.batch_caches import BatchCaches
from server.engine.engine import Engine
from server.engine.rows_apart import TOGETHER
from server.engine.shelved_kv import ShelvedKV, SideBySide
from server.protocol.events import Failed, Token
from server.sampling.choosers import Follows
from server.startup.loading import load_shard
from server.wire.link import Link
from server.wire.messages import Submit
from tests.engine.test_shared_failures import assert_empty
from tests.support.desk import Desk, choices, ticket
from tests.support.tiny_models import tiny_llama

SHORT, OTHER = list(range(40, 60)), list(range(60, 75))
LONG = [n % 90 + 33 for n in range(300)]


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    folder = tiny_llama(tmp_path_factory.mktemp("model") / "tiny", context=4096)
    return load_shard(folder, "tensor", Link(mx.distributed.init()), None, lambda stage: None)


class Fails:
    """A model that raises once where told to: at shapes of tokens that `at` takes."""

    def __init__(self, model, at, error) -> None:
        self._model, self._at, self.error, self.raised = model, at, error, 0

    def __call__(self, tokens, cache=None):
        if not self.raised and self._at(tokens.shape):
            self.raised += 1
            # As architectures do: some layers have gone on, and others not.
            for layer in cache[:1]:
                size = (tokens.shape[0], 4, tokens.shape[1], 16)
                layer.update_and_fetch(mx.zeros(size), mx.zeros(size))
            raise self.error
        return self._model(tokens, cache=cache)

    def __getattr__(self, name):
        return getattr(self._model, name)


def desk_that_fails(shard, at, error=None, late=False) -> tuple[Desk, Fails]:
    desk = Desk(shard)
    model = Fails(shard.model, at, error or ValueError("shapes that do not match"))
    desk.engine.decoding.model = model
    prompts = desk.engine.prompts.model
    own = type(prompts)(model, prompts._heads)  # not the others' to have
    own.ways, own._narrow = prompts.ways, prompts._narrow
    desk.engine.prompts.model = own
    desk.engine._model = model
    if late:
        desk.scheduler.late = lambda: True
    return desk, model


def one_row(shape):
    return shape == (1, 1)


def two_rows(shape):
    return shape == (2, 1)


def chunk(shape):
    return shape[1] > 1


def of_one_step(shape):
    return shape[1] == 1


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("at", [one_row, two_rows, of_one_step])
def test_a_decode_step_that_fails_ends_the_decoding_requests(shard, late, at):
    desk, model = desk_that_fails(shard, at, late=late)
    decoding = [ticket(prompt=SHORT, max_tokens=20)]
    if at is two_rows:
        decoding.append(ticket(prompt=SHORT, max_tokens=20))
    waiting = ticket(prompt=LONG, max_tokens=6)  # takes several chunks
    alone = Desk(shard).run(ticket(prompt=LONG, max_tokens=6))
    *failed, right = desk.run(*decoding, waiting)
    assert model.raised == 1
    assert all(isinstance(end, Failed) and end.error.status == 500 for end in failed)
    assert all("do not match" in end.error.message for end in failed)
    assert [right] == alone
    assert_empty(desk.engine)
    assert desk.line.held() == 0 and not desk.scheduler._running
    assert desk.run(ticket(prompt=LONG, max_tokens=6)) == alone, "afterwards"


def test_a_chunk_that_fails_ends_its_prompts_and_no_decoding_rows(shard):
    desk, model = desk_that_fails(shard, lambda shape: shape[0] == 2 and shape[1] > 1)
    first, *others = (ticket(prompt=p, max_tokens=30) for p in (SHORT, OTHER, OTHER))
    alone = Desk(shard).run(ticket(prompt=SHORT, max_tokens=30))

    def join(turn: int) -> None:
        if turn == 3:
            desk.line.admit(others)

    assert desk.run(first, act=join) == alone
    assert model.raised == 1
    for one in others:
        events = [one.events.get_nowait()[1] for _ in range(one.events.qsize())]
        assert isinstance(events[-1], Failed) and not [e for e in events if isinstance(e, Token)]
    assert_empty(desk.engine)


@pytest.mark.parametrize("count", [1, 3])
def test_choices_of_a_prompt_that_fails_fail_together(shard, count):
    desk, _ = desk_that_fails(shard, chunk)
    failed = desk.run(choices(count, prompt=LONG))
    assert len(failed) == count and all(isinstance(end, Failed) for end in failed)
    assert_empty(desk.engine)


def test_a_prompt_whose_log_probabilities_fail_ends_alone(shard):
    desk, model = desk_that_fails(shard, lambda shape: shape == (1, 19))
    scored = ticket(prompt=LONG[:20], common={"logprobs": 1}, score_prompt=True)
    failed, right = desk.run(scored, ticket(prompt=OTHER))
    assert model.raised == 1 and isinstance(failed, Failed)
    assert right == Desk(shard).run(ticket(prompt=OTHER))[0]
    assert_empty(desk.engine)


@pytest.mark.parametrize(
    ("owner", "what"),
    [
        (BatchCaches, "join"),
        (BatchCaches, "keep"),
        (ShelvedKV, "move"),
        (SideBySide, "begin"),
        (BatchKVCache, "extend"),
        (BatchKVCache, "filter"),
        (BatchKVCache, "merge"),
    ],
)
def test_caches_that_do_not_go_together_end_what_is_in_the_batch(shard, monkeypatch, owner, what):
    """Newcomers join, rows leave, prompts are put beside one another: each can fail in a cache."""
    last = copy.copy(shard.last)
    if owner is BatchKVCache:
        last.ways = TOGETHER
    desk = Desk(replace(shard, last=last))
    left = [ValueError("caches unlike")]
    right = getattr(owner, what)

    def fail(*arguments, **named):
        if left and (what != "merge" or len(arguments[-1]) > 1):
            raise left.pop()
        return right(*arguments, **named)

    monkeypatch.setattr(owner, what, fail)
    other = LONG if what in ("extend", "join") else OTHER
    ends = desk.run(*(ticket(prompt=p, max_tokens=n) for p, n in ((SHORT, 9), (other, 4))))
    assert not left and any(isinstance(end, Failed) for end in ends)
    assert_empty(desk.engine)
    assert desk.run(ticket(prompt=SHORT)) == Desk(shard).run(ticket(prompt=SHORT))


@pytest.mark.parametrize("at", [chunk, of_one_step])
def test_what_one_rank_alone_can_see_in_a_step_ends_it(shard, at):
    desk, _ = desk_that_fails(shard, at, RuntimeError("[metal::malloc] Resource limit exceeded."))
    with pytest.raises(RuntimeError, match="malloc"):
        desk.run(ticket(prompt=SHORT))


@pytest.mark.parametrize("at", [chunk, of_one_step])
def test_in_a_pipeline_the_others_do_not_see_it_so_the_rank_ends(shard, at):
    desk, _ = desk_that_fails(shard, at)
    desk.engine._alike = False
    with pytest.raises(ValueError, match="do not match"):
        desk.run(ticket(prompt=SHORT))


@pytest.mark.parametrize("at", [chunk, one_row])
def test_a_worker_gives_up_the_same_as_rank_0(shard, at):
    link = Link(mx.distributed.init())
    told = {}
    for name in ("rank 0", "worker"):
        model = Fails(shard.model, at, ValueError("shapes"))
        last = type(shard.last)(model, shard.last._heads)
        engine = Engine(last, link, Follows(), max_batch=4, prefill_step=64, eos=[])
        engine.submit(Submit(1, SHORT, 6))
        engine.submit(Submit(2, LONG, 6))
        turns = []
        while engine.busy:
            turns.append(engine.step())
        told[name] = [
            ([uid for uid, _ in one.refused], [uid for uid, _ in one.events], one.header is None)
            for one in turns
        ]
        assert sum(len(one.refused) for one in turns)
    assert told["rank 0"] == told["worker"]


def test_the_header_that_came_with_a_failed_step_is_read(shard):
    """Rank 0's news are in it; ranks that read no news would part."""
    engine = Engine(
        SimpleNamespace(model=Fails(shard.model, one_row, ValueError("x")), ways=shard.last.ways,
                        alike=True),
        Link(mx.distributed.init()), Follows(), max_batch=4, prefill_step=64, eos=[],
    )  # fmt: skip
    engine.prompts.model = shard.last
    engine.submit(Submit(1, SHORT, 6))
    turn = engine.step()
    while not turn.refused:
        turn = engine.step()
    assert turn.header is not None
    assert [uid for uid, _ in turn.refused] == [1] and not engine.busy
