"""What a request may say about its answer's format and its tools."""

import json

import pytest

from server.api.fields import read, record
from server.api.formats import FORMATS, TOOLS, format_of, tools_of
from server.api.requests import MAX_TOOLS
from server.protocol.errors import ApiError
from server.protocol.requests import Format, ToolChoice

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def parse_format(body: dict) -> Format | None:
    return format_of(read(record(FORMATS), body))


def parse_tools(body: dict) -> tuple[list, ToolChoice, bool]:
    return tools_of(read(record(TOOLS), body))


def refused(parse, body: dict, field: str) -> str:
    with pytest.raises(ApiError) as caught:
        parse(body)
    assert (caught.value.status, caught.value.param) == (400, field)
    return caught.value.message


def tool(name: object = "f", **function: object) -> dict:
    return {"type": "function", "function": {"name": name, **function}}


class TestFormat:
    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"response_format": None},
            {"response_format": {"type": "text"}},
            {"guided_json": None, "guided_regex": None, "structured_outputs": None},
            {"structured_outputs": {"json": None, "json_object": False}},
            {"guided_decoding_backend": "auto", "structural_tag": None},
        ],
    )
    def test_absent(self, body):
        assert parse_format(body) is None

    def test_json_object(self):
        body = {"response_format": {"type": "json_object"}}
        assert parse_format(body) == Format("json_object", None, False, "response_format")

    @pytest.mark.parametrize(("strict", "expected"), [(True, True), (False, False), (None, False)])
    def test_json_schema(self, strict, expected):
        inner = {"name": "n", "schema": SCHEMA, "strict": strict, "description": "d"}
        body = {"response_format": {"type": "json_schema", "json_schema": inner}}
        field = "response_format.json_schema.schema"
        assert parse_format(body) == Format("json_schema", SCHEMA, expected, field)

    @pytest.mark.parametrize(
        ("name", "value", "kind"),
        [
            ("json", SCHEMA, "json_schema"),
            ("regex", "a+", "regex"),
            ("choice", ["a", "b"], "choice"),
            ("grammar", 'start: "a"', "lark"),
        ],
    )
    def test_vllms_fields(self, name, value, kind):
        old, new = f"guided_{name}", f"structured_outputs.{name}"
        assert parse_format({old: value}) == Format(kind, value, False, old)
        body = {"structured_outputs": {name: value}}
        assert parse_format(body) == Format(kind, value, False, new)

    def test_a_schema_may_come_as_json_text(self):
        assert parse_format({"guided_json": json.dumps(SCHEMA)}).value == SCHEMA

    def test_a_choice_given_twice_is_one(self):
        assert parse_format({"guided_choice": ["a", "b", "a"]}).value == ["a", "b"]

    def test_sglang_s_names(self):
        assert parse_format({"regex": "a+"}) == Format("regex", "a+", field="regex")
        assert parse_format({"ebnf": "root ::= x"}) == Format("ebnf", "root ::= x", field="ebnf")

    def test_json_object_among_structured_outputs(self):
        found = parse_format({"structured_outputs": {"json_object": True}})
        assert found == Format("json_object", field="structured_outputs.json_object")

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({"guided_json": SCHEMA, "guided_regex": "a"}, "guided_regex"),
            (
                {"response_format": {"type": "json_object"}, "guided_choice": ["a"]},
                "guided_choice",
            ),
            (
                {"structured_outputs": {"regex": "a", "json_object": True}},
                "structured_outputs.json_object",
            ),
        ],
    )
    def test_more_than_one(self, body, field):
        assert "Only one of" in refused(parse_format, body, field)

    def test_text_beside_another_is_no_second(self):
        body = {"response_format": {"type": "text"}, "guided_regex": "a"}
        assert parse_format(body).kind == "regex"

    @pytest.mark.parametrize("kind", ["xml", "structural_tag", "JSON", 5, None, ["text"], {}])
    def test_an_unknown_type_is_named(self, kind):
        body = {"response_format": {"type": kind}}
        assert repr(kind) in refused(parse_format, body, "response_format.type")

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({"response_format": "json"}, "response_format"),
            ({"response_format": {}}, "response_format.type"),
            ({"guided_json": []}, "guided_json"),
            ({"guided_json": "{"}, "guided_json"),
            ({"guided_json": "[" * 5000}, "guided_json"),
            ({"guided_json": "true"}, "guided_json"),
            ({"guided_regex": ""}, "guided_regex"),
            ({"guided_regex": 5}, "guided_regex"),
            ({"guided_regex": "\ud800"}, "guided_regex"),
            ({"guided_choice": []}, "guided_choice"),
            ({"guided_choice": "a"}, "guided_choice"),
            ({"guided_choice": ["a", 1]}, "guided_choice"),
            ({"guided_grammar": {}}, "guided_grammar"),
            ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
            ({"structural_tag": "{}"}, "structural_tag"),
            ({"structured_outputs": []}, "structured_outputs"),
            ({"structured_outputs": {}}, "structured_outputs"),
            ({"structured_outputs": {"a": None}}, "structured_outputs"),
            ({"structured_outputs": {"json": 5}}, "structured_outputs.json"),
            ({"structured_outputs": {"json_object": 1}}, "structured_outputs.json_object"),
            ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        ],
    )
    def test_wrong_values(self, body, field):
        refused(parse_format, body, field)

    @pytest.mark.parametrize("given", [{}, {"a": None}, {"json": None}, {"a": 5}])
    def test_outputs_without_any_are_told_which_there_are(self, given):
        """They were taken for none, and the answer was free."""
        message = refused(parse_format, {"structured_outputs": given}, "structured_outputs")
        assert f": {given}. It must be an object with one of json, regex, choice" in message

    @pytest.mark.parametrize(
        ("inner", "field"),
        [
            (None, ""),
            ("x", ""),
            ({"name": "n"}, ".schema"),
            ({"name": "n", "schema": True}, ".schema"),
            ({"name": 5, "schema": SCHEMA}, ".name"),
            ({"name": "n", "schema": SCHEMA, "strict": "yes"}, ".strict"),
        ],
    )
    def test_wrong_json_schema(self, inner, field):
        body = {"response_format": {"type": "json_schema", "json_schema": inner}}
        refused(parse_format, body, f"response_format.json_schema{field}")


