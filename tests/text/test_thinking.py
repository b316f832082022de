"""What a request says of thinking: the template's effort, and a budget that is kept."""

import numpy as np
import pytest
from mlx_lm.tokenizer_utils import load as load_tokenizer

from server.protocol.requests import Common
from server.sampling.row_state import Row
from server.text.constraint import Constraint
from server.text.thinking import variables, within_budget
from tests.support.tiny_models import END, THINK, VOCAB, write_byte_tokenizer

A, B = 10, 11


class Template:
    def __init__(self, text) -> None:
        self.chat_template = text


@pytest.mark.parametrize(
    "template, given, told",
    [
        ("{{ reasoning_effort }}", "max", "high"),
        ("{{ reasoning_effort }}", "minimal", "low"),
        ("{{ reasoning_effort | default('medium') }}", "low", "low"),
        ("{% if reasoning_effort not in ['none', 'high'] %}", "medium", "high"),
        ("{% if reasoning_effort not in ['none', 'high'] %}", "none", "none"),
        (
            '{% if reasoning_effort == "max" %}{% elif reasoning_effort == "high" %}',
            "xhigh",
            "high",
        ),
        ("{{ reasoning_effort }}", "a lot", "a lot"),
        (None, "max", "max"),
    ],
)
def test_an_effort_is_the_nearest_that_the_template_names(template, given, told):
    found = variables(Template(template), {"reasoning_effort": given, "x": 1})
    assert found == {"reasoning_effort": told, "x": 1}


class Grammar:
    """Allows A alone."""

    def matcher(self, think_end=None) -> "Matcher":
        return Matcher(tuple(think_end or ()))


class Matcher:
    def __init__(self, think_end) -> None:
        self._left = think_end

    def accept(self, token: int) -> None:
        if self._left:
            self._left = () if (token,) == self._left else self._left
        else:
            assert token == A

    def mask(self):
        return None if self._left else np.array([1 << A] + [0] * (-(-VOCAB // 32) - 1), np.uint32)


def allowed(matcher) -> set[int] | None:
    mask = matcher.mask()
    if mask is None:
        return None
    assert mask.dtype == np.uint32 and mask.shape == (-(-VOCAB // 32),)
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


def begin(tokenizer, most, prompt, grammar=None):
    inner = Constraint.for_chat(grammar, tokenizer, prompt, True) if grammar else None
    return within_budget(most, inner, tokenizer, prompt, VOCAB).matcher()


def feed(matcher, *tokens: int) -> None:
    for token in tokens:
        matcher.accept(token)


def test_a_thought_is_closed_when_its_budget_is_spent(thinker):
    matcher = begin(thinker, 3, [1, THINK])
    for _ in range(3):
        assert allowed(matcher) is None
        feed(matcher, B)
    assert allowed(matcher) == {END}
    feed(matcher, END)
    assert allowed(matcher) is None
    feed(matcher, *[B] * 10)
    assert allowed(matcher) is None, "an answer has no budget"


def test_a_shorter_thought_is_left_alone(thinker):
    matcher = begin(thinker, 3, [1, THINK])
    feed(matcher, B, END, *[B] * 10)
    assert allowed(matcher) is None


def test_what_the_answer_must_match_comes_after_the_thought(thinker):
    matcher = begin(thinker, 2, [1, THINK], Grammar())
    feed(matcher, B, B)
    assert allowed(matcher) == {END}
    feed(matcher, END)
    assert allowed(matcher) == {A}


def test_a_thought_that_the_model_opens_has_the_same_budget(thinker):
    matcher = begin(thinker, 1, [1])
    assert allowed(matcher) is None
    feed(matcher, THINK, B)
    assert allowed(matcher) == {END}
    later = begin(thinker, 1, [1])
    feed(later, B, THINK, B, B)
    assert allowed(later) is None, "a word that the answer speaks about"


def test_no_thought_at_all_is_closed_at_once_or_never_opened(thinker):
    assert allowed(begin(thinker, 0, [1, THINK])) == {END}
    assert allowed(begin(thinker, 0, [1])) == set(range(VOCAB)) - {THINK}
    assert allowed(begin(thinker, 0, [1], Grammar())) == {A}


def test_a_budget_alone_does_not_say_when_the_answer_ends(thinker):
    """min_tokens and ignore_eos hold, as they do not where a grammar ends the answer."""
    free = within_budget(1, None, thinker, [1, THINK], VOCAB)
    inner = Constraint.for_chat(Grammar(), thinker, [1, THINK], True)
    held = within_budget(1, inner, thinker, [1, THINK], VOCAB)
    assert not free.holds_the_answer and held.holds_the_answer and inner.holds_the_answer
    common = Common(min_tokens=3)
    assert list(Row(common, [1], VOCAB, (2,), grammar=free).biases()) == [(2, -np.inf)]
    assert list(Row(common, [1], VOCAB, (2,), grammar=held).biases()) == []


def test_without_a_budget_nothing_is_counted(thinker):
    assert within_budget(None, None, thinker, [1, THINK], VOCAB) is None


def test_an_end_of_several_tokens_is_written_out(tmp_path):
    write_byte_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    tokenizer = load_tokenizer(tmp_path)
    tokenizer._think_start, tokenizer._think_end = "<t>", "</t>"
    tokenizer._think_start_tokens, tokenizer._think_end_tokens = (tuple(b"<t>"), tuple(b"</t>"))
    matcher = begin(tokenizer, 1, [1, *b"<t>"])
    feed(matcher, *b"<")
    for token in b"/t>":
        assert allowed(matcher) == {token}, "of an end that has begun, the rest"
        feed(matcher, token)
    assert allowed(matcher) is None
