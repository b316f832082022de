"""A prompt whose first choice leaves before it is done: the others must not need what is gone."""

import mlx.core as mx
import pytest

from server.loop import turn
from server.residents import Resident, Residents
from server.startup.loading import load_shard
from server.wire.link import Link
from tests.support.desk import Desk, choices, ticket
from tests.support.tiny_models import tiny_llama

ROOM = 10**6
LIVELY = {"temperature": 1.3, "seed": 11}
SYSTEM = [n % 90 + 33 for n in range(150)]
PROMPT = SYSTEM + [n * 7 % 90 + 33 for n in range(200)]  # four chunks beside the kept beginning


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    folder = tiny_llama(tmp_path_factory.mktemp("model") / "tiny", context=4096)
    return load_shard(folder, "tensor", Link(mx.distributed.init()), None, lambda stage: None)


@pytest.fixture(scope="module")
def expected(shard):
    """What the three choices give, alone and undisturbed."""
    return Desk(shard).run(choices(3, prompt=PROMPT, max_tokens=6, **LIVELY))


def evict(desk: Desk) -> None:
    desk.engine.prefixes.drop(tuple(desk.engine.prefixes._entries))


def cut(desk: Desk) -> None:
    for entry in list(desk.engine.prefixes._entries):
        desk.engine.prefixes.cut(entry, 20)


def make_redundant(desk: Desk) -> None:
    """As another answer would, that begins with all of the entry: rank 0 has it dropped."""
    prefixes = desk.scheduler._prefixes
    numbers = list(prefixes._entries)
    more = max(prefixes._entries.values(), key=lambda entry: len(entry.tokens)).tokens.tolist()
    desk.engine.prefixes.drop(numbers)
    prefixes.add(10**6, more + [5])
    for number in prefixes.make_room(ROOM).drop:
        assert number in numbers


@pytest.mark.parametrize("how", [evict, cut, make_redundant])
@pytest.mark.parametrize("turn", range(1, 5))
@pytest.mark.parametrize("gone", [1, 2, 3])
def test_choices_go_on_when_the_kept_beginning_of_their_prompt_is_gone(
    shard, expected, how, turn, gone
):
    """The next choice was submitted with the first one's message: KeyError on every rank, or, of
    an entry that was cut meanwhile, a cache trimmed below its beginning."""
    desk = Desk(shard, room=ROOM)
    desk.run(ticket(prompt=SYSTEM, max_tokens=20))
    first = choices(3, prompt=PROMPT, max_tokens=6, **LIVELY)
    every, other = [first, *first.followers], ticket(max_tokens=12)

    def act(now: int) -> None:
        if now == turn:
            how(desk)
            for one in every[:gone]:
                desk.line.cancel(one)

    *answers, bystander = desk.run(first, other, act=act)
    assert first.cached >= 100, "it did begin with a kept prefix"
    for answer, right in zip(answers[gone:], expected[gone:], strict=True):
        assert answer == right
    assert bystander == Desk(shard).run(ticket(max_tokens=12))[0]
    assert not desk.engine.busy and desk.line.held() == 0


def test_what_was_computed_of_a_prompt_serves_the_choices_that_are_left(shard):
    """They began again from nothing."""
    desk = Desk(shard)
    first = choices(3, prompt=PROMPT, max_tokens=6, **LIVELY)

    def act(now: int) -> None:
        if now == 3:
            desk.line.cancel(first)

    desk.run(first, act=act)
    # Each of the two that are left computes the last token for itself; two of them in one chunk.
    assert desk.computed <= len(PROMPT) + 2


def test_the_answer_of_the_choice_that_takes_over_is_kept(shard):
    desk = Desk(shard, room=ROOM)
    first = choices(2, prompt=PROMPT, max_tokens=40, **LIVELY)

    def act(now: int) -> None:
        if now == 2:
            desk.line.cancel(first)

    _, answer = desk.run(first, act=act)
    assert len(answer) == 40
    again = ticket(prompt=PROMPT + answer + [7] * 5)
    desk.run(again)
    assert again.cached >= len(PROMPT) + 39


def test_many_prefixes_are_cut_at_once_and_their_memory_is_free_without_another_request(
    shard, monkeypatch
):
    """Every rank waited for each of them, one after another."""
    desk = Desk(shard, room=ROOM)
    for n in range(4):
        desk.run(ticket(prompt=[40 + n] * 300, max_tokens=2))
    waits = []
    monkeypatch.setattr("server.engine.prefix_store.mx.eval", lambda *arrays: waits.append(arrays))
    before = mx.get_active_memory()
    for entry in desk.engine.prefixes.lengths():
        index = desk.scheduler._prefixes._entries[entry]
        index.shared, index.shared_used = 20, 10**6
    desk.scheduler._prefixes.room = 100
    desk.line.stopping = None  # the end of the run before
    residents = Residents(Resident(desk.engine, desk.scheduler, lambda tell: None))
    turn(residents, desk.mailbox, desk.scheduler, lambda stage: None)
    assert list(desk.engine.prefixes.lengths().values()) == [20] * 4
    monkeypatch.undo()
    mx.synchronize()
    assert not waits, "for no entry: header and bundle are read without it"
    assert not desk.engine.prefixes._fresh
    # Keys and values of two layers, four heads of sixteen float32, for 280 tokens each, but for
    # what the turn itself leaves: a few arrays of its step.
    assert before - mx.get_active_memory() >= 4 * 280 * 2 * 2 * 4 * 16 * 4 - 2**16
