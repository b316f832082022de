"""What a matcher says of tokens that may come, and that asking moves nothing."""

import random

import numpy as np
import pytest

from server.protocol.requests import Format

SCHEMA = {
    "type": "object",
    "properties": {
        "the_name_of_the_person": {"enum": ["Anna", "Bob"]},
        "the_age_in_years": {"type": "integer", "minimum": 10, "maximum": 99},
    },
    "required": ["the_name_of_the_person", "the_age_in_years"],
    "additionalProperties": False,
}
TEXT = '{"the_name_of_the_person":"Bob","the_age_in_years":34}'


def masks_alone(matcher, tokens) -> list:
    masks = []
    for token in tokens:
        matcher.accept(token)
        masks.append(matcher.mask())
    return masks


def same(one, other) -> bool:
    return (one is None and other is None) or np.array_equal(one, other)


@pytest.mark.parametrize("think_end", [None, (5, 6)])
def test_looking_ahead_shows_the_masks_that_come_and_moves_nothing(walker, think_end):
    grammar = walker.grammars.compile(Format("json_schema", SCHEMA))
    tokens = walker.ids(TEXT)
    tokens = tokens if think_end is None else [9, 5, 5, 6, *tokens]
    right = masks_alone(grammar.matcher(think_end), tokens)
    matcher, rng = grammar.matcher(think_end), random.Random(1)
    at = 0
    while at < len(tokens):
        before = matcher.mask()
        ahead = tokens[at : at + rng.randrange(1, 9)]
        found = matcher.look_ahead(ahead)
        assert len(found) == len(ahead) == matcher.allows(ahead)
        assert all(map(same, found, right[at:]))
        assert same(matcher.mask(), before)
        matcher.accept(tokens[at])
        at += 1
    assert matcher.done


def test_what_is_not_allowed_ends_the_look_and_harms_nothing(walker):
    grammar = walker.grammars.compile(Format("json_schema", SCHEMA))
    tokens = walker.ids(TEXT)
    wrong = walker.ids("~")
    matcher = grammar.matcher()
    for at, token in enumerate(tokens):
        ahead = [*tokens[at : at + 3], *wrong, *tokens]
        allowed = min(3, len(tokens) - at)
        assert matcher.allows(ahead) == len(matcher.look_ahead(ahead)) == allowed
        assert matcher.allows(wrong) == 0 and matcher.look_ahead(wrong) == []
        matcher.accept(token)
    assert matcher.done


def test_what_is_forced_is_allowed_and_spares_the_keys(walker):
    grammar = walker.grammars.compile(Format("json_schema", SCHEMA))
    matcher, tokens, foreseen = grammar.matcher(), walker.ids(TEXT), 0
    for token in tokens:
        forced = matcher.forced()
        assert matcher.allows(forced) == len(forced)
        foreseen += bool(forced) and forced[0] == token
        matcher.accept(token)
    assert foreseen > len(tokens) / 2
    assert grammar.matcher((5, 6)).forced() == []
