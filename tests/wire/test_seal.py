"""A rank goes on with what the ranks have sent, or stops: nothing between.

Ranks are threads over a wire that drops, repeats, empties and changes what it carries.
"""

from types import SimpleNamespace

import pytest

pytest.importorskip("mlx.core")

import mlx.core as mx
import numpy as np

from server.api.requests import MAX_TOKEN_IDS
from server.observe.fleet import Fleet, Vitals
from server.observe.recorder import Recorder
from server.observe.status import Status
from server.protocol.requests import Common, Sampling
from server.protocol.settings import read_settings
from server.sampling.choosers import Step
from server.sampling.random_state import RandomState
from server.sampling.row_state import Row
from server.sampling.sampler import sample
from server.startup import proof
from server.startup.canary import check_link
from server.startup.handshake import Mismatch
from server.startup.proof import Proof
from server.wire.heartbeat import Heartbeat
from server.wire.link import GATHER_MOST
from server.wire.mailbox import BUNDLE_MOST, Header, Mailbox, bundle_bytes_most
from server.wire.messages import Submit
from server.wire.seal import CONSTANTS, NUMBERS, Garbled, constants, prove
from tests.support.linked import PeerGone, on_links

VOCAB = 1000
SIZES = [1, 2, 3, 8]
LONG = Submit(7, list(range(50_000)), 9, stop_ids=(1, 2), keep=((16, 3),))


class Picks:
    """A chooser: rank 0 picks given tokens, the others add zeros."""

    def __init__(self, rank: int, tokens: list[int], header: list[int]) -> None:
        self._tokens = tokens if rank == 0 else [0] * len(tokens)
        self._header = header if rank == 0 else [0] * Header.SIZE

    def header(self):
        return self._header

    def propose(self, logits, rows, inputs, mine):
        return mx.array(self._tokens, dtype=mx.int32), []


def step_of(link, tokens=(5, 0, 999), header=(44, 0, 128, 1, 0)) -> tuple[Step, mx.array]:
    step = Step(link, Picks(link.rank, list(tokens), list(header)))
    rows = [RandomState(Sampling(), 0) for _ in tokens]
    mine, _ = step.propose(mx.zeros((len(tokens), VOCAB)), rows, mx.zeros(len(tokens)))
    return step, mine


# What each kind of message is, as a rank meets it twice in a row; the second is spoilt.


def step(link):
    one, mine = step_of(link)
    return [one.share(mine).read() for _ in range(2)]


def first_tokens(link):
    one, mine = step_of(link)
    return [one.share_first(mine).read() for _ in range(2)]


def mailbox_of(link, messages=(LONG,)) -> Mailbox:
    beat = Heartbeat(link, Fleet(), Recorder(), lambda: Vitals(2**40, 2**41, 2**30))
    waiting = [list(messages), list(messages)]
    return Mailbox(beat, lambda: waiting.pop(0), lambda: 80, lambda: 512, lambda: False)


def meeting(link):
    box = mailbox_of(link)
    return [box.meet(), box.meet()]


def bundle(link):
    box = mailbox_of(link)
    return [box.receive(box.meet()), box.receive(box.meet())]


def numbers(link):
    return [link.share_ints([3, -4, 2**31 - 1]) for _ in range(2)]


def gathering(link):
    return [link.gather_bytes(b"rank %d" % link.rank + b"x" * link.rank) for _ in range(2)]


