"""Where prompts are likely to part, found by what the template writes and proven by tokens."""

import random

import pytest
from mlx_lm.utils import load_tokenizer

from server.protocol.client import SERVER, Client, ClientGone
from server.protocol.requests import NOWHERE, ChatRequest
from server.text.places import PlaceFinder, common_length, finder_of
from server.text.prompts import TokenizerPrompts
from tests.support.talk import DROPS_THINKING, write_tokenizer
from tests.support.tiny_models import VOCAB

SYSTEM = {"role": "system", "content": "You are kind.\nBe short."}
HELLO, BYE = ({"role": "user", "content": text} for text in ("hello", "bye"))
HI = {"role": "assistant", "content": "hi"}


def prompts_over(folder, template=DROPS_THINKING, **options) -> TokenizerPrompts:
    tokenizer = load_tokenizer(write_tokenizer(folder, template))
    return TokenizerPrompts(tokenizer, VOCAB, **{"find_places": True} | options)


def pieces(prompts: TokenizerPrompts, messages: list[dict], **request) -> tuple[list[str], int]:
    """The prompt's text, cut at its places, and how many pieces of it are shared."""
    asked = ChatRequest(messages, **request)
    ids = prompts.from_chat(asked)
    places = prompts.places(asked, ids, SERVER)
    ends = [0, *places.at, len(ids)]
    assert ends == sorted(ends)
    return [prompts.decode(ids[a:b]) for a, b in zip(ends, ends[1:], strict=False)], (
        places.at.index(places.shared) + 1 if places.shared else 0
    )


@pytest.fixture
def prompts(tmp_path):
    return prompts_over(tmp_path)


def test_system_last_message_and_next_turn_are_places(prompts):
    assert pieces(prompts, [SYSTEM, HELLO, HI, BYE]) == (
        [
            "<|im_start|>system\nYou are kind.\n",
            "Be short.<|im_end|>\n<|im_start|>user\n",
            "hello<|im_end|>\n<|im_start|>assistant\nhi<|im_end|>\n<|im_start|>user\n",
            "bye<|im_end|>\n<|im_start|>assistant\n",
            "<think>\n",
        ],
        2,
    )


def test_in_a_chain_of_calls_its_start_is_a_place_and_its_last_step(prompts):
    call = {"function": {"name": "f", "arguments": {}}}
    chain = [
        HELLO,
        {"role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": "so"},
        {"role": "tool", "content": "done"},
    ]
    found, _ = pieces(prompts, chain)
    assert found[0] == "<|im_start|>user\n"
    assert found[1] == "hello<|im_end|>\n<|im_start|>assistant\n", "the user's next words drop all"
    assert found[2].startswith("<think>\nso\n</think>") and found[2].endswith("<think>\n")


def test_what_keeps_its_thoughts_is_all_part_of_the_next_turn(prompts):
    found, _ = pieces(prompts, [HELLO], template_kwargs={"preserve_thinking": True})
    assert found[-1] == "hello<|im_end|>\n<|im_start|>assistant\n<think>\n", "all of it is common"


def test_tools_are_part_of_what_is_shared(prompts):
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    found, shared = pieces(prompts, [SYSTEM, HELLO], tools=[tool])
    before = "".join(found[:shared])
    assert '"name": "f"' in before and before.endswith("Be short.<|im_end|>\n<|im_start|>user\n")


def test_an_answer_that_is_continued_has_places_before_it(prompts):
    found, _ = pieces(prompts, [SYSTEM, HELLO, HI], continues=True)
    assert found[1].endswith("<|im_start|>user\n") and "".join(found).endswith("hi")


def test_a_template_that_refuses_a_probe_gives_the_other_places(tmp_path):
    once = "{% if messages | length > 2 %}{{ raise_exception('no more') }}{% endif %}"
    found, shared = pieces(prompts_over(tmp_path, once + DROPS_THINKING), [SYSTEM, HELLO])
    assert "".join(found[:shared]).endswith("Be short.<|im_end|>\n<|im_start|>user\n")


