"""Rank 0's messages as bytes: what goes in comes out, and rubbish is a ValueError."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.messages import Canary, Cancel, Shutdown, Submit, decode, encode

TOKENS = st.integers(0, 2**31 - 1)
UIDS = st.integers(1, 2**53)
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
    )
    | st.builds(Cancel, UIDS)
    | st.just(Canary())
    | st.builds(Shutdown, st.text()),
    max_size=8,
)


def test_messages_come_out_as_they_went_in():
    messages = [
        Cancel(7),
        Submit(8, [1, 2, 3], 10),
        Submit(9, [], 1, ignore_eos=True),
        Submit(10, [2**31 - 1], 5),
        Submit(11, [4, 5], 5, stop_ids=(7, 2**31 - 1), forks=(12, 13), score=True),
        Canary(),
        Shutdown("drained, ‘so’ to say"),
    ]
    assert decode(encode(messages)) == messages


def test_no_messages_are_a_bundle_too():
    assert decode(encode([])) == []


def test_a_long_prompt_costs_four_bytes_a_token():
    prompt = list(range(100_000))
    data = encode([Submit(1, prompt, 10)])
    assert len(data) < 4 * len(prompt) + 200
    assert decode(data)[0].prompt == prompt


@settings(max_examples=100, deadline=None)
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
    ],
)
def test_bytes_that_are_not_ours_are_a_value_error(data):
    with pytest.raises(ValueError):
        decode(data)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_any_other_bytes_are_a_value_error(data):
    try:
        decode(data)
    except ValueError:
        pass
