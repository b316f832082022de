"""Who is prefilled when: long prompts and short ones, alone and beside rows that decode."""

import mlx.core as mx
import pytest

from server.engine.engine import Engine
from server.protocol.events import Prefilled, Token
from server.sampling.choosers import Follows
from server.startup.loading import load_shard
from server.wire.link import Link
from server.wire.mailbox import Header
from server.wire.messages import Submit
from tests.support.tiny_models import tiny_llama

FULL = 64


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    folder = tiny_llama(tmp_path_factory.mktemp("model") / "tiny", context=4096)
    return load_shard(folder, "tensor", Link(mx.distributed.init()), None, lambda stage: None)


class Turns:
    """An engine that is stepped by hand. A lone worker's tokens are all 0: only order counts."""

    def __init__(self, shard) -> None:
        link = Link(mx.distributed.init())
        self.engine = Engine(shard.last, link, Follows(), max_batch=16, prefill_step=FULL, eos=[])
        self.done: dict[int, int] = {}  # tokens of its prompt that each request has behind it
        self.first: dict[int, int] = {}  # the turn in which each had its first token
        self.computed: list[int] = []

    def submit(self, uid: int, tokens: int, **fields) -> None:
        self.engine.submit(Submit(uid, [1 + uid] * tokens, 1000, **fields))

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            turn = self.engine.step()
            self.computed.append(turn.computed)
            for uid, event in turn.events:
                if isinstance(event, Prefilled):
                    self.done[uid] = event.done
                elif isinstance(event, Token):
                    self.first.setdefault(uid, len(self.computed))


def beside_one_that_decodes(shard, pace: int) -> Turns:
    """Three turns in: request 1 decodes, and bears chunks of `pace` tokens."""
    turns = Turns(shard)
    turns.submit(1, 2)
    turns.step(3)
    turns.engine.steer(Header(chunk=pace))
    return turns


def test_full_chunks_while_nothing_decodes(shard):
    turns = Turns(shard)
    turns.engine.steer(Header(chunk=16))
    turns.submit(1, 200)
    turns.step(4)
    assert turns.computed == [64, 64, 64, 8]


def test_chunks_keep_to_the_pace_while_others_decode(shard):
    turns = beside_one_that_decodes(shard, 20)
    turns.submit(2, 100)
    turns.step(6)
    assert turns.computed[3:] == [20, 20, 20, 20, 20, 0]
    turns.engine.steer(Header(chunk=10**6))
    turns.submit(3, 100)
    turns.step()
    assert turns.computed[-1] == FULL


def test_a_burst_is_not_made_to_take_turns_with_the_first_of_it(shard):
    """Each newcomer had a chunk of its own, and each chunk a step of few rows."""
    turns = beside_one_that_decodes(shard, 20)
    for uid in range(2, 5):
        turns.submit(uid, 16)
    turns.step()
    assert turns.computed[-1] == 48, "three wait for one that decodes: three times the pace"
    turns.submit(5, 100)
    turns.step()
    assert turns.computed[-1] == 20, "now one waits, and four decode"
    for uid in range(6, 11):
        turns.submit(uid, 100)
    turns.step()
    assert turns.computed[-1] == 30, "six wait, and four decode"


def test_a_prompts_last_few_tokens_are_not_left_for_a_chunk_of_their_own(shard):
    turns = beside_one_that_decodes(shard, 20)
    turns.submit(2, 64)
    turns.step(4)
    assert turns.computed[3:] == [20, 20, 24, 0]


def test_short_prompts_pass_a_long_one_which_goes_on_all_the_same(shard):
    turns = beside_one_that_decodes(shard, 64)
    turns.submit(2, 1000)
    turns.step()
    before = turns.done[2]
    for uid in range(3, 13):
        turns.submit(uid, 12)
        turns.step()
        assert turns.done[2] > before, "the short ones starve it"
        before = turns.done[2]
    turns.step(2)
    assert all(uid in turns.first for uid in range(3, 13))
    assert 2 not in turns.first


def test_long_prompts_are_served_in_their_order(shard):
    turns = Turns(shard)
    for uid in (1, 2, 3):
        turns.submit(uid, 300)
    turns.step(25)
    assert turns.first[1] < turns.first[2] < turns.first[3]


def test_a_burst_of_short_prompts_shares_its_chunks(shard):
    turns = Turns(shard)
    for uid in range(1, 13):
        turns.submit(uid, 9)
    turns.step(4)
    assert turns.computed == [72, 36, 0, 0]
    assert sorted(turns.first) == list(range(1, 13))


def test_a_prompt_has_its_first_token_in_the_turn_of_its_last_chunk(shard):
    turns = Turns(shard)
    turns.submit(1, 1)
    turns.step(1)
    assert turns.computed == [1] and turns.first == {1: 1}
    turns.submit(2, 65)
    turns.step(3)
    assert turns.first[2] == 3


def test_a_prompt_that_is_scored_shares_the_chunk_with_the_others(shard):
    turns = Turns(shard)
    turns.submit(1, 100, score=True)
    turns.submit(2, 100)
    turns.step()
    assert turns.done == {1: 32, 2: 32}
