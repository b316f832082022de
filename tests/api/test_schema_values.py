"""Values that JSON is parsed to and no compiler of grammars takes, wherever a schema may stand."""

import json

import pytest

from tests.support.api_service import Service

ASK = {"messages": [{"role": "user", "content": "x"}]}
RESPOND = {"input": "x"}
MESSAGE = ASK | {"max_tokens": 5}
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
TOOL = {"name": "f", "parameters": None}
# Where a schema stands: the route, the body around it (None in its place), and its field.
PLACES = [
    (CHAT, ASK | {"guided_json": None}, "guided_json"),
    (COMPLETIONS, {"prompt": "x", "guided_json": None}, "guided_json"),
    (CHAT, ASK | {"structured_outputs": {"json": None}}, "structured_outputs.json"),
    (
        CHAT,
        ASK
        | {
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": None}}
        },
        "response_format.json_schema.schema",
    ),
    (
        CHAT,
        ASK | {"tools": [{"type": "function", "function": TOOL}], "tool_choice": "required"},
        "tools[0].function.parameters",
    ),
    (
        RESPONSES,
        RESPOND | {"text": {"format": {"type": "json_schema", "name": "n", "schema": None}}},
        "text.format.schema",
    ),
    (
        RESPONSES,
        RESPOND | {"tools": [{"type": "function"} | TOOL], "tool_choice": "required"},
        "tools[0].parameters",
    ),
    (
        RESPONSES,
        RESPOND
        | {
            "tools": [
                {"type": "namespace", "name": "n", "tools": [{"type": "function"} | TOOL]},
            ]
        },
        "tools[0].tools[0].parameters",
    ),
    (
        MESSAGES,
        MESSAGE | {"output_config": {"format": {"type": "json_schema", "schema": None}}},
        "output_config.format.schema",
    ),
    (
        MESSAGES,
        MESSAGE | {"output_format": {"type": "json_schema", "schema": None}},
        "output_format.schema",
    ),
    (
        MESSAGES,
        MESSAGE | {"tools": [{"name": "f", "input_schema": None}], "tool_choice": {"type": "any"}},
        "tools[0].input_schema",
    ),
]
# A schema as JSON text, what in it is refused, and how it is quoted.
ODD = [
    (r'{"enum": ["ok", "\ud800"]}', ".enum[1]", r"'\ud800'"),
    (r'{"const": "\udfff"}', ".const", r"'\udfff'"),
    (r'{"pattern": "a\ud800"}', ".pattern", r"'a\ud800'"),
    (r'{"description": "\ud800"}', ".description", r"'\ud800'"),
    (r'{"properties": {"\ud800": {}}}', ".properties", r"'\ud800'"),
    (r'{"$defs": {"a": {"const": [{"b": "\ud800"}]}}}', ".$defs.a.const[0].b", r"'\ud800'"),
    ('{"const": 1e400}', ".const", "inf"),
]


def around(body: object, schema: str) -> str:
    return json.dumps(body).replace("null", schema)


def refusal(service: Service, path: str, body: str) -> str:
    answer = service.ask("POST", path, body.encode())
    assert answer.status == 400, answer.body
    assert not service.engine.seen
    return answer.json["error"]["message"]


@pytest.mark.parametrize(("path", "body", "field"), PLACES)
@pytest.mark.parametrize(("schema", "place", "quoted"), ODD)
def test_is_a_400_that_names_it(service, path, body, field, schema, place, quoted):
    message = refusal(service, path, around(body, schema))
    assert f"'{field}{place}'" in message and f": {quoted}. It must be" in message


@pytest.mark.parametrize(("schema", "place", "quoted"), [*ODD, ('{"const": NaN}', ".const", "nan")])
@pytest.mark.parametrize(("path", "body", "field"), PLACES[:3])
def test_is_the_same_in_a_schema_that_comes_as_text(
    service, path, body, field, schema, place, quoted
):
    message = refusal(service, path, around(body, json.dumps(schema)))
    assert f"'{field}{place}'" in message and f": {quoted}. It must be" in message


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (CHAT, ASK | {"structured_outputs": {"regex": "\ud800"}}, "structured_outputs.regex"),
        (CHAT, ASK | {"structured_outputs": {"choice": ["\ud800"]}}, "structured_outputs.choice"),
        (CHAT, ASK | {"structured_outputs": {"grammar": "\ud800"}}, "structured_outputs.grammar"),
        (CHAT, ASK | {"ebnf": "\ud800"}, "ebnf"),
        (
            RESPONSES,
            RESPOND
            | {
                "tools": [
                    {
                        "type": "custom",
                        "name": "f",
                        "format": {"type": "grammar", "syntax": "lark", "definition": "\ud800"},
                    }
                ]
            },
            "tools[0].format.definition",
        ),
    ],
)
def test_texts_that_cannot_be_encoded_are_named_too(service, path, body, field):
    assert f"'{field}'" in refusal(service, path, json.dumps(body))