def test_nobody_asks_where_caches_can_be_cut(tmp_path):
    prompts = prompts_over(tmp_path, find_places=False)
    asked = ChatRequest([HELLO])
    assert prompts.places(asked, prompts.from_chat(asked), SERVER) == NOWHERE


def test_it_looks_at_the_client_between(prompts):
    asked = ChatRequest([SYSTEM, HELLO])
    ids = prompts.from_chat(asked)
    with pytest.raises(ClientGone):
        prompts.places(asked, ids, Client("one", gone=lambda: True))


# By token: what tokenizers merge at the place is not common.


class Words:
    """A tokenizer that merges two line breaks, and counts the characters that it is given."""

    def __init__(self) -> None:
        self.given = 0

    def encode(self, text: str) -> list[str]:
        self.given += len(text)
        for mark in ("<u>", "<a>", "\n\n"):
            text = text.replace(mark, f"\0{mark}\0")
        parts = [
            part if part in ("<u>", "<a>", "\n\n") else list(part) for part in text.split("\0")
        ]
        return [token for part in parts for token in ([part] if isinstance(part, str) else part)]


def test_a_token_that_goes_on_over_the_place_is_not_common():
    words = Words()
    finder = PlaceFinder(words.encode, ["<u>", "<a>"])
    text, other = "<u>hello<a>\nthis", "<u>hello<a>\n\nthat"
    ids = words.encode(text)
    assert finder.common(text, ids, other) == len(words.encode("<u>hello<a>"))
    assert finder.common(text, ids, "<u>hello<a>\nthat") == len(words.encode("<u>hello<a>\nth"))


def test_a_long_conversation_is_not_tokenized_again():
    words = Words()
    finder = PlaceFinder(words.encode, ["<u>", "<a>"])
    text = "<u>" + "x" * 10**6 + "<a>" + "y" * 10**6 + "<u>bye<a>"
    ids = words.encode(text)
    words.given = 0
    late = text.replace("bye", "hello")
    assert finder.common(text, ids, late) == len(words.encode(text[: text.index("bye")]))
    words.given = 0
    assert finder.common(text, ids, "<u>" + "x" * 10**6 + "<a>z") == 0, "it would cost too much"
    assert words.given == 0


def test_without_special_tokens_texts_are_compared_from_the_start():
    words = Words()
    finder = PlaceFinder(words.encode, [])
    text = "USER: hello\n\nBOT: "
    assert finder.common(text, words.encode(text), "USER: help\n\nBOT: ") == len("USER: hel")


def test_ids_that_are_not_the_texts_give_no_place():
    words = Words()
    finder = PlaceFinder(words.encode, ["<u>", "<a>"])
    text = "<u>hello<a>bye"
    assert finder.common(text, words.encode("<u>other<u>b"), text + "!") == 0


def test_common_length_is_that_of_a_walk():
    rng = random.Random(1)
    for _ in range(500):
        a = rng.choices("ab", k=rng.randrange(12))
        b = a[: rng.randrange(len(a) + 1)] + rng.choices("ab", k=rng.randrange(6))
        right = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
        assert common_length(a, b) == (min(len(a), len(b)) if right is None else right)


def test_places_of_a_real_tokenizer_are_common_tokens(demo_model_dir):
    """Of every pair of conversations the place that is found is where their own tokens part."""
    tokenizer = load_tokenizer(demo_model_dir)
    finder = finder_of(tokenizer, True)
    rng = random.Random(3)
    alphabet = ["hello", " ", "\n", "\n\n", "  ", "1", "23", ".", "é", "日本", "it's"]
    for _ in range(40):
        said = ["".join(rng.choices(alphabet, k=rng.randrange(1, 30))) for _ in range(4)]
        roles = ["system", "user", "assistant", "user"]
        turns = [{"role": r, "content": c} for r, c in zip(roles, said, strict=True)]
        other = [*turns[:3], {"role": "user", "content": rng.choice(alphabet) + said[3][1:]}]
        texts = [
            tokenizer.apply_chat_template(t, tokenize=False, add_generation_prompt=True)
            for t in (turns, other)
        ]
        mine, its = (tokenizer.encode(text, add_special_tokens=False) for text in texts)
        assert finder.common(texts[0], mine, texts[1]) == common_length(mine, its)
