"""Kinds and fields: each reads a value and describes it, and the two agree."""

import json
import re

import pytest
from jsonschema import Draft202012Validator

from server.api.fields import Field, needed, read, record, tagged
from server.api.kinds import (
    ANYTHING,
    FLAG,
    OBJECT,
    TEXT,
    array,
    as_given,
    as_one,
    either,
    never,
    number,
    one_of,
    table,
    text,
    then,
    whole,
    word,
)
from server.api.openapi import tables
from server.api.openapi.requests import request_schemas
from server.api.requests import GENERATING, OF_COMMON, OF_SAMPLING, SAMPLING, common_of, parse_json
from server.protocol.errors import ApiError
from server.protocol.requests import Served
from tests.api.test_openapi import check

PATTERN = re.compile("[0-9]{1,3}")
VALUES = [
    None, True, False, 0, 1, -1, 2, 5, 64, 64.0, 0.5, 1e300, 10**400, "", "a", "abc", "12", "é",
    "x" * 100, [], ["a"], ["a", "b", "c", "d"], [1], [[1]], [None], {}, {"a": 1}, {"1": 1},
    {"type": "a"}, {"type": "a", "x": "y"}, {"type": "b", "n": 3}, {"type": ["a"]}, {"type": "c"},
    {"x": "y"}, {"1": 1, "2": 2, "3": 2},
]  # fmt: skip
KINDS = {
    "number": number(0, 2),
    "number above": number(0, 2, above=True),
    "whole": whole(-1, 64),
    "ids": array(whole(0, 64, point=False), 1, 3, of="ids"),
    "text": TEXT,
    "short text": text(1, 3),
    "word": word(PATTERN, "some digits"),
    "flag": FLAG,
    "object": OBJECT,
    "one of": one_of("a", "abc"),
    "false": one_of(False),
    "never": never(False),
    "table": table(number(0, 2), 2, PATTERN, "digits"),
    "either": either({str: text(most=3), list: array(TEXT, most=3)}, "texts"),
    "as one": as_one(array(TEXT), "texts"),
    "as given": as_given(record({"a": whole(0, 1)})),
    "record": record({"a": FLAG, "x": needed(TEXT)}),
    "tagged": tagged("type", {"a": {"x": needed(TEXT)}, "b": {"n": whole(0, 3)}}, "a or b"),
    "default": tagged("type", {"a": {"x": TEXT}}, "a", default="a"),
    "ignored": tagged("type", {"a": {"x": needed(TEXT)}}, "a", ignored="Another."),
    "ignored by default": tagged("type", {"a": {"x": TEXT}}, "a", default="a", ignored="Another."),
    "anything": ANYTHING,
}


def refusal(kind, value) -> ApiError | None:
    try:
        read(record({"f": needed(kind)}), {"f": value})
    except ApiError as error:
        return error
    return None


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_takes_what_it_describes_and_nothing_else(name):
    kind = KINDS[name]
    Draft202012Validator.check_schema(kind.schema)
    valid = Draft202012Validator(kind.schema).is_valid
    for value in VALUES:
        if value is not None:  # absent, for fields
            assert (refusal(kind, value) is None) == valid(value), value


@pytest.mark.parametrize("name", [name for name in KINDS if name != "anything"])
def test_a_refusal_names_field_value_and_what_is_allowed(name):
    refused = [error for value in VALUES if (error := refusal(KINDS[name], value))]
    assert refused
    for error in refused:
        assert error.status == 400 and error.param.partition(".")[0].partition("[")[0] == "f"
        assert repr(error.param) in error.message and len(error.message) < 300
        assert "It must be " in error.message or "is not supported" in error.message
        json.dumps(error.body()).encode()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"a": [{"b": {"c": 1}}, {"b": {"c": "x"}}]}, "a[1].b.c"),
        ({"a": [{}]}, "a[0].b"),
        ({"a": [{"b": 1}]}, "a[0].b"),
        ({"a": 1}, "a"),
        ({"a": [None]}, "a[0]"),
        ({"a": [{"b": {"c": 1}}] * 5}, "a"),
        ({"t": {"1": 1, "2": "x"}}, "t.2"),
        ({"t": {"x": 1}}, "t"),
    ],
)
def test_the_path_leads_to_what_is_wrong(body, param):
    inner = record({"b": needed(record({"c": whole(0, 9)}))})
    kind = record({"a": array(inner, most=4), "t": table(whole(0, 9), 4, PATTERN, "digits")})
    with pytest.raises(ApiError) as caught:
        read(kind, body)
    assert caught.value.param == param