class TestTools:
    @pytest.mark.parametrize("body", [{}, {"tools": None}, {"tools": []}, {"functions": []}])
    def test_absent(self, body):
        assert parse_tools(body) == ([], ToolChoice("none"), True)

    def test_as_they_come(self):
        tools = [tool("a", description="d", parameters=SCHEMA, strict=True), tool("b.c-d_1")]
        assert parse_tools({"tools": tools}) == (tools, ToolChoice("auto"), True)

    @pytest.mark.parametrize(
        ("given", "choice"),
        [
            (None, ToolChoice("auto")),
            ("auto", ToolChoice("auto")),
            ("none", ToolChoice("none")),
            ("required", ToolChoice("required")),
            ({"type": "function", "function": {"name": "b"}}, ToolChoice("named", "b")),
        ],
    )
    def test_choice(self, given, choice):
        body = {"tools": [tool("a"), tool("b")], "tool_choice": given}
        assert parse_tools(body)[1] == choice

    @pytest.mark.parametrize(("given", "parallel"), [(None, True), (True, True), (False, False)])
    def test_parallel(self, given, parallel):
        assert parse_tools({"tools": [tool()], "parallel_tool_calls": given})[2] is parallel

    @pytest.mark.parametrize("given", ["none", "auto", None])
    def test_no_tools_and_none_asked_for(self, given):
        assert parse_tools({"tool_choice": given})[1] == ToolChoice("none")

    @pytest.mark.parametrize(
        "given",
        [
            "any",
            5,
            [],
            {},
            {"type": "function"},
            {"type": "function", "function": {}},
            {"type": "function", "function": {"name": "absent"}},
            {"type": "function", "name": "f"},
            {"type": "allowed_tools", "allowed_tools": {}},
        ],
    )
    def test_wrong_choice(self, given):
        refused(parse_tools, {"tools": [tool()], "tool_choice": given}, "tool_choice")

    @pytest.mark.parametrize("given", ["required", {"type": "function", "function": {"name": "f"}}])
    @pytest.mark.parametrize("tools", [None, []])
    def test_a_forced_call_without_tools(self, given, tools):
        refused(parse_tools, {"tools": tools, "tool_choice": given}, "tool_choice")

    @pytest.mark.parametrize("name", ["", "a b", "x" * 65, "é", "a\n", None, 5, ["f"]])
    def test_wrong_names(self, name):
        refused(parse_tools, {"tools": [tool("ok"), tool(name)]}, "tools[1].function.name")

    @pytest.mark.parametrize(
        ("one", "field"),
        [
            ("f", ""),
            ({}, ".type"),
            ({"type": "custom"}, ".type"),
            ({"type": "function"}, ".function"),
            ({"type": "function", "function": "f"}, ".function"),
            (tool(description=5), ".function.description"),
            (tool(strict="yes"), ".function.strict"),
            (tool(parameters=[]), ".function.parameters"),
            (tool(parameters={"type": "string"}), ".function.parameters.type"),
        ],
    )
    def test_wrong_tools(self, one, field):
        refused(parse_tools, {"tools": [one]}, f"tools[0]{field}")

    def test_two_of_one_name(self):
        refused(parse_tools, {"tools": [tool(), tool()]}, "tools[1].function.name")

    def test_too_many(self):
        tools = [tool(f"f{n}") for n in range(MAX_TOOLS + 1)]
        refused(parse_tools, {"tools": tools}, "tools")

    def test_wrong_shapes(self):
        refused(parse_tools, {"tools": {}}, "tools")
        refused(parse_tools, {"parallel_tool_calls": 1}, "parallel_tool_calls")

    def test_the_old_functions_are_refused_with_what_to_use(self):
        assert "'tools'" in refused(parse_tools, {"functions": [{"name": "f"}]}, "functions")