#: by kind: what to do, and which sum of it is spoilt
KINDS = {
    "step": (step, 1),
    "first tokens": (first_tokens, 1),
    "meeting": (meeting, 1),
    "bundle's meeting": (bundle, 2),
    "bundle": (bundle, 3),
    "numbers": (numbers, 1),
    "lengths": (gathering, 2),
    "gathered": (gathering, 3),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_spoilt_arrives_as_it_was_sent(kind, size):
    life, _ = KINDS[kind]
    results = on_links(size, life)
    assert all(result == results[0] for result in results), results
    sent = {
        "step": ([5, 0, 999], [44, 0, 128, 1, 0]),
        "first tokens": ([5, 0, 999], []),
        "bundle": [LONG],
        "numbers": [3, -4, 2**31 - 1],
        "gathered": [b"rank %d" % r + b"x" * r for r in range(size)],
    }
    if kind in sent:
        assert results[0] == [sent[kind]] * 2


def stale(total, before):
    """The message before it again: one was lost, or came twice."""
    last = before[-1]
    return last if last.shape == total.shape else np.resize(last, total.shape)


def zeroed(total, before):
    return np.zeros_like(total)


def halved(total, before):
    """Its end is missing."""
    spoilt = total.copy()
    spoilt[len(spoilt) // 2 :] = 0
    return spoilt


def shifted(total, before):
    return np.roll(total, 1)


def swapped(total, before):
    """Two values that differ have changed places."""
    spoilt = total.copy()
    other = int(np.flatnonzero(spoilt != spoilt[0])[0])
    spoilt[[0, other]] = spoilt[[other, 0]]
    return spoilt


def one_rank_missing(total, before):
    """As if a rank's part had been lost: what the ring or the mesh would add up is less."""
    return total - np.maximum(total // 3, 1)


WAYS = [stale, zeroed, halved, shifted, swapped, one_rank_missing]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_spoilt_message_stops_the_rank_that_got_it(kind, way, size):
    life, at = KINDS[kind]
    victim = size - 1

    def spoil(rank, n, total, before):
        return way(total, before) if (rank, n) == (victim, at) else total

    results = on_links(size, life, spoil)
    assert isinstance(results[victim], Garbled), results[victim]
    assert str(results[victim]).startswith("the link lost or garbled a message: ")
    others = (PeerGone, list)  # waits for the victim in vain, or was done
    assert all(isinstance(result, others) for result in results[:victim]), results


@pytest.mark.parametrize("kind", KINDS)
def test_every_single_bit_counts(kind):
    """Of a long bundle a sample of them."""
    life, at = KINDS[kind]
    length = {}

    def measure(rank, n, total, before):
        length.setdefault(n, len(total))
        return total

    (right,) = on_links(1, life, measure)
    places = range(length[at])
    if len(places) > 64:
        places = [*places[:4], *places[5 :: len(places) // 8], *places[-24:]]
    for place in places:
        for bit in (0, 13, 30, 31):
            mask = np.array(1 << bit, dtype=np.uint32).view(np.int32)

            def spoil(rank, n, total, before, place=place, mask=mask):
                if (rank, n) != (0, at):
                    return total
                spoilt = total.copy()
                spoilt[place] ^= mask
                return spoilt

            result = on_links(1, life, spoil)[0]
            # The last word of bytes may be padded, and nobody reads what it is padded with.
            padding = kind in ("bundle", "gathered") and result == right
            assert padding or isinstance(result, Garbled), (place, bit, result)


def test_ranks_whose_streams_are_shifted_by_one_message_both_notice():
    """One of rank 0's was lost: what it sends next is added to the one that rank 1 waits in."""

    def life(link):
        link.share_ints([1, 2], "meeting")
        link._number += link.rank == 0
        return link.share_ints([1, 2], "meeting")

    for result in on_links(2, life):
        assert "message numbers make 5, which should be" in str(result)


def test_a_message_of_another_kind_is_not_taken_for_this_one():
    def life(link):
        what = "meeting" if link.rank else "first tokens"
        return link.share_ints([1, 2], what)

    assert all(isinstance(result, Garbled) for result in on_links(2, life))


def test_the_words_say_what_came_and_what_was_due():
    def spoil(rank, n, total, before):
        return before[0] if n == 1 else total

    (error,) = on_links(1, numbers, spoil)
    assert str(error) == (
        "the link lost or garbled a message: numbers (message 2 of 1 ranks): "
        "the ranks' message numbers make 1, which should be 2"
    )


# A step begins before anyone can look at its tokens.


@pytest.mark.parametrize("wild", [-1, VOCAB, 2**31 - 1, -(2**31)])
def test_a_wild_token_reaches_no_embedding_and_no_client(wild):
    """MLX reads beyond the table for it: it was a SIGSEGV."""

    def life(link):
        one, mine = step_of(link)
        shared = one.share(mine)
        inputs = shared.inputs.tolist()
        assert all(0 <= token < VOCAB for token in inputs), inputs
        assert inputs[1:] == [0, 999]
        return shared.read()

    def spoil(rank, n, total, before):
        spoilt = total.copy()
        spoilt[0] = wild
        return spoilt

    (error,) = on_links(1, life, spoil)
    assert isinstance(error, Garbled)


def test_a_token_outside_the_vocabulary_is_refused_even_if_the_ranks_agree_on_it():
    def life(link):
        one, mine = step_of(link, tokens=[5, VOCAB])
        return one.share(mine).read()

    (error,) = on_links(1, life)
    assert "token ids [5, 1000], where the vocabulary ends at 999" in str(error)


# A header says nothing that rank 0 never says.


@pytest.mark.parametrize(
    "values",
    [
        [-1, 0, 1, 0],
        [0, -1, 1, 0],
        [0, 1001, 1, 0],
        [0, 0, -1, 0],
        [0, 0, 2**30, 0],
        [0, 0, 1, 2],
    ],
)
def test_a_field_out_of_bounds_is_named(values):
    with pytest.raises(Garbled, match="where (length|nap_ms|chunk|late) is 0 to"):
        Header.of(values)


def test_a_bundle_that_rank_0_could_not_have_composed_is_not_allotted():
    """A header once announced 1,050,003,291 numbers."""
    box = Mailbox(None, None, None, None, None, most=bundle_bytes_most(8, 100_000))
    with pytest.raises(Garbled, match="a bundle of 1050003291 bytes, at most"):
        box.receive(Header(1_050_003_291))


def test_bytes_that_are_no_messages_are_garbled():
    class Sends:
        rank = 0

        def share_bytes(self, data, length):
            return b"\xff" * length

    with pytest.raises(Garbled, match="bundle: 40 bytes, "):
        Mailbox(Sends(), None, None, None, None).receive(Header(40))


def test_the_largest_bundle_of_a_full_house_passes():
    """Many prompts of full context, every field as large as a client can make it."""
    rows, tokens = 32, 1_000_000
    ids = tuple(range(2**30, 2**30 + MAX_TOKEN_IDS))
    messages = [
        Submit(
            2**31 + row,
            range(tokens // rows),
            2**31,
            stop_ids=ids,
            keep=((2**30, 2**40),) * 8,
        )
        for row in range(rows)
    ]
    most = bundle_bytes_most(rows, tokens)

    def life(link):
        beat = Heartbeat(link, Fleet(), Recorder(), lambda: Vitals(1, 2, 3))
        box = Mailbox(beat, lambda: messages, lambda: 0, lambda: 1, lambda: False, most)
        header = box.meet()
        assert 4 * tokens < header.length <= most < BUNDLE_MOST
        return [(m.uid, len(m.prompt), m.prompt[-1]) for m in box.receive(header)]

    for result in on_links(2, life):
        assert result == [(m.uid, len(m.prompt), m.prompt[-1]) for m in messages]


def test_a_length_that_no_rank_gathers_is_refused():
    def life(link):
        return link.gather_bytes(b"x" * (GATHER_MOST + 1))

    (error,) = on_links(1, life)
    assert "at most 16777216 each" in str(error)


# The numbers themselves.


def test_nothing_overflows_with_eight_ranks_and_the_largest_values():
    most = 8 * (CONSTANTS - 1)
    assert most < 2**31 and 8 * (NUMBERS - 1) < 2**31
    assert most - (2**31 - 1) >= -(2**31)


def test_constants_are_the_same_everywhere_and_unlike_their_neighbours():
    made = constants("step", 300)
    assert made.dtype == np.int32 and made.min() >= 0 and made.max() < CONSTANTS
    assert len(set(made.tolist())) == 300
    assert made[:3].tolist() == constants("step", 300)[:3].tolist()
    assert not np.array_equal(made[:200], constants("step", 200))
    assert not np.array_equal(made, constants("meeting", 300))


def test_message_numbers_begin_again():
    def life(link):
        link._number = NUMBERS - 2
        return [link.share_ints([n]) for n in range(3)]

    assert on_links(2, life) == [[[0], [1], [2]]] * 2


def test_an_empty_message_is_proven_too():
    told = constants("numbers", 1) - np.array([4], dtype=np.int32)
    assert prove(np.array([4, told[0]], dtype=np.int32), 1, "numbers", 4) == []
    with pytest.raises(Garbled):
        prove(np.array([5, told[0]], dtype=np.int32), 1, "numbers", 4)


# What a start proves.


def test_a_link_that_spoils_long_sums_is_named_on_every_rank():
    def spoil(rank, n, total, before):
        if (rank, n) != (1, 0):
            return total
        spoilt = total.copy()
        spoilt[[3, 77]] += 1
        return spoilt

    for result in on_links(2, lambda link: check_link(link, 1000), spoil):
        assert isinstance(result, Garbled)
        assert "check of the link: a sum of 4000 bytes: rank 1 got 2 of 1000 wrong" in str(result)


@pytest.mark.parametrize(
    ("before", "agreed", "expected"),
    [(False, False, Mismatch), (True, False, Garbled), (False, True, Garbled)],
)
def test_ranks_that_agreed_before_and_do_not_now_have_a_bad_link(
    monkeypatch, before, agreed, expected
):
    """A wrong sum in the canary of a restart, or between requests, used to end the service for
    good, as a model that cannot be served."""

    def disagree(*arguments):
        raise Mismatch("rank 1 does not agree with rank 0")
        yield

    def agree(*arguments):
        yield
        return [1, 2]

    settings = read_settings({"MODEL_DIR": "/"})
    shard = SimpleNamespace(context=1000, vocab=VOCAB, sums=None)
    link = SimpleNamespace(size=1)
    canary = Proof(None, settings, link, shard, 1, Status("m", "run"), lambda turn: None, before)
    if agreed:
        monkeypatch.setattr(proof, "check_model", agree)
        canary.run(lambda stage: None)
    monkeypatch.setattr(proof, "check_model", disagree)
    with pytest.raises(expected, match="rank 1 does not agree with rank 0") as caught:
        canary.run(lambda stage: None)
    assert isinstance(caught.value, expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "sampling",
    [{"temperature": 0}, {"top_p": 0.9, "top_k": 7}, {"min_p": 0.1}, {"repetition_penalty": 1.3}],
)
def test_logits_that_are_no_numbers_are_no_fault_of_the_link(value, sampling):
    """A prompt may make a model overflow: no client could end the ranks so."""
    rows = [Row(Common(sampling=Sampling(**sampling)), [1, 2], VOCAB) for _ in range(3)]
    logits = mx.full((3, VOCAB), value)
    tokens = mx.array(sample(logits, rows, lambda: [1, 2, 3])[0].tolist(), dtype=mx.int32)

    def life(link):
        one, _ = step_of(link)
        return one.share(tokens).read()

    assert isinstance(on_links(1, life)[0], tuple)
