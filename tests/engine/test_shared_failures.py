"""What fails because of a message's data fails one request, and on every rank alike; what one rank
alone can see ends that rank."""

import logging
from types import SimpleNamespace

import mlx.core as mx
import pytest

from server.engine.engine import Engine
from server.engine.row import Row
from server.loop import turn
from server.protocol.events import Failed, Token
from server.protocol.failures import Refused, is_shared
from server.residents import Resident, Residents
from server.sampling.choosers import Follows
from server.scheduler.spectator import Spectator
from server.startup.loading import load_shard
from server.wire.link import Link
from server.wire.mailbox import Header
from server.wire.messages import Cancel, Cut, Evict, Submit
from tests.support.desk import Desk, choices, ids_of, ticket
from tests.support.tiny_models import tiny_llama

ROOM = 10**6
LONG = [n % 90 + 33 for n in range(200)]
# What MLX, its devices, its allocator and its links raise; ring's and JACCL's words among them.
LOCAL = [
    RuntimeError("[metal::malloc] Resource limit (499000) exceeded."),
    RuntimeError("[jaccl] Send/Recv failed with error code 12"),
    RuntimeError("[ring] connection to a peer was lost"),
    MemoryError(),
    OSError(5, "Input/output error"),
]


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    folder = tiny_llama(tmp_path_factory.mktemp("model") / "tiny", context=4096)
    return load_shard(folder, "tensor", Link(mx.distributed.init()), None, lambda stage: None)


def raising(error: Exception, once: bool = False):
    """A function that raises; once: only the first time, and then nothing is done."""
    left = [error]

    def act(*arguments, **named):
        if left:
            raise left.pop() if once else left[0]

    return act


def assert_empty(engine: Engine) -> None:
    """Nothing of any request is left in it."""
    assert not engine.busy
    for held in (engine.rows, engine._forks, engine._scoring, engine._started):
        assert not held
    assert not engine.prompts.waiting and not engine.prompts.begun
    assert not engine.decoding.rows and engine.decoding.step is None
    assert not engine.decoding.caches.layers


def test_pythons_errors_about_data_are_shared_and_those_of_machines_are_not():
    for error in (Refused("x"), KeyError(1), IndexError(), TypeError(), AttributeError()):
        assert is_shared(error)
    for error in [*LOCAL, Exception("unknown"), ConnectionResetError(), SystemError()]:
        assert not is_shared(error)


# A worker: the messages that it is given, and what it does with those that fail.


class Given:
    """A mailbox with a bundle a turn."""

    def __init__(self, *bundles) -> None:
        self._bundles = list(bundles)

    def meet(self) -> Header:
        return Header(length=1)

    def receive(self, header: Header) -> list:
        return self._bundles.pop(0) if self._bundles else []


def worker(shard) -> Engine:
    link = Link(mx.distributed.init())
    return Engine(shard.last, link, Follows(), max_batch=8, prefill_step=64, eos=[])


class Noted(Spectator):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.uids: list[int] = []
        self.entries: list[int] = []

    def refused(self, uid: int, error: Exception) -> None:
        self.uids.append(uid)

    def distrust(self, entries) -> None:
        self.entries += entries


def carry_out(engine: Engine, *messages) -> Noted:
    noted = Noted()
    residents = Residents(Resident(engine, noted, lambda tell: None))
    turn(residents, Given(list(messages)), noted, lambda stage: None)
    return noted


