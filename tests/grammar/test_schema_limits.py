"""What a schema may be, and what it costs to say so: bodies have megabytes, schemas do not."""

import json

import pytest

from server.api.fields import read, record
from server.api.formats import FORMATS, format_of
from server.grammar import schema_limits
from server.grammar.grammars import Grammars
from server.grammar.schema_limits import (
    MAX_SCHEMA_BYTES,
    MAX_SCHEMA_DEPTH,
    MAX_TOOLS_BYTES,
    MAX_VISITS,
    check_schema,
    measure_schema,
)
from server.protocol.errors import ApiError
from server.protocol.requests import ToolChoice

MANY = 3_000_000


def refusal(schema) -> ApiError:
    with pytest.raises(ApiError) as caught:
        check_schema(schema, "f")
    assert (caught.value.status, caught.value.param) == (400, "f")
    return caught.value


class Written(Exception):
    """The schema was turned into text."""


@pytest.mark.parametrize(
    "schema",
    [
        {"a": [[]] * MANY},
        {"a": [{}] * MANY},
        {"a": [0] * MANY},
        {"a": "x" * MANY},
        {"a": ["x" * 1000] * 1000},
        {"x" * MANY: 1},
        {"enum": [{"a": ["x" * 1000] * 100}] * 10},
    ],
)
def test_one_that_is_far_too_large_is_refused_without_writing_it(schema, monkeypatch):
    """Writing 31 MB, to know that it is too much, took seconds and held Python's lock."""

    def write(_):
        raise Written

    monkeypatch.setattr(schema_limits.json, "dumps", write)
    assert f"more than {MAX_SCHEMA_BYTES} bytes" in refusal(schema).message


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"a": [], "b": {}},
        {"type": "object", "properties": {"né": {"enum": ["x", 1, None, True, 1.5]}}},
        {"a": [[[["x" * 50]]]] * 50},
    ],
)
def test_the_measure_is_never_more_than_the_text(schema):
    assert measure_schema(schema, "f") <= len(json.dumps(schema))


def test_what_is_let_in_is_let_in_to_the_last_byte():
    text = "x" * (MAX_SCHEMA_BYTES - len(json.dumps({"description": ""})))
    check_schema({"description": text}, "f")
    refusal({"description": text + "x"})


def test_depth():
    deep: dict = {}
    for _ in range(MAX_SCHEMA_DEPTH - 1):
        deep = {"items": deep}
    check_schema(deep, "f")
    assert "deeper" in refusal({"items": deep}).message


def test_the_search_for_endless_values_looks_at_so_many_objects_at_most(monkeypatch):
    """Each round of it looks at every object, and a chain of references needs many rounds."""
    looked = []
    real = schema_limits._could_end

    def could_end(*arguments):
        looked.append(1)
        return real(*arguments)

    monkeypatch.setattr(schema_limits, "_could_end", could_end)
    chain = {str(n): {"allOf": [{"$ref": f"#/d/{n + 1}"}]} for n in range(9000)}
    check_schema({"$ref": "#/d/0", "d": chain}, "f")
    assert len(looked) <= MAX_VISITS + 2 * len(chain) + 2


def test_the_tools_of_a_forced_call_have_a_limit_together():
    one = {"type": "object", "description": "x" * (MAX_SCHEMA_BYTES - 1000)}
    tools = [
        {"type": "function", "function": {"name": f"t{n}", "parameters": one}}
        for n in range(MAX_TOOLS_BYTES // MAX_SCHEMA_BYTES + 1)
    ]
    with pytest.raises(ApiError) as caught:
        Grammars(object(), 100, {1}).compile_calls(tools, ToolChoice("required"), True)
    assert (caught.value.status, caught.value.param) == (400, "tools")
    assert str(MAX_TOOLS_BYTES) in caught.value.message


def test_a_schema_that_is_text_is_measured_before_it_is_parsed(monkeypatch):
    def parse(_):
        raise Written

    monkeypatch.setattr("server.api.json_limits.json.loads", parse)
    with pytest.raises(ApiError) as caught:
        format_of(read(record(FORMATS), {"guided_json": "[" + "[]," * MAX_SCHEMA_BYTES + "[]]"}))
    assert (caught.value.status, caught.value.param) == (400, "guided_json")
    with pytest.raises(Written):
        format_of(read(record(FORMATS), {"guided_json": "{}"}))
