"""Where in an answer its grammar begins: at once, after thinking, or as the model decides."""

import numpy as np
import pytest

pytest.importorskip("mlx_lm")

from mlx_lm.utils import load_tokenizer

from server.text.constraint import Constraint, MayThink
from tests.support.tiny_models import END, SPECIALS, THINK, VOCAB, write_byte_tokenizer

TURN = 256 + SPECIALS.index("<|im_start|>")
ALLOWED = 5


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    write_byte_tokenizer(folder)
    (folder / "config.json").write_text("{}")
    return load_tokenizer(folder)


class Grammar:
    """Allows one token; notes its matchers and what they are shown."""

    def __init__(self) -> None:
        self.made: list[Matcher] = []

    def matcher(self, think_end=None) -> "Matcher":
        self.made.append(Matcher(think_end))
        return self.made[-1]


class Matcher:
    def __init__(self, think_end) -> None:
        self.think_end = think_end
        self.shown: list[int] = []

    def accept(self, token: int) -> None:
        self.shown.append(token)

    def mask(self):
        if self.think_end and self.shown[-len(self.think_end) :] != list(self.think_end):
            return None
        mask = np.zeros(-(-VOCAB // 32), dtype=np.uint32)
        mask[0] = 1 << ALLOWED
        return mask


def allowed(mask) -> set[int]:
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


def matcher_for(prompt: list[int], tokenizer, may_think: bool = True):
    return Constraint.for_chat(Grammar(), tokenizer, prompt, may_think).matcher()


def test_a_model_that_does_not_think_is_constrained_at_once(plain):
    matcher = matcher_for([1, 2, 3], plain)
    assert isinstance(matcher, Matcher) and matcher.think_end is None
    assert allowed(matcher.mask()) == {ALLOWED}


@pytest.mark.parametrize("may_think", [True, False])
@pytest.mark.parametrize("prompt", [[1, THINK], [1, THINK, END, 2, THINK, 3]])
def test_a_prompt_that_opened_thinking_is_free_until_it_ends(thinker, prompt, may_think):
    """Even for an answer that may not open any: what is open must be closed."""
    matcher = matcher_for(prompt, thinker, may_think)
    assert matcher.think_end == (END,) and matcher.mask() is None
    for token in (9, THINK, 8):
        matcher.accept(token)
        assert matcher.mask() is None
    matcher.accept(END)
    assert allowed(matcher.mask()) == {ALLOWED}


@pytest.mark.parametrize(
    "prompt", [[1, 2], [THINK, END], [1, THINK, 4, END, 2], [THINK, 3, TURN, 4]]
)
def test_an_answer_that_may_not_think_is_constrained_at_once(thinker, prompt):
    """In the last one, a user's message has the marker in it."""
    matcher = matcher_for(prompt, thinker, may_think=False)
    assert isinstance(matcher, Matcher) and matcher.think_end is None


@pytest.mark.parametrize("prompt", [[1, 2], [THINK, 3, END, TURN, 4], [THINK, 3, TURN, 4]])
def test_a_model_that_may_think_decides_with_its_first_token(thinker, prompt):
    grammar = Grammar()
    constraint = Constraint.for_chat(grammar, thinker, prompt, True)
    thinks, answers = constraint.matcher(), constraint.matcher()
    assert isinstance(thinks, MayThink) and thinks is not answers
    for matcher in (thinks, answers, thinks):
        assert allowed(matcher.mask()) == {ALLOWED, THINK}, "the same, however often it is asked"
    thinks.accept(THINK)
    assert thinks.mask() is None
    thinks.accept(3)
    assert thinks.mask() is None
    thinks.accept(END)
    assert allowed(thinks.mask()) == {ALLOWED}
    answers.accept(ALLOWED)
    assert allowed(answers.mask()) == {ALLOWED}, "thinking can only be the first thing"
    assert grammar.made[1].shown == [ALLOWED]


class Longer:
    """A tokenizer whose thinking begins with two tokens."""

    think_start_tokens = (THINK, 9)

    def __init__(self, tokenizer) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str):
        return getattr(self._tokenizer, name)


def test_thinking_that_takes_several_tokens_to_open_cannot_be_chosen(thinker):
    matcher = matcher_for([1, 2], Longer(thinker))
    assert isinstance(matcher, Matcher) and matcher.think_end is None


def test_a_mask_of_the_grammars_own_is_not_changed():
    """A grammar may give the same array again."""
    shared = np.zeros(-(-VOCAB // 32), dtype=np.uint32)
    grammar = Grammar()
    matcher = Constraint(grammar, THINK, (END,)).matcher()
    grammar.made[0].mask = lambda: shared
    assert allowed(matcher.mask()) == {THINK} and allowed(shared) == set()
