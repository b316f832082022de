"""Writes a Format as grammar text for llguidance. Pure; rank 0's HTTP threads.

Numbers on llguidance's side (regex dialect, the keywords of JSON schema it knows, Lark's
extensions) are in its docs/syntax.md and docs/json_schema.md.
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import gbnf_to_lark

from server.grammar.schema_limits import check_schema
from server.grammar.unenforced import lenient
from server.protocol.errors import ApiError, bad_request, show
from server.protocol.requests import Format

MAX_REGEX_BYTES = 16 * 1024
MAX_LARK_BYTES = 64 * 1024
MAX_CHOICES = 10_000
MAX_CHOICE_BYTES = 512 * 1024
# Pretty-printing needs a newline and the indent. Without a bound, a small model that has begun to
# write blanks in JSON writes them until its tokens run out.
WHITESPACE = r"[\x20\x0A\x0D\x09]{1,40}"
# One line, as most models write their calls, so nothing of a call's budget goes to blanks.
ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}


def write_grammar(wanted: Format) -> str:
    """Grammar text for what a client asked for. Raises ApiError 400 naming its field."""
    if wanted.kind == "json_object":
        return schema_grammar({"type": "object"}, wanted.field, strict=True)
    if wanted.kind == "json_schema":
        check_schema(wanted.value, wanted.field)
        return schema_grammar(wanted.value, wanted.field, strict=wanted.strict)
    with usable("grammar", wanted.field):
        if wanted.kind == "choice":
            return _choice(wanted.value, wanted.field)
        if wanted.kind == "regex":
            _check_size(wanted.value, MAX_REGEX_BYTES, wanted.field)
            return LLMatcher.grammar_from_regex(wanted.value)
        if wanted.kind == "lark":
            _check_size(wanted.value, MAX_LARK_BYTES, wanted.field)
            return LLMatcher.grammar_from_lark(wanted.value)
        if wanted.kind == "ebnf":
            _check_size(wanted.value, MAX_LARK_BYTES, wanted.field)
            return LLMatcher.grammar_from_lark(gbnf_to_lark(wanted.value))
    raise ValueError(f"no such kind of format: {wanted.kind!r}")


@contextlib.contextmanager
def usable(what: str, field: str) -> Iterator[None]:
    """Whatever is wrong with a grammar or schema in there: ApiError 400 naming its field."""
    try:
        yield
    except ApiError:
        raise
    except Exception as error:  # llguidance's parser, gbnf_to_lark's, or Python's stack
        reason = show(str(error), 200)
        raise bad_request(f"The {what} in {field!r} cannot be used: {reason}", field) from None


def schema_grammar(
    schema: dict[str, Any], field: str, *, strict: bool, one_line: bool = False
) -> str:
    """Grammar text for JSON that matches schema. Raises ApiError 400 naming its field.

    Not strict: keywords, formats and patterns that llguidance does not know are left out, and oneOf
    is taken as anyOf; strict: the grammar is refused when it is compiled.
    """
    with usable("schema", field):
        if not strict:
            schema = lenient(schema)
        # A client must not turn JSON into something else by llguidance's own options.
        own = {key: value for key, value in schema.items() if key != "x-guidance"}
        options: dict[str, Any] = ONE_LINE if one_line else {"whitespace_pattern": WHITESPACE}
        return LLMatcher.grammar_from_json_schema(
            json.dumps(own), overrides={**options, "lenient": not strict}
        )


def _choice(choices: list[str], field: str) -> str:
    if len(choices) > MAX_CHOICES:
        raise bad_request(f"{field!r} has {len(choices)} choices; at most {MAX_CHOICES}.", field)
    _check_length(sum(map(len, choices)), MAX_CHOICE_BYTES, field)  # before it is written out
    texts = " | ".join(json.dumps(choice) for choice in choices)
    _check_size(texts, MAX_CHOICE_BYTES, field)
    # One terminal, not a rule of many: it becomes one regex, which is far cheaper to step.
    return LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {texts}\n")


def _check_size(text: str, most: int, field: str) -> None:
    _check_length(len(text.encode("utf-8", "surrogatepass")), most, field)


def _check_length(size: int, most: int, field: str) -> None:
    if size > most:
        raise bad_request(f"{field!r} has {size} bytes; at most {most}.", field)