def test_lone_surrogates_are_refused_wherever_text_is_read_and_nowhere_else():
    kind = record(
        {
            "a": TEXT,
            "o": OBJECT,
            "l": array(text(1, 9)),
            "w": as_one(array(TEXT), ""),
            "x": ANYTHING,
            "g": as_given(record({"b": TEXT})),
            "t": table(TEXT, 4, re.compile("(?s:.*)"), "keys"),
        }
    )
    odd = parse_json(b'{"o": {"a": ["\\u00e4", 1]}, "unknown": "\\ud800", "\\ud800": 1}')
    assert read(kind, odd) == {"o": {"a": ["\u00e4", 1]}}
    for name, body in (
        ("a", "\ud800"),
        ("l[1]", ["ok", "\ud800"]),
        ("w", ["ok", "\ud800"]),
        ("o", {"\ud800": 1}),
        ("o.a[1].b", {"a": [None, {"b": "\udfff"}]}),
        ("o.a", {"a": {"\ud800": 1}}),
        ("x[0]", ["\ud800"]),
        ("x", "\ud800"),
        ("g.other", {"b": "fine", "other": "\ud800"}),
        ("g", {"\ud800": 1}),
        ("t", {"\ud800": "x"}),
        ("t.a", {"a": "\ud800"}),
    ):
        with pytest.raises(ApiError, match="valid Unicode") as caught:
            read(kind, {name[0]: body})
        assert caught.value.param == name


def test_the_first_that_is_wrong_ends_the_reading():
    """A library that collects every error first would hold half a million of them."""
    seen = []
    counted = then(ANYTHING, seen.append)
    kind = record({"a": array(record({"n": counted, "x": FLAG}))})
    with pytest.raises(ApiError):
        read(kind, {"a": [{"n": 1, "x": 5}] * 1000})
    assert len(seen) == 1
    with pytest.raises(ApiError):  # counted before anything of it is read
        read(record({"t": table(counted, 10, PATTERN, "")}), {"t": dict.fromkeys("123456789ab")})
    assert len(seen) == 1


# One place for a field.


def test_a_sampling_parameter_is_added_in_one_place(monkeypatch):
    """Read, refused with words, described and listed, of one line in one table."""
    fields = {**GENERATING, "warmth": Field(number(0, 3), "How warm.", cost="a shiver")}
    body = record(fields, name="ChatRequest")
    assert read(body, {"warmth": 1}) == {"warmth": 1.0}
    with pytest.raises(ApiError, match=r"'warmth': 4. It must be a number from 0 to 3"):
        read(body, {"warmth": 4})
    monkeypatch.setattr("server.api.openapi.requests.BODIES", (body,))
    described = request_schemas("m")["ChatRequest"]["properties"]["warmth"]
    assert (described["minimum"], described["maximum"]) == (0, 3)
    monkeypatch.setattr(tables, "ROUTES", {"All": fields})
    row = "| `warmth` | a number from 0 to 3 | How warm. |"
    assert row in tables.field_tables()["All"]
    assert "| `warmth` | a number from 0 to 3 | a shiver |" in tables.costs()


def test_what_is_read_under_the_engines_own_names_reaches_it():
    assert set(SAMPLING) == OF_SAMPLING
    asked = {"seed": 5, "min_tokens": 3, "n": 2, "stop": ("a",), "unheard": 1}
    common = common_of(asked, Served("m"), max_tokens=7)
    assert (common.sampling.seed, common.min_tokens, common.n, common.stop) == (5, 3, 2, ("a",))
    assert common.max_tokens == 7 and {"n", "stop", "stream"} <= OF_COMMON


def test_every_component_is_described_with_its_fields():
    for name, schema in request_schemas("m").items():
        assert "properties" in schema or schema["anyOf"], name
    check({"$ref": "#/components/schemas/ChatMessage"}, {"role": "user", "content": "x"})
