"""Grammars with real tokenizers: what random tokens under the mask write is always right."""

import json
import logging
import re
import threading
import time

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.grammar.checker import COMPILE_CPU_S
from server.grammar.grammars import GrammarError, Grammars
from server.grammar.schema_limits import MAX_PROPERTIES, MAX_SCHEMA_BYTES, MAX_SCHEMA_DEPTH
from server.grammar.writer import MAX_CHOICES, MAX_LARK_BYTES, MAX_REGEX_BYTES
from server.protocol.errors import ApiError
from server.protocol.requests import Format, ToolChoice
from tests.support.grammar_walks import Walker, allowed_ids, byte_walker, is_set

PADDING = 48  # logits past the demo model's tokens, as large models have them
SEEDS = range(4)
ADDRESS = {
    "type": "object",
    "properties": {"street": {"type": "string", "maxLength": 20}, "number": {"type": "integer"}},
    "required": ["street", "number"],
    "additionalProperties": False,
}
SCHEMAS = {
    "scalars": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 2, "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "score": {"type": "number", "minimum": -1.5, "maximum": 1.5},
            "ok": {"type": "boolean"},
            "nothing": {"type": "null"},
            "kind": {"enum": ["a", "b c", 7, None]},
            "fixed": {"const": {"x": [1, 2]}},
            "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
            "day": {"type": "string", "format": "date"},
        },
        "required": ["name", "age", "score", "ok", "nothing", "kind", "fixed", "code", "day"],
        "additionalProperties": False,
    },
    "nested": {
        "type": "object",
        "properties": {
            "home": {"$ref": "#/$defs/address"},
            "others": {"type": "array", "items": {"$ref": "#/$defs/address"}, "maxItems": 2},
            "pair": {
                "type": "array",
                "prefixItems": [{"type": "integer"}, {"type": "string", "maxLength": 5}],
                "items": False,
                "minItems": 2,
            },
        },
        "required": ["home", "others", "pair"],
        "additionalProperties": False,
        "$defs": {"address": ADDRESS},
    },
    "tree": {
        "type": "object",
        "properties": {
            "value": {"type": "integer"},
            "left": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        },
        "required": ["value", "left"],
        "additionalProperties": False,
    },
    "optional": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "string", "maxLength": 4}},
        "required": ["b"],
        "additionalProperties": False,
    },
    "either": {"oneOf": [{"type": "integer"}, {"type": "string", "maxLength": 6}]},
    "list": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
}


@pytest.fixture(scope="module")
def demo(demo_model_dir):
    walker = Walker(demo_model_dir, 49152 + PADDING)
    yield walker
    walker.grammars.close()


@pytest.fixture(scope="module")
def byte(tmp_path_factory):
    walker = byte_walker(tmp_path_factory.mktemp("bytes"))
    yield walker
    walker.grammars.close()


@pytest.fixture(params=["demo", "byte"])
def walker(request):
    return request.getfixturevalue(request.param)


def refusal(grammars: Grammars, wanted: Format) -> ApiError:
    with pytest.raises(ApiError) as caught:
        grammars.compile(wanted)
    return caught.value


def tool(name: str, parameters: dict | None = None, **more) -> dict:
    function = {"name": name, **more}
    if parameters is not None:
        function["parameters"] = parameters
    return {"type": "function", "function": function}


