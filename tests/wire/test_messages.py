"""Rank 0's messages as bytes: what goes in comes out, and rubbish is a ValueError."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.wire.messages import Canary, Cancel, Draw, Shutdown, Submit, decode, encode

TOKENS = st.integers(0, 2**31 - 1)
UIDS = st.integers(1, 2**53)
SHARES = st.floats(0, 1, width=32)
DRAWS = st.builds(
    Draw, UIDS, st.floats(0, 2), SHARES, TOKENS, SHARES, st.integers(0, 2**64 - 1), TOKENS
)
MESSAGES = st.lists(
    st.builds(
        Submit,
        UIDS,
        st.lists(TOKENS),
        st.integers(1, 2**31),
        ignore_eos=st.booleans(),
        stop_ids=st.lists(TOKENS, max_size=3).map(tuple),
        forks=st.lists(UIDS, max_size=3).map(tuple),
        score=st.booleans(),
        draws=st.lists(DRAWS, max_size=3).map(tuple),
    )
    | st.builds(Cancel, UIDS)
    | st.just(Canary())
    | st.builds(Shutdown, st.text()),
    max_size=8,
)


def test_messages_come_out_as_they_went_in():
    messages = [
        Cancel(7),
        Cancel(8, keep=2**33),
        Submit(8, [1, 2, 3], 10),
        Submit(9, [], 1, ignore_eos=True),
        Submit(10, [2**31 - 1], 5),
        Submit(11, [4, 5], 5, stop_ids=(7, 2**31 - 1), forks=(12, 13), score=True),
        Submit(14, [6], 5, draws=(Draw(14, 0.1, 0.9, 40, 0.05, 2**64 - 1, 7),)),
        Canary(),
        Shutdown("drained, ‘so’ to say"),
    ]
    assert decode(encode(messages)) == messages


def test_a_message_tells_how_to_draw_for_each_of_its_choices():
    draws = tuple(Draw(uid, 1.0, 1.0, 0, 0.0, 5, 0) for uid in (1, 3))
    message = Submit(1, [4], 5, forks=(2, 3), draws=draws)
    assert [message.draw(uid) for uid in (1, 2, 3)] == [draws[0], None, draws[1]]


def test_no_messages_are_a_bundle_too():
    assert decode(encode([])) == []


def test_a_long_prompt_costs_four_bytes_a_token():
    prompt = list(range(100_000))
    data = encode([Submit(1, prompt, 10)])
    assert len(data) < 4 * len(prompt) + 200
    assert decode(data)[0].prompt == prompt


@settings(max_examples=100)
@given(MESSAGES)
def test_any_messages_come_out_as_they_went_in(messages):
    assert decode(encode(messages)) == messages


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"\x02\x00\x00\x00[",
        b"\x01\x00\x00\x005",
        b"\x03\x00\x00\x00[5]",
        b"\x04\x00\x00\x00[{}]",
        b"\x11\x00\x00\x00" + b'[{"kind":"None"}]',
        b"\x13\x00\x00\x00" + b'[{"kind":"Cancel"}]',
        b"\xff\xff\xff\xff[]",
        b"\x13\x00\x00\x00" + b'[{"kind":"Submit"}]',
        encode([Cancel(1)])[:-1],
        encode([Cancel(1)]) + b"1234",
        encode([Submit(1, [1, 2, 3], 5)])[:-4],
        encode([Submit(1, [1, 2, 3], 5)])[:-1],
        encode([Submit(1, [1, 2, 3], 5)]).replace(b'"prompt":3', b'"prompt":-'),
        encode([Submit(1, [1, 2, 3], 5)]).replace(b'"prompt":3', b'"prompt":2'),
        encode([Submit(1, [1, 2, 3], 5)]).replace(b'"prompt":3', b'"prompt":9'),
        encode([Submit(1, [], 5, draws=(Draw(1, 1.0, 1.0, 0, 0.0, 5, 0),))]).replace(
            b",5,0]]", b"    ]]"
        ),
        encode([Submit(1, [], 5)]).replace(b'"draws":[]', b'"draws":7 '),
    ],
)
def test_bytes_that_are_not_ours_are_a_value_error(data):
    with pytest.raises(ValueError):
        decode(data)


@settings(max_examples=200)
@given(st.binary(max_size=60))
def test_any_other_bytes_are_a_value_error(data):
    try:
        decode(data)
    except ValueError:
        pass
