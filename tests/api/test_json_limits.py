"""What a JSON text may hold, and what it costs to know."""

import json
import time

import pytest

from server.api.json_limits import KEY_VALUES, MAX_VALUES, InnerJson, TooManyValues, cost, loads
from server.api.requests import parse_json
from server.protocol.errors import ApiError

# Of this thread, for the largest that is allowed; forty times what it takes here.
PARSE_CPU_S = 8.0


def values(item) -> int:
    """Values of a parsed text, keys as well."""
    if isinstance(item, dict):
        return 1 + sum(KEY_VALUES + values(value) for value in item.values())
    if isinstance(item, list):
        return 1 + sum(map(values, item))
    return 1


@pytest.mark.parametrize(
    "text",
    [
        "1", "[]", "{}", '""', '[1, "a", [], {}, null]', '{"a": {"b": [1, 2, {"c": 3}]}}',
        r'["\\", ",[{:", "\\\"", "\"[", "a\\\\\",["]', r'{"\\": "\\\\", "\"": [",", ":"]}',
        '["' + r"\\" * 5 + r'\"' + '", 1]', " [ 1 ,\n2 ] ",
    ],
)  # fmt: skip
def test_the_cost_is_never_less_than_the_values(text):
    """Nor when it looks only at what is outside of strings."""
    plain = cost(text, MAX_VALUES)
    outside = cost(text, plain - 1)
    assert outside > plain - 1 or values(json.loads(text)) <= outside <= plain
    assert values(json.loads(text)) <= plain


def test_what_strings_hold_does_not_count_when_it_matters():
    text = json.dumps(["[{,:" * MAX_VALUES, r"\",[" * 1000, "\\"])
    assert cost(text, MAX_VALUES) < 10
    assert loads(text)[0].startswith("[{,:")


@pytest.mark.parametrize("item", ["[],", "{},", "0,", '"",', "[[]],", '{"a":1},', "1.5,", "null,"])
def test_a_text_of_too_many_values_is_not_parsed(item, monkeypatch):
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("it was parsed"))
    with pytest.raises(ApiError) as caught:
        parse_json(b'{"x": [' + item.encode() * (MAX_VALUES + 1) + b"0]}")
    assert caught.value.status == 400 and str(MAX_VALUES) in caught.value.message


def test_a_key_costs_more_than_a_value():
    """It is hashed and looked up: a million take as long as four million numbers."""
    body = "{" + ",".join(f'"k{n}":0' for n in range(MAX_VALUES // KEY_VALUES)) + "}"
    with pytest.raises(TooManyValues):
        loads(body)


@pytest.mark.parametrize(
    "text",
    [
        '{"x": [' + "[]," * (MAX_VALUES // 2 - 10) + "0]}",
        '{"x": [' + "{}," * (MAX_VALUES // 2 - 10) + "0]}",
        '{"x": [' + "12345," * (MAX_VALUES - 10) + "0]}",
        "{" + ",".join(f'"k{n}":0' for n in range(MAX_VALUES // (KEY_VALUES + 1) - 10)) + "}",
        '{"x": [' + ("9" * 4300 + ",") * 7000 + "0]}",
        '{"x": "' + r"\u0041" * 5 * 2**20 + '"}',
        '{"x": "' + r"\"" * 15 * 2**20 + '"}',
    ],
    ids=["arrays", "objects", "numbers", "keys", "digits", "escapes", "quotes"],
)
def test_the_largest_that_is_allowed_takes_little_of_a_core(text):
    began = time.thread_time()
    assert parse_json(text.encode())
    assert time.thread_time() - began < PARSE_CPU_S


def test_what_strings_of_one_request_hold_has_one_limit():
    inner = InnerJson()
    half = "[" + "0," * (MAX_VALUES // 2) + "0]"
    assert len(inner.loads(half)) == MAX_VALUES // 2 + 1
    with pytest.raises(TooManyValues):
        inner.loads(half)
    assert InnerJson().loads('{"a": 1}') == {"a": 1}
    with pytest.raises(ValueError):
        InnerJson().loads("{")