FAULTY = {
    "an empty prompt": Submit(1, [], 5),
    "no tokens to generate": Submit(1, [5, 6], 0),
    "a prefix that is gone": Submit(1, LONG, 5, reuse=(7, 30)),
    "more of a prefix than there is": Submit(1, LONG, 5, reuse=(1, 41)),
    "all of the prompt kept": Submit(1, LONG[:40], 5, reuse=(1, 40)),
    "a negative length": Submit(1, LONG, 5, reuse=(1, -3)),
    "a choice twice": Submit(1, LONG, 5, forks=(2, 2)),
    "a choice that is at work": Submit(1, LONG, 5, forks=(50,)),
    "a prompt kept beyond its end": Submit(1, LONG, 5, keep=((201, 9),)),
    "fields of the wrong kind": Submit(1, None, 5),
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_submit_leaves_nothing_behind_and_the_next_one_is_served(shard, name):
    engine = worker(shard)
    assert carry_out(engine, Submit(50, LONG[:40], 6, store=1)).uids == []
    row = engine.rows[50]
    while row not in engine.decoding.rows:
        engine.step()
    engine.prefixes.put(1, engine.decoding.extract(row), 40)
    before = engine.rows.copy()
    noted = carry_out(engine, FAULTY[name], Submit(3, LONG, 2))
    message = FAULTY[name]
    assert noted.uids == sorted({1, *message.forks})
    if 50 not in message.forks:
        del engine.rows[3]
        assert engine.rows == before
        assert engine._forks == engine._scoring == {}
    else:
        assert set(engine.rows) == {3}, "whoever was named twice is one request, and is over"
    assert set(noted.entries) == set(message.reuse[:1])


@pytest.mark.parametrize("reuse", [(), (1, 100), (1, 199)])
@pytest.mark.parametrize("score", [False, True])
@pytest.mark.parametrize("fails_at", range(4))
def test_choices_of_which_one_cannot_be_put_in_fail_together_wherever_that_is(
    shard, monkeypatch, reuse, score, fails_at
):
    """In the message's turn, or in the step in which the prompt is done, where KeyError and the
    like ended every rank."""
    engine = worker(shard)
    engine.submit(Submit(9, LONG, 1, keep=((200, 1),)))
    while engine.busy:
        engine.step()
    row, calls = engine._chooser.row, []

    def fail(uid, draw):
        calls.append(uid)
        if len(calls) == fails_at + 1:
            raise KeyError(uid)
        return row(uid, draw)

    monkeypatch.setattr(engine._chooser, "row", fail)
    refused = carry_out(engine, Submit(1, LONG, 3, forks=(2, 3, 4), score=score, reuse=reuse)).uids
    turns = []
    while engine.busy:
        engine.step(turns.append)
    refused += [uid for one in turns for uid, _ in one.refused]
    assert sorted(refused) == [1, 2, 3, 4]
    assert not [uid for one in turns for uid, event in one.events if isinstance(event, Token)]
    assert_empty(engine)


def test_a_prompt_that_cannot_be_handed_over_fails_the_choices_that_are_left(shard, monkeypatch):
    engine = worker(shard)
    carry_out(engine, Submit(1, LONG, 3, forks=(2, 3)), Submit(5, LONG, 3))
    monkeypatch.setattr(engine._chooser, "row", raising(KeyError(2), once=True))
    assert carry_out(engine, Cancel(1)).uids == [1, 2, 3]
    assert set(engine.rows) == {5}


def test_a_prefix_that_cannot_be_cut_is_given_up(shard):
    engine = worker(shard)
    noted = carry_out(engine, Cut(4, 20), Evict((4, 5)))
    assert noted.entries == [4] and noted.uids == []
    desk = Desk(shard, room=ROOM)
    desk.run(ticket(prompt=LONG, max_tokens=3))
    (number,) = desk.engine.prefixes._entries
    with pytest.raises(Refused, match="not 10"):
        desk.engine.prefixes.cut(number, 10**6)
    assert desk.engine.prefixes._entries[number][0].offset == desk.engine.prefixes.lengths()[number]


@pytest.mark.parametrize("error", LOCAL, ids=str)
@pytest.mark.parametrize("where", ["put", "row", "take", "cut", "hand_over", "fork"])
def test_what_one_rank_alone_can_see_ends_that_rank(shard, monkeypatch, where, error):
    """A worker went on after whatever a Submit raised, without the request that the others had."""
    engine = worker(shard)
    engine.prefixes.put(1, [], 50)
    messages = [Submit(1, LONG, 3, forks=(2, 3))]
    if where == "put":
        monkeypatch.setattr(engine.prompts, "put", raising(error))
    if where == "row":
        monkeypatch.setattr(engine._chooser, "row", raising(error))
    if where == "take":
        monkeypatch.setattr(engine.prefixes, "take", raising(error))
        messages = [Submit(1, LONG, 3, reuse=(1, 50))]
    if where == "cut":
        monkeypatch.setattr(engine.prefixes, "cut", raising(error))
        messages = [Cut(1, 20)]
    if where == "hand_over":
        monkeypatch.setattr(Row, "hand_over", raising(error))
        messages.append(Cancel(1))
    if where == "fork":
        carry_out(engine, *messages)
        monkeypatch.setattr(engine.prompts, "put", raising(error))
        messages = []
    with pytest.raises(type(error)):
        carry_out(engine, *messages)
        for _ in range(9):
            engine.step()


# Rank 0, with its tickets.


def test_a_request_whose_message_fails_is_answered_with_500_and_all_of_its_choices(
    shard, monkeypatch
):
    desk = Desk(shard)
    begin = desk.engine._begin

    def fail(message):
        begin(message)
        if message.forks:
            raise LookupError("a message made of bad data")

    monkeypatch.setattr(desk.engine, "_begin", fail)
    first, other = choices(3, prompt=LONG), ticket()
    *ends, right = desk.run(first, other)
    assert all(isinstance(end, Failed) and end.error.status == 500 for end in ends)
    assert all("bad data" in end.error.message for end in ends)
    assert right == Desk(shard).run(ticket())[0]
    assert_empty(desk.engine)
    assert desk.line.held() == 0 and not desk.scheduler._running


def test_an_index_that_names_a_prefix_which_no_rank_has_forgets_it(shard, caplog):
    """Every later prompt that begins so would fail in the same way."""
    desk = Desk(shard, room=ROOM)
    desk.run(ticket(prompt=LONG, max_tokens=3))
    desk.engine.prefixes.drop(list(desk.engine.prefixes._entries))
    with caplog.at_level(logging.ERROR):
        (failed,) = desk.run(ticket(prompt=LONG, max_tokens=3))
    assert isinstance(failed, Failed) and "no prefix is kept" in failed.error.message
    assert desk.run(ticket(prompt=LONG, max_tokens=3)) == Desk(shard).run(
        ticket(prompt=LONG, max_tokens=3)
    )
    assert desk.scheduler._prefixes._entries.keys() == desk.engine.prefixes.lengths().keys()


class Grammar:
    """Of every token, until it breaks: in the making, before or after its matchers' first token."""

    def __init__(self, error: Exception, where: str) -> None:
        self.error, self.where, self.made = error, where, 0

    def matcher(self):
        self.made += 1
        if self.where == "matcher":
            raise self.error
        return self

    def accept(self, token: int) -> None:
        if self.where == "accept":
            raise self.error

    def mask(self):
        if self.where == "mask":
            raise self.error


@pytest.mark.parametrize("where", ["matcher", "accept", "mask"])
@pytest.mark.parametrize("error", [ValueError("broken"), RuntimeError("broken")], ids=repr)
def test_a_grammar_that_breaks_fails_its_request_wherever_it_does(shard, where, error):
    """One that broke as it was made ended rank 0."""
    desk = Desk(shard)
    bad, good = choices(2), ticket()
    for one in (bad, *bad.followers):
        one.grammar = Grammar(error, where)
    *ends, right = desk.run(bad, good)
    assert all(isinstance(end, Failed) and "broken" in end.error.message for end in ends)
    assert right == Desk(shard).run(ticket())[0]
    assert_empty(desk.engine)


def test_a_grammar_that_breaks_while_its_request_is_paused_fails_that_alone(shard):
    """It is shown its tokens again then."""

    class Forgetful(Grammar):
        def matcher(self):
            self.made += 1
            return SimpleNamespace(accept=self.accept_of(self.made), mask=lambda: None)

        def accept_of(self, made: int):
            return raising(self.error) if made > 1 else lambda token: None

    desk = Desk(shard, capacity=512)
    old, young = (ticket(prompt=LONG[:50], max_tokens=300) for _ in range(2))
    young.grammar = Forgetful(ValueError("broken"), "")
    kept, failed = desk.events(old, young)
    assert ids_of(kept) == Desk(shard).run(ticket(prompt=LONG[:50], max_tokens=300))[0]
    assert isinstance(failed[-1], Failed) and "broken" in failed[-1].error.message
    assert sum(isinstance(event, Failed) for event in failed) == 1
    assert desk.line.held() == 0 and not desk.scheduler._running
    assert young.grammar.made == 2, "it was paused once"


@pytest.mark.parametrize("error", LOCAL, ids=str)
def test_a_link_that_breaks_in_the_choice_of_tokens_is_not_taken_for_a_bad_request(
    shard, monkeypatch, error
):
    desk = Desk(shard)
    monkeypatch.setattr("server.sampling.choosers.sample", raising(error))
    with pytest.raises(type(error)):
        desk.run(ticket())


def test_log_probabilities_that_cannot_be_made_fail_their_request_alone(shard, monkeypatch):
    """They are rank 0's alone to make: it ended, and all others with it."""
    desk = Desk(shard)
    monkeypatch.setattr(
        "server.sampling.choosers.score_tokens", raising(IndexError("no such token"))
    )
    failed, right = desk.run(
        ticket(prompt=LONG, common={"logprobs": 1}, score_prompt=True), ticket(max_tokens=20)
    )
    assert isinstance(failed, Failed) and "no such token" in failed.error.message
    assert right == Desk(shard).run(ticket(max_tokens=20))[0]
    assert_empty(desk.engine)