class TestAnswers:
    def test_json_object_is_an_object(self, walker):
        grammar = walker.grammars.compile(Format("json_object"))
        for seed in SEEDS:
            assert isinstance(json.loads(walker.walk(grammar.matcher(), seed)), dict)

    @pytest.mark.parametrize("strict", [True, False])
    @pytest.mark.parametrize("name", SCHEMAS)
    def test_json_matches_its_schema(self, walker, name, strict):
        grammar = walker.grammars.compile(Format("json_schema", SCHEMAS[name], strict))
        for seed in SEEDS:
            text = walker.walk(grammar.matcher(), seed)
            jsonschema.validate(json.loads(text), SCHEMAS[name])

    @pytest.mark.parametrize(
        "pattern",
        ["[a-f]{3,9}", r"\d{4}-\d{2}", "(yes|no|maybe)!*", "^né+😀$", "a?", r"[a-z]{2,9}\n.{0,3}"],
    )
    def test_text_matches_its_regex(self, walker, pattern):
        grammar = walker.grammars.compile(Format("regex", pattern))
        for seed in SEEDS:
            assert re.fullmatch(pattern, walker.walk(grammar.matcher(), seed))

    def test_text_is_one_of_its_choices_and_each_can_be_had(self, walker):
        choices = [
            "yes",
            "no",
            "",
            'a"b\\c',
            "né😀",
            "x\ny\x01/z",
            " lead",
            "ab",
            "abc",
            "a | b // c",
        ]
        grammar = walker.grammars.compile(Format("choice", choices))
        got = {walker.walk(grammar.matcher(), seed) for seed in range(150)}
        assert got == set(choices)

    def test_lark_grammar(self, walker):
        lark = 'start: term ("+" term){0,3}\nterm: NUMBER | "(" start ")"\nNUMBER: /[0-9]{1,3}/\n'
        grammar = walker.grammars.compile(Format("lark", lark))
        for seed in SEEDS:
            text = walker.walk(grammar.matcher(), seed)
            assert re.fullmatch(r"[0-9+()]+", text)
            assert text.count("(") == text.count(")")

    def test_the_models_own_way_is_allowed_too(self, demo):
        """The mask must not force an order of tokens that the tokenizer would not write."""
        grammar = demo.grammars.compile(Format("json_schema", ADDRESS, True))
        for text in (
            '{"street": "High St", "number": 12}',
            '{\n  "street": "x",\n  "number": 1\n}',
        ):
            matcher = grammar.matcher()
            for token in demo.ids(text):
                assert is_set(matcher.mask(), token)
                matcher.accept(token)
            assert list(allowed_ids(matcher.mask())) == [demo.eos]

    def test_blanks_in_json_are_bounded(self, byte):
        """A model that had begun to write newlines wrote them until its tokens ran out."""
        matcher = byte.grammars.compile(Format("json_object")).matcher()
        matcher.accept(ord("{"))
        for _ in range(40):
            matcher.accept(ord("\n"))
        assert not is_set(matcher.mask(), ord("\n"))
        assert is_set(matcher.mask(), ord("}"))

    def test_options_inside_a_schema_cannot_make_it_something_else(self, byte):
        schema = {**ADDRESS, "x-guidance": {"item_separator": ";", "lenient": True}}
        for seed in SEEDS:
            grammar = byte.grammars.compile(Format("json_schema", schema, True))
            jsonschema.validate(json.loads(byte.walk(grammar.matcher(), seed)), ADDRESS)


KEYS = st.sampled_from(["a", "bb", 'q"', "né", "enum", "$ref", "properties"])
# The demo model has no tokens for the first bytes of some characters beyond these.
TEXT = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=4)
LEAVES = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(
        lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
        st.integers(-1000, 1000),
        st.integers(0, 2000),
    ),
    st.builds(
        lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more},
        st.integers(0, 4),
        st.integers(0, 8),
    ),
    st.lists(st.one_of(st.integers(-9, 9), TEXT, st.none()), min_size=1, max_size=4)
    .map(lambda values: {"enum": values}),
    st.sampled_from(["^[ab]{1,4}$", "x+y?z", "^(one|two)$"]).map(
        lambda pattern: {"type": "string", "pattern": pattern, "maxLength": 30}
    ),
)  # fmt: skip


def objects_of(inner):
    return st.dictionaries(KEYS, inner, max_size=4).flatmap(
        lambda properties: st.sets(st.sampled_from(sorted(properties) or ["-"])).map(
            lambda required: {
                "type": "object",
                "properties": properties,
                "required": sorted(required & properties.keys()),
                "additionalProperties": False,
            }
        )
    )


SOME_SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        objects_of(inner),
        st.builds(
            lambda item, low, more: {
                "type": "array", "items": item, "minItems": low, "maxItems": low + more,
            },
            inner, st.integers(0, 2), st.integers(0, 2),
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options}),
    ),
    max_leaves=6,
)  # fmt: skip


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(schema=SOME_SCHEMAS, seed=st.integers(0, 1000))
def test_any_schema_that_compiles_is_kept(byte, demo, schema, seed):
    for walker in (byte, demo):
        grammar = walker.grammars.compile(Format("json_schema", schema, True))
        text = walker.walk(grammar.matcher(), seed, most=3000)
        jsonschema.validate(json.loads(text), schema)


