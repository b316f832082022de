"""From JSON bodies to requests: the body itself, and the fields that all APIs share."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.api.dialects.chat import parse as parse_chat
from server.api.dialects.completions import parse as parse_completion
from server.api.json_limits import MAX_JSON_DEPTH
from server.api.requests import (
    AS_MANY_AS_FIT,
    INT64_MAX,
    INT64_MIN,
    MAX_CHOICES,
    MAX_TOKEN_IDS,
    check_vocabulary,
    parse_json,
)
from server.protocol.errors import ApiError
from server.protocol.requests import (
    ChatRequest,
    Common,
    CompletionRequest,
    Sampling,
    Served,
)
from tests.support.request_bodies import MESSAGES, SERVED, chat, completion, refusal


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" ",
        b"{",
        b"{}{}",
        b"[]",
        b'"text"',
        b"null",
        b"true",
        b"12",
        b"{'a': 1}",
        b'{"a": 1,}',
        b'{"a"}',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": 01}',
        b'{"a": "\x01"}',
        b'{"a": "\xff"}',
        b'{"a": "\xed\xa0\x80"}',  # a surrogate, encoded
        b'{"a": "\xc0\xaf"}',  # an overlong slash
        b"\xff\xfe{\x00}\x00",
        b"\x1f\x8b\x08",
        b"\x00",
        b'{"a": ' + b"1" * 5000 + b"}",
        b'{"a":' * 10_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b"[" * 10_000 + b"]" * 10_000,
        b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    ],
)
def test_a_body_that_is_no_json_object_is_400(raw):
    refusal(lambda: parse_json(raw))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize(
    "before", ['{"a": ', '{"NaN \\" Infinity": -1,\n"b": [0, ', '{"\\\\": {"b":']
)
def test_what_is_no_json_number_is_told_with_its_place(number, before):
    error = refusal(lambda: parse_json(f"{before}{number}, NaN".encode()))
    lines = before.split("\n")
    place = f"line {len(lines)} column {len(lines[-1]) + 1} (char {len(before)})"
    assert f"{number} is not a JSON number: {place}" in error.message


@pytest.mark.parametrize("sign", ["", "-"])
@pytest.mark.parametrize(
    "before", ['{"a": ', '{"%s": 1.%s, "b": [1e%s, 2e-%s, ' % (("7" * 5000,) * 4)]
)
def test_an_integer_of_too_many_digits_is_told_in_our_words(sign, before):
    error = refusal(lambda: parse_json(f"{before}{sign}{'9' * 5001}]}}".encode()))
    assert "an integer has more than 4300 digits: line 1 column " in error.message
    assert f"(char {len(before)})" in error.message and "sys." not in error.message


@pytest.mark.parametrize("depth", range(900, 1010, 3))
@pytest.mark.parametrize("ends", ["[]", '{"a":}'])
def test_depth_near_the_recursion_limit_is_400(depth, ends):
    """What the parser could just nest, the error message could not write out."""
    opening, closing = (ends[:-1], ends[-1])
    raw = (opening * depth + "1" + closing * depth).encode()
    refusal(lambda: parse_json(raw))


def test_depth_within_the_limit_is_taken():
    deep = MAX_JSON_DEPTH - 1
    assert parse_json(b'{"a":' + b"[" * deep + b"]" * deep + b"}")["a"]
    refusal(lambda: parse_json(b'{"a":' + b"[" * (deep + 1) + b"]" * (deep + 1) + b"}"))


def test_the_last_of_two_equal_keys_counts():
    assert parse_json(b'{"a": 1, "a": 2}') == {"a": 2}


def test_rubbish_does_not_come_back_whole():
    assert len(refusal(chat, temperature="x" * 10**6).message) < 300
    assert len(refusal(chat, temperature=list(range(10**5))).message) < 300
    assert len(refusal(chat, temperature=10**4000).message) < 300


BOTH = [
    "model", "stream", "stream_options", "max_completion_tokens", "max_tokens", "temperature",
    "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "n",
    "stop", "seed", "logit_bias", "logprobs", "min_tokens", "stop_token_ids", "ignore_eos",
    "speculate",
]  # fmt: skip
CHAT_ONLY = [
    "top_logprobs", "tools", "tool_choice", "response_format", "reasoning_effort",
    "chat_template_kwargs",
]  # fmt: skip
COMPLETION_ONLY = ["echo", "suffix", "best_of"]
FIELD_NAMES = [*BOTH, *CHAT_ONLY, *COMPLETION_ONLY]


@pytest.mark.parametrize("parse", [chat, completion])
@pytest.mark.parametrize("name", [*FIELD_NAMES, "user", "metadata"])
def test_null_is_absent_but_for_a_limit_on_tokens(parse, name):
    if name in ("max_tokens", "max_completion_tokens"):
        assert parse(**{name: None}).common.max_tokens == AS_MANY_AS_FIT
        return
    assert parse(**{name: None}) == parse()


@pytest.mark.parametrize("parse", [chat, completion])
def test_unknown_and_idle_fields_are_ignored(parse):
    extras = {
        "user": 5, "metadata": [1], "store": True, "service_tier": "auto", "verbosity": "low",
        "prompt_cache_key": "k", "prediction": {}, "modalities": ["text"], "no_such_field": {},
        "parallel_tool_calls": True, "functions": [],
    }  # fmt: skip
    assert parse(**extras) == parse()


FIELDS = [
    # name, taken, refused
    ("temperature", [0, 0.0, 1, 2, 0.7], [-0.1, 2.1, 1e300]),
    ("top_p", [1e-9, 0.5, 1], [0, -1, 1.01]),
    ("min_p", [0, 0.5, 1], [-0.1, 1.1]),
    ("presence_penalty", [-2, 0, 2], [-2.1, 2.1]),
    ("frequency_penalty", [-2, 0, 2], [-2.1, 2.1]),
    ("repetition_penalty", [0.1, 1, 10], [0, -1, 11]),
]
NOT_NUMBERS = [
    True,
    False,
    "1",
    "",
    [],
    [1],
    {},
    float("nan"),
    float("inf"),
    float("-inf"),
    10**400,
]


@pytest.mark.parametrize("parse", [chat, completion])
@pytest.mark.parametrize(("name", "taken", "refused"), FIELDS)
def test_numbers_are_taken_in_their_range_and_refused_by_name(parse, name, taken, refused):
    for value in taken:
        assert getattr(parse(**{name: value}).common.sampling, name) == value
    for value in refused + NOT_NUMBERS:
        error = refusal(parse, **{name: value})
        assert error.param == name and "must be a number" in error.message


INTEGERS = [
    ("seed", [0, -1, INT64_MIN, INT64_MAX], [INT64_MIN - 1, INT64_MAX + 1]),
    ("top_k", [0, 1, 10**6, 2**31 - 1], [-2, 2**31]),
]


@pytest.mark.parametrize("parse", [chat, completion])
@pytest.mark.parametrize(("name", "taken", "refused"), INTEGERS)
def test_whole_numbers_are_taken_in_their_range_and_refused_by_name(parse, name, taken, refused):
    for value in taken:
        assert getattr(parse(**{name: value}).common.sampling, name) == value
    whole = getattr(parse(**{name: 64.0}).common.sampling, name)
    assert whole == 64 and isinstance(whole, int)
    for value in refused + NOT_NUMBERS + [1.5, 1e300]:
        error = refusal(parse, **{name: value})
        assert error.param == name and "must be a whole number" in error.message


def test_top_k_of_minus_one_is_no_limit():
    assert chat(top_k=-1).common.sampling.top_k == 0


@pytest.mark.parametrize("parse", [chat, completion])
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_max_tokens_counts_from_one(parse, name):
    assert parse(**{name: 1}).common.max_tokens == 1
    assert parse(**{name: 32000}).common.max_tokens == 32000
    assert isinstance(parse(**{name: 64.0}).common.max_tokens, int)
    for value in [0, -2, 0.0, 2**31, 1.5, *NOT_NUMBERS]:
        error = refusal(parse, **{name: value})
        assert error.param == name and "-1 or null: as many as fit" in error.message


@pytest.mark.parametrize("parse", [chat, completion])
def test_a_limit_of_minus_one_or_null_is_as_many_tokens_as_fit(parse):
    for name in ("max_tokens", "max_completion_tokens"):
        for value in (-1, -1.0, None):
            assert parse(**{name: value}).common.max_tokens == AS_MANY_AS_FIT
    assert parse().common.max_tokens is None
    # A null is what a client has not set; the other field's number is what it wants.
    assert parse(max_completion_tokens=None, max_tokens=5).common.max_tokens == 5
    assert parse(max_completion_tokens=-1, max_tokens=5).common.max_tokens == AS_MANY_AS_FIT


def test_max_completion_tokens_wins_over_max_tokens():
    assert chat(max_completion_tokens=3, max_tokens=5).common.max_tokens == 3
    assert refusal(chat, max_completion_tokens=3, max_tokens=0).param == "max_tokens"


@pytest.mark.parametrize("parse", [chat, completion])
@pytest.mark.parametrize("name", ["stream", "ignore_eos", "speculate"])
def test_booleans_are_booleans(parse, name):
    assert getattr(parse(**{name: True}).common, name) is True
    assert getattr(parse(**{name: False}).common, name) is False
    for value in [0, 1, "true", "", [], {}]:
        assert refusal(parse, **{name: value}).param == name


@pytest.mark.parametrize("parse", [chat, completion])
def test_stream_options_ask_for_usage(parse):
    options = {"include_usage": True, "include_obfuscation": False, "other": 1}
    assert parse(stream=True, stream_options=options).common.include_usage
    assert not parse(stream=True, stream_options={"include_usage": None}).common.include_usage
    for value in [[], "usage", 1, {"include_usage": 1}, {"include_usage": "yes"}]:
        param = "stream_options" + (".include_usage" if isinstance(value, dict) else "")
        assert refusal(parse, stream_options=value).param == param


@pytest.mark.parametrize("parse", [chat, completion])
def test_stop_is_a_string_or_some_strings(parse):
    assert parse(stop="end").common.stop == ("end",)
    assert parse(stop=["a", "b", "a", ""]).common.stop == ("a", "b")
    assert parse(stop="").common.stop == parse(stop=[]).common.stop == ()
    assert len(parse(stop=[str(n) for n in range(64)]).common.stop) == 64
    bad = [
        5, True, {}, [5], [None], [["a"]], ["a"] * 65, [str(n) for n in range(5000)],
        "x" * 1025, ["x" * 10**6], "\ud800", ["ok", "\udfff"],
    ]  # fmt: skip
    for value in bad:
        assert refusal(parse, stop=value).param == "stop"


@pytest.mark.parametrize("parse", [chat, completion])
def test_the_model_only_names(parse):
    assert parse(model="demo") == parse(model="alias") == parse()
    for name in ["gpt-4", "", "../demo", "DEMO", "demo\x00", "x" * 10**6]:
        error = refusal(parse, 404, model=name)
        assert (error.param, error.code) == ("model", "model_not_found")
    for name in [5, True, [], {}, "\ud800"]:
        assert refusal(parse, model=name).param == "model"


@pytest.mark.parametrize("parse", [chat, completion])
@pytest.mark.parametrize(
    ("name", "idle", "taken", "refused"),
    [
        ("n", [1], [2, MAX_CHOICES], [0, -1, MAX_CHOICES + 1, 1.5]),
        ("min_tokens", [0], [1, 2**31 - 1], [-1, 2**31, 1.5]),
    ],
)
def test_counts_are_taken_in_their_range_and_refused_by_name(parse, name, idle, taken, refused):
    for value in idle:
        assert parse(**{name: value}) == parse()
    for value in taken:
        assert getattr(parse(**{name: value}).common, name) == value
    for value in refused + NOT_NUMBERS:
        error = refusal(parse, **{name: value})
        assert error.param == name and error.code is None


@pytest.mark.parametrize("parse", [chat, completion])
def test_logit_bias_maps_token_ids_to_numbers(parse):
    assert parse(logit_bias={}) == parse()
    biases = parse(logit_bias={"5": 1, "0": -100, "7": 100.0, "007": 2}).common.logit_bias
    assert biases == ((5, 1.0), (0, -100.0), (7, 100.0), (7, 2.0))
    for value in [[], "x", 1, True, [[5, 1]]]:
        assert refusal(parse, logit_bias=value).param == "logit_bias"
    for key in ["", "x", "-1", "1.0", "1e3", " 1", "1_0", "٣", "²", "9" * 11, "9" * 10**6]:
        assert refusal(parse, logit_bias={key: 1}).param == "logit_bias"
    for value in [None, -100.5, 101, *NOT_NUMBERS]:
        assert refusal(parse, logit_bias={"5": value}).param == "logit_bias.5"
    assert len(parse(logit_bias={str(n): 1 for n in range(MAX_TOKEN_IDS)}).common.logit_bias)
    many = {str(n): 1 for n in range(MAX_TOKEN_IDS + 1)}
    assert refusal(parse, logit_bias=many).param == "logit_bias"


@pytest.mark.parametrize("parse", [chat, completion])
def test_stop_token_ids_are_token_ids(parse):
    assert parse(stop_token_ids=[]) == parse()
    assert parse(stop_token_ids=[5, 0, 5]).common.stop_token_ids == (5, 0)
    wrong = [{}, 5, "1", True, ["1"], [-1], [1.0], [True], [None], [2**31], [[1]]]
    for value in [*wrong, list(range(MAX_TOKEN_IDS + 1))]:
        assert refusal(parse, stop_token_ids=value).param == "stop_token_ids"


def test_token_ids_outside_the_vocabulary_are_refused_by_name():
    for common in (
        Common(),
        Common(logit_bias=((9, 1.0),), stop_token_ids=(0, 9)),
    ):
        check_vocabulary(common, 10)
    for name, common in (
        ("logit_bias", Common(logit_bias=((1, 1.0), (10, 1.0)))),
        ("stop_token_ids", Common(stop_token_ids=(1, 10**9))),
    ):
        error = refusal(lambda common=common: check_vocabulary(common, 10))
        assert error.param == name and "from 0 to 9" in error.message


def test_the_models_own_sampling_is_the_default():
    own = Served("demo", sampling=Sampling(temperature=0.6, top_p=0.9, top_k=20, min_p=0.1))
    assert parse_chat({"messages": MESSAGES}, own).common.sampling == own.sampling
    asked = parse_chat({"messages": MESSAGES, "temperature": 0, "top_k": 0}, own).common.sampling
    assert (asked.temperature, asked.top_p, asked.top_k) == (0, 0.9, 0)


ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=20)
    | st.sampled_from(["user", "text", "demo", "tool", "auto", 10**400, -(2**63), 1e308]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=5) | st.sampled_from(["role", "type"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)
ANY_MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool"]) | ANY_JSON},
    optional={
        "content": ANY_JSON | st.lists(st.fixed_dictionaries({"type": ANY_JSON, "text": ANY_JSON})),
        "tool_calls": ANY_JSON | st.lists(st.fixed_dictionaries({"function": ANY_JSON})),
        "name": ANY_JSON,
        "reasoning_content": ANY_JSON,
    },
)
ANY_REQUEST = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys([*FIELD_NAMES, "prompt"], ANY_JSON)
    | {"messages": st.lists(ANY_MESSAGE, max_size=3) | ANY_JSON},
)


@settings(max_examples=150)
@given(ANY_REQUEST)
def test_any_json_gives_a_request_or_a_refusal(body):
    for parse, kind in ((parse_chat, ChatRequest), (parse_completion, CompletionRequest)):
        try:
            assert isinstance(parse(body, SERVED), kind)
        except ApiError as error:
            assert error.status in (400, 404)
            json.dumps(error.body()).encode()


@settings(max_examples=300)
@given(st.binary(max_size=200) | ANY_JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_give_an_object_or_a_refusal(raw):
    try:
        assert isinstance(parse_json(raw), dict)
    except ApiError as error:
        assert error.status == 400
        json.dumps(error.body()).encode()
