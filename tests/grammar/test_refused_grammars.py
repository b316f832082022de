"""Grammars that are refused, or hostile."""

import json
import logging
import os
import signal
import threading
import time

import jsonschema
import pytest

from server.grammar import checker
from server.grammar.checker import COMPILE_CPU_S
from server.grammar.grammars import GrammarError, Grammars
from server.grammar.schema_limits import MAX_PROPERTIES, MAX_SCHEMA_BYTES, MAX_SCHEMA_DEPTH
from server.grammar.writer import MAX_CHOICES, MAX_LARK_BYTES, MAX_REGEX_BYTES
from server.protocol.errors import ApiError
from server.protocol.requests import Format, ToolChoice
from tests.support.grammar_cases import refusal, tool


class TestRefusals:
    @pytest.mark.parametrize(
        ("schema", "reason"),
        [
            ({"type": "strnig"}, "Invalid type: strnig"),
            ({"type": "string", "minLength": 5, "maxLength": 3}, "minLength (5) is greater"),
            ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum (5) is greater"),
            ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "unsatisfiable"),
            ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "incompatible types"),
            ({"type": "string", "pattern": "a", "enum": ["b"]}, "Regex is empty"),
            ({"enum": []}, "anyOf is empty"),
            ({"$ref": "#/$defs/absent"}, "does not exist"),
            ({"$ref": "https://example.com/schema"}, "not present"),
            ({"properties": []}, "must be an object"),
            ({"$ref": "#"}, "requires itself"),
        ],
    )
    @pytest.mark.parametrize("strict", [True, False])
    def test_impossible_schemas(self, byte, schema, reason, strict):
        field = "response_format.json_schema.schema"
        error = refusal(byte.grammars, Format("json_schema", schema, strict, field))
        assert (error.status, error.param) == (400, field)
        assert reason in error.message
        assert len(error.message) < 400

    @pytest.mark.parametrize(
        "schema",
        [
            {"type": "object", "not": {"required": ["a"]}},
            {"type": "array", "uniqueItems": True},
            {"type": "string", "pattern": "^(?!x).*$"},
            {"type": "string", "pattern": r"(?<=a)b|\bc"},
            {"type": "string", "pattern": r"(a)\1"},
            {"type": "object", "patternProperties": {"(?=a)": {}}, "additionalProperties": False},
            {"type": "array", "items": {"type": "object", "dependentRequired": {"a": ["b"]}}},
            {"type": "string", "format": "phone"},
            {"type": "object", "propertyNames": {"pattern": "^a"}},
            {"oneOf": [{"type": "integer"}, {"type": "number"}]},
        ],
    )
    def test_what_is_unknown_is_refused_when_strict_and_ignored_when_not(self, byte, schema):
        error = refusal(byte.grammars, Format("json_schema", schema, True))
        assert error.status == 400
        grammar = byte.grammars.compile(Format("json_schema", schema, False))
        json.loads(byte.walk(grammar.matcher(), 0))

    def test_what_cannot_be_kept_has_its_place_in_the_refusal_or_the_log(self, byte, caplog):
        """Clients saw a keyword's name alone, and of a pattern not even that."""
        item = {"type": "string", "pattern": "^(?=a)"}
        properties = {
            "not": {"type": "array", "items": item, "uniqueItems": True},
            "fine": {"type": "string", "pattern": r"a\\b(?:c)", "enum": [r"a\bc"]},
        }
        schema = {"type": "object", "properties": properties, "additionalProperties": False}
        places = ["#/properties/not/items/pattern", "#/properties/not/uniqueItems"]
        strict = refusal(byte.grammars, Format("json_schema", schema, True)).message
        assert all(place in strict for place in places) and "fine" not in strict
        with caplog.at_level(logging.WARNING):
            grammar = byte.grammars.compile(Format("json_schema", schema, field="f"))
        json.loads(byte.walk(grammar.matcher(), 0))
        (line,) = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
        assert line.startswith("left out of the schema in f: ")
        assert all(place in line for place in places) and "fine" not in line

    def test_an_ebnf_grammar_is_kept_and_a_wrong_one_refused(self, byte):
        grammar = byte.grammars.compile(
            Format("ebnf", 'root ::= "ab" | c\nc ::= "c"{2}', field="f")
        )
        assert byte.walk(grammar.matcher(), 0) in ("ab", "cc")
        for wrong in ("x", "root ::= a", 'root ::= "a', "root ::= " + "(" * 9999, "#" * 70_000):
            error = refusal(byte.grammars, Format("ebnf", wrong, field="f"))
            assert (error.status, error.param) == (400, "f") and len(error.message) < 400

    @pytest.mark.parametrize(
        "properties",
        [
            {"self": {"$ref": "#"}},
            {"list": {"type": "array", "minItems": 1, "items": {"$ref": "#"}}},
            {"either": {"anyOf": [{"$ref": "#"}, {"allOf": [{"$ref": "#"}]}]}},
        ],
    )
    def test_schemas_that_only_an_endless_value_matches(self, byte, properties):
        """They compile, and the model would write until its tokens run out."""
        schema = {"type": "object", "properties": properties, "required": list(properties)}
        error = refusal(byte.grammars, Format("json_schema", schema))
        assert "requires itself" in error.message

    def test_sizes(self, byte):
        deep: dict = {"type": "string"}
        for _ in range(MAX_SCHEMA_DEPTH):
            deep = {"type": "array", "items": deep}
        wide = {"properties": {f"p{n}": {} for n in range(MAX_PROPERTIES + 1)}}
        long = {"description": "x" * MAX_SCHEMA_BYTES}
        for wanted in (
            Format("json_schema", deep, field="f"),
            Format("json_schema", wide, field="f"),
            Format("json_schema", long, field="f"),
            Format("json_schema", {"enum": list(range(20_001))}, field="f"),
            Format("regex", "a" * (MAX_REGEX_BYTES + 1), field="f"),
            Format("lark", "#" * (MAX_LARK_BYTES + 1), field="f"),
            Format("choice", [str(n) for n in range(MAX_CHOICES + 1)], field="f"),
            Format("choice", ["x" * 600_000], field="f"),
        ):
            error = refusal(byte.grammars, wanted)
            assert (error.status, error.param) == (400, "f")

    def test_the_most_properties_can_be_stepped_through(self, byte):
        """An object of 500 optional ones compiled, and failed at the second token."""
        properties = {f"p{n}": {"type": "boolean"} for n in range(MAX_PROPERTIES)}
        schema = {"type": "object", "properties": properties, "additionalProperties": False}
        grammar = byte.grammars.compile(Format("json_schema", schema))
        jsonschema.validate(json.loads(byte.walk(grammar.matcher(), 0)), schema)

    @pytest.mark.parametrize(
        ("kind", "value", "reason"),
        [
            ("regex", "(", "unclosed group"),
            ("regex", "x" * 900 + r"\bfoo", "lookarounds not supported"),
            ("regex", r"[^\s\S]", "no text matches"),
            ("lark", "start: b", 'unknown name: "b"'),
            ("lark", 'foo: "a"', "no start rule"),
            ("lark", "start: start", "no text matches"),
            ("lark", "start: a{1000000}\na: b{1000000}\nb: /x/", "Too many items"),
            ("lark", 'root ::= "a"', "Expected token"),
        ],
    )
    def test_impossible_grammars(self, byte, kind, value, reason):
        error = refusal(byte.grammars, Format(kind, value, field="guided_x"))
        assert (error.status, error.param) == (400, "guided_x")
        assert reason in error.message
        assert len(error.message) < 400

    @pytest.mark.parametrize(
        ("kind", "value"),
        [
            ("json_schema", {"enum": ["\ud800"]}),
            ("json_schema", {"properties": {"\ud800": {}}}),
            ("json_schema", {"const": float("inf")}),
            ("json_schema", {"const": 10**4000}),
            ("json_schema", {"minimum": 10**4000}),
            ("choice", ["\ud800"]),
            ("regex", "\ud800"),
            ("lark", "\ud800"),
            ("ebnf", "\ud800"),
        ],
    )
    def test_what_the_compiler_throws_at_is_refused_by_name(self, byte, kind, value):
        """It was a 500."""
        for strict in (True, False):
            error = refusal(byte.grammars, Format(kind, value, strict, "f"))
            assert (error.status, error.param) == (400, "f")
            assert "cannot be used: " in error.message and len(error.message) < 400

    @pytest.mark.parametrize("strict", [True, False])
    @pytest.mark.parametrize("mode", ["named", "required"])
    def test_of_many_tools_the_one_with_such_parameters_is_named(self, byte, mode, strict):
        odd = {"type": "object", "properties": {"a": {"const": "\ud800"}}}
        tools = [tool("a", {"type": "object"}), tool("b", odd, strict=strict)]
        with pytest.raises(ApiError) as caught:
            byte.grammars.compile_calls(tools, ToolChoice(mode, "b"), True)
        assert (caught.value.status, caught.value.param) == (400, "tools[1].function.parameters")

    @pytest.mark.parametrize("name", ["build", "try_out"])
    def test_an_exception_of_the_compiler_is_its_grammars_fault(self, monkeypatch, name):
        """The fork that met one ended without a word, which was a 503 however often it came."""

        def fail(*_):
            raise RuntimeError("odd")

        reader, writer = os.pipe()
        monkeypatch.setattr(checker, name, fail)
        monkeypatch.setattr(
            checker, "build", checker.build if name == "build" else lambda *_: (1, "")
        )
        told = []
        monkeypatch.setattr(os, "_exit", told.append)
        monkeypatch.setattr(signal, "setitimer", lambda *_: None)
        monkeypatch.setattr(checker.resource, "setrlimit", lambda *_: None)
        monkeypatch.setattr(threading, "stack_size", lambda _: None)
        checker._in_fork(writer, None, "", [], 0)
        os.close(writer)
        assert json.loads(os.read(reader, 9999))["reason"] == "odd" and told == [0]
        os.close(reader)

    def test_characters_that_the_model_cannot_write(self, demo):
        """Its tokenizer lacks the byte F1; the request failed in the middle instead."""
        error = refusal(demo.grammars, Format("choice", ["\U00040000"], field="guided_choice"))
        assert (error.status, error.param) == (400, "guided_choice")
        assert "no tokens for" in error.message

    def test_tokenizers_that_llguidance_cannot_read(self):
        error = refusal(Grammars(object(), 100, {1}), Format("json_object"))
        assert (error.status, error.code) == (400, "unsupported_parameter")