class TestMatchers:
    def test_a_complete_answer_can_only_end_and_goes_on_ending(self, walker):
        matcher = walker.grammars.compile(Format("choice", ["ab"])).matcher()
        for token in walker.ids("ab"):
            assert not matcher.done
            assert list(allowed_ids(matcher.mask())) == [token]
            matcher.accept(token)
        for _ in range(3):
            assert matcher.done
            assert list(allowed_ids(matcher.mask())) == [walker.eos]
            matcher.accept(walker.eos)

    def test_all_of_the_models_ends_are_allowed(self, demo):
        grammars = Grammars(demo.tokenizer, 49152, [2, 0])
        try:
            matcher = grammars.compile(Format("regex", "a*")).matcher()
            assert is_set(matcher.mask(), 0)
            assert is_set(matcher.mask(), 2)
        finally:
            grammars.close()

    def test_an_end_in_the_middle_is_not_allowed(self, walker):
        matcher = walker.grammars.compile(Format("json_object")).matcher()
        matcher.accept(walker.ids("{")[0])
        matcher.accept(walker.ids('"')[0])
        special = walker.tokenizer.all_special_ids
        assert not any(is_set(matcher.mask(), token) for token in special)
        with pytest.raises(GrammarError):
            matcher.accept(walker.eos)

    def test_masks_cover_the_logits_and_never_allow_padding(self, demo):
        mask = demo.grammars.compile(Format("regex", "(.|\n)*")).matcher().mask()
        assert mask.dtype == np.uint32
        assert mask.shape == ((49152 + PADDING + 31) // 32,)
        assert len(allowed_ids(mask)) > 40_000
        assert allowed_ids(mask).max() < 49152

    def test_fewer_logits_than_tokens(self, demo):
        grammars = Grammars(demo.tokenizer, 40_001, {demo.eos})
        try:
            mask = grammars.compile(Format("regex", "(.|\n)*")).matcher().mask()
        finally:
            grammars.close()
        assert mask.shape == (1251,)
        assert allowed_ids(mask).max() == 40_000

    def test_a_token_that_is_not_allowed_ends_the_matcher(self, byte):
        matcher = byte.grammars.compile(Format("choice", ["ab"])).matcher()
        with pytest.raises(GrammarError):
            matcher.accept(ord("x"))
        with pytest.raises(GrammarError):
            matcher.mask()

    def test_matchers_of_one_grammar_share_nothing(self, byte):
        grammar = byte.grammars.compile(Format("choice", ["ax", "by"]))
        one, other = grammar.matcher(), grammar.matcher()
        one.accept(ord("a"))
        assert list(allowed_ids(one.mask())) == [ord("x")]
        assert list(allowed_ids(other.mask())) == [ord("a"), ord("b")]
        other.accept(ord("b"))
        assert list(allowed_ids(one.mask())) == [ord("x")]
        assert list(allowed_ids(grammar.matcher().mask())) == [ord("a"), ord("b")]

    def test_nothing_is_asked_while_the_model_thinks(self, byte):
        end = tuple(b"</t>")
        matcher = byte.grammars.compile(Format("choice", ["ab"])).matcher(end)
        for token in b'{"not json<</t\n</':
            assert matcher.mask() is None
            matcher.accept(token)
        for token in b"t>":
            assert matcher.mask() is None
            assert not matcher.done
            matcher.accept(token)
        assert list(allowed_ids(matcher.mask())) == [ord("a")]

    def test_the_end_of_thinking_is_seen_after_a_false_start(self, byte):
        matcher = byte.grammars.compile(Format("choice", ["ab"])).matcher((1, 1, 2))
        for token in (1, 1, 1, 2):
            assert matcher.mask() is None
            matcher.accept(token)
        assert list(allowed_ids(matcher.mask())) == [ord("a")]


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


class TestThreads:
    def test_a_grammar_is_compiled_once(self, byte):
        first = byte.grammars.compile(Format("json_schema", ADDRESS, True, "one"))
        assert byte.grammars.compile(Format("json_schema", dict(ADDRESS), True, "two")) is first

    def test_many_threads(self, demo):
        failures: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for turn in range(3):
                    schema = {"type": "array", "items": ADDRESS, "maxItems": number % 3 + 1}
                    grammar = demo.grammars.compile(Format("json_schema", schema))
                    text = demo.walk(grammar.matcher(), number * 10 + turn)
                    jsonschema.validate(json.loads(text), schema)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not failures


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
