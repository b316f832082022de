"""Inputs that are embedded: the right hidden states, beside prompts, rows and each other."""

import mlx.core as mx
import numpy as np
import pytest

from server.engine.engine import Engine
from server.protocol.events import Embedded, Token
from server.sampling.choosers import Follows
from server.startup.loading import load_shard
from server.wire.link import Link
from server.wire.mailbox import Header
from server.wire.messages import Submit, decode, encode
from tests.support.embedder import plain_hidden, tiny_embedder

FULL = 64
TEXTS = {uid: [(uid * 37 + i * i) % 250 for i in range(length)] for uid, length in (
    (1, 1), (2, 5), (3, 5), (4, 40), (5, 200), (6, 7),
)}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_embedder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def shard(folder):
    return load_shard(folder, "tensor", Link(mx.distributed.init()), None, lambda stage: None)


def an_engine(shard) -> Engine:
    link = Link(mx.distributed.init())
    return Engine(shard.last, link, Follows(), max_batch=8, prefill_step=FULL, eos=[])


def embed(uid: int, prompt: list[int]) -> Submit:
    return Submit(uid, prompt, 1, embed=True)


def run(engine: Engine, most: int = 200) -> tuple[dict[int, np.ndarray], dict[int, list[int]]]:
    """Vectors and tokens by uid, when nothing is left to do."""
    vectors, tokens = {}, {}
    while engine.busy:
        for uid, event in engine.step().events:
            if isinstance(event, Embedded):
                assert uid not in vectors
                vectors[uid] = event.vector
            elif isinstance(event, Token):
                tokens.setdefault(uid, []).append(event.id)
        most -= 1
        assert most
    return vectors, tokens


def test_its_kind_is_told_by_its_folder(shard):
    assert shard.embeddings.size == 64 and shard.embeddings.trained
    assert not shard.embeddings.why_not


def test_they_are_those_of_a_plain_computation(shard, folder):
    engine = an_engine(shard)
    for uid, prompt in TEXTS.items():
        engine.submit(embed(uid, prompt))
    vectors, tokens = run(engine)
    assert not tokens and not engine.rows and set(vectors) == set(TEXTS)
    for uid, prompt in TEXTS.items():
        assert vectors[uid].dtype == np.float32
        right = plain_hidden(folder, prompt)
        np.testing.assert_allclose(vectors[uid], right, atol=2e-4, err_msg=str(uid))


def test_beside_rows_and_prompts_both_get_what_they_get_alone(shard, folder):
    prompts = {11: [5, 6, 7], 12: [9] * 30, 13: [4] * 100}
    engine = an_engine(shard)
    for uid, prompt in prompts.items():
        engine.submit(Submit(uid, prompt, 20))
    _, alone = run(engine)
    engine.submit(Submit(11, prompts[11], 20))
    while not engine.decoding.live:
        first = engine.step()
    engine.steer(Header(chunk=16))
    for uid, prompt in TEXTS.items():
        engine.submit(embed(uid, prompt))
    for uid in (12, 13):
        engine.submit(Submit(uid, prompts[uid], 20))
    vectors, tokens = run(engine)
    tokens[11] = [e.id for _, e in first.events if isinstance(e, Token)] + tokens[11]
    assert {uid: len(some) for uid, some in tokens.items()} == {11: 20, 12: 20, 13: 20}
    assert tokens[11] == alone[11] and tokens[12] == alone[12] and tokens[13] == alone[13]
    for uid, prompt in TEXTS.items():
        np.testing.assert_allclose(vectors[uid], plain_hidden(folder, prompt), atol=2e-4)


def test_many_of_them_do_not_make_the_pauses_of_a_stream_longer(shard):
    engine = an_engine(shard)
    engine.submit(Submit(11, [5], 1000))
    engine.step()
    engine.steer(Header(chunk=16))
    for uid in range(20, 36):
        engine.submit(embed(uid, [uid] * 100))
    assert engine.step().computed <= 16 * 1.25


def test_one_that_is_dropped_leaves_nothing_and_the_others_go_on(shard, folder):
    engine = an_engine(shard)
    for uid in (5, 4, 6):
        engine.submit(embed(uid, TEXTS[uid]))
    engine.step()
    assert 5 in engine.rows
    engine.cancel(5)
    engine.submit(embed(3, TEXTS[3]))
    vectors, _ = run(engine)
    assert 5 not in vectors and 3 in vectors and not engine.rows


def test_a_message_says_it_on_every_rank():
    messages = [embed(3, [1, 2, 3]), Submit(4, [1], 5)]
    assert decode(encode(messages)) == messages