class TestHostile:
    def test_an_endless_compilation_is_ended_and_remembered(self, byte):
        """Without the child process this one held a core for minutes."""
        lark = "start: T\nT: " + " & ".join(
            f"/(.|\\n)*{chr(97 + i)}(.|\\n){{{i + 10}}}{chr(98 + i)}(.|\\n)*/" for i in range(20)
        )
        began = time.monotonic()
        assert "takes longer than" in refusal(byte.grammars, Format("lark", lark)).message
        # CPU time is what is bounded; the wall's allowance is for a machine that is busy.
        assert time.monotonic() - began < 5 * COMPILE_CPU_S
        began = time.monotonic()
        refusal(byte.grammars, Format("lark", lark))
        assert time.monotonic() - began < 0.5
        assert byte.grammars.compile(Format("regex", "after+")).matcher().mask() is not None

    def test_a_grammar_that_crashes_the_compiler_is_refused(self, byte):
        """In rank 0 it would have ended the whole cluster."""
        rules = "".join(f"r{n}: /x{n}/ r{n + 1}?\n" for n in range(2500))
        lark = f"start: r0\n{rules}r2500: /end/\n"
        assert len(lark) <= MAX_LARK_BYTES
        error = refusal(byte.grammars, Format("lark", lark))
        assert error.status == 400
        assert "too large or too deeply nested" in error.message
        assert byte.grammars.compile(Format("regex", "later+")).matcher().mask() is not None

    def test_a_choice_whose_masks_take_long_is_ended(self, byte, monkeypatch):
        """Every row of the batch waits for a mask; some multipleOf took half a second for one."""
        matcher = byte.grammars.compile(Format("json_object")).matcher()
        for name in ("STEP_CPU_S", "EXCESS_CPU_S"):
            monkeypatch.setattr(f"server.grammar.grammars.{name}", -1.0)
        with pytest.raises(GrammarError, match="too long"):
            for _ in range(3):
                matcher.mask()

    def test_taking_a_token_counts_as_much_as_its_mask(self, byte, monkeypatch):
        """Some take twenty milliseconds for each, on the thread that all rows wait for."""
        matcher = byte.grammars.compile(Format("json_object")).matcher()
        for name in ("STEP_CPU_S", "EXCESS_CPU_S"):
            monkeypatch.setattr(f"server.grammar.grammars.{name}", -1.0)
        with pytest.raises(GrammarError, match="too long"):
            for token in b'{"a":':
                matcher.accept(token)
