"""Grammars of forced calls."""

import json

import jsonschema
import pytest

from server.protocol.errors import ApiError
from server.protocol.requests import ToolChoice
from tests.support.grammar_cases import SEEDS, tool
from tests.support.grammar_walks import is_set

WEATHER = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/name"}, "days": {"type": "integer", "maximum": 9}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"name": {"type": "string", "maxLength": 8}},
}
SEARCH = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "https://example.com/search",
    "properties": {
        "default": {"$ref": "#/definitions/query"},
        "any": {"type": "array", "items": {"$ref": "#/definitions/query"}, "maxItems": 2},
    },
    "required": ["default"],
    "additionalProperties": False,
    "definitions": {"query": {"type": "string", "enum": ["x", "y"]}},
}
TOOLS = [tool("get_weather", WEATHER), tool("get", SEARCH), tool("now"), tool("any", {})]
BY_NAME = {"get_weather": WEATHER, "get": {**SEARCH, "type": "object"}, "any": {"type": "object"}}


def check_arguments(name: str, arguments) -> None:
    if name == "now":
        assert arguments == {}
    else:
        jsonschema.validate(arguments, BY_NAME[name])


class TestCalls:
    @pytest.mark.parametrize("name", ["get_weather", "get", "now", "any"])
    def test_a_named_call_is_its_arguments(self, walker, name):
        grammar = walker.grammars.compile_calls(TOOLS, ToolChoice("named", name), True)
        for seed in SEEDS:
            arguments = json.loads(walker.walk(grammar.matcher(), seed))
            assert isinstance(arguments, dict)
            check_arguments(name, arguments)

    def test_required_calls_are_an_array_of_at_least_one(self, walker):
        grammar = walker.grammars.compile_calls(TOOLS, ToolChoice("required"), True)
        lengths, names = set(), set()
        for seed in range(24):
            calls = json.loads(walker.walk(grammar.matcher(), seed, most=4000))
            lengths.add(len(calls))
            for call in calls:
                assert list(call) == ["name", "arguments"]
                names.add(call["name"])
                check_arguments(call["name"], call["arguments"])
        assert 0 not in lengths
        assert max(lengths) > 1
        assert names == {"get_weather", "get", "now", "any"}

    def test_not_parallel_is_exactly_one(self, walker):
        grammar = walker.grammars.compile_calls(TOOLS, ToolChoice("required"), False)
        for seed in range(12):
            assert len(json.loads(walker.walk(grammar.matcher(), seed, most=4000))) == 1

    def test_calls_are_on_one_line(self, byte):
        matcher = byte.grammars.compile_calls(TOOLS, ToolChoice("required"), True).matcher()
        for token in b'[{"name": "get", "arguments":':
            matcher.accept(token)
        assert not is_set(matcher.mask(), ord("\n"))
        assert is_set(matcher.mask(), ord(" "))
        assert is_set(matcher.mask(), ord("{"))

    @pytest.mark.parametrize("choice", [ToolChoice("required"), ToolChoice("named", "bad")])
    def test_the_tool_with_an_impossible_schema_is_named(self, byte, choice):
        tools = [tool("now"), tool("bad", {"properties": {"a": {"type": "strnig"}}})]
        with pytest.raises(ApiError) as caught:
            byte.grammars.compile_calls(tools, choice, True)
        assert caught.value.param == "tools[1].function.parameters"
        assert "strnig" in caught.value.message

    def test_a_strict_tool_is_strict_beside_others(self, byte):
        unknown = {"type": "object", "properties": {"a": {"type": "string", "format": "phone"}}}
        byte.grammars.compile_calls([tool("a", unknown)], ToolChoice("required"), True)
        tools = [tool("a", unknown), tool("b", unknown, strict=True)]
        with pytest.raises(ApiError) as caught:
            byte.grammars.compile_calls(tools, ToolChoice("required"), True)
        assert caught.value.param == "tools[1].function.parameters"

    def test_tools_that_are_not_named_do_not_matter(self, byte):
        tools = [tool("now"), tool("bad", {"properties": {"a": {"type": "strnig"}}})]
        grammar = byte.grammars.compile_calls(tools, ToolChoice("named", "now"), True)
        assert byte.walk(grammar.matcher(), 0) == "{}"
