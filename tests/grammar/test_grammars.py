"""Grammars: what answers may be, and how a matcher steps."""

import json
import re
import threading

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.grammar.grammars import GrammarError, Grammars
from server.protocol.requests import Format
from tests.support.grammar_cases import ADDRESS, PADDING, SCHEMAS, SEEDS
from tests.support.grammar_walks import allowed_ids, is_set


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
