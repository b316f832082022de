"""Several choices of a request, echo and log-probabilities, through the whole front end."""

import openai
import pytest

from server.protocol.errors import engine_failed
from server.protocol.events import Failed, Token
from tests.support.api_service import MODEL, chat
from tests.support.stub_engine import CONTEXT


def by_prompt(*texts: str):
    """A script: choice n says the nth of the texts, cut after its first X."""

    def script(ticket):
        text = texts[ticket.choice]
        for n, letter in enumerate(text, 1):
            yield Token(ord(letter), "stop" if n == len(text) else None)

    return script


def test_n_choices_come_whole_and_in_order(service, client):
    answer = chat(client, "hello", n=3)
    assert [c.index for c in answer.choices] == [0, 1, 2]
    assert [c.message.content for c in answer.choices] == ["hello"] * 3
    assert [c.finish_reason for c in answer.choices] == ["stop"] * 3
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (5, 15, 20)
    assert len(service.engine.seen) == 3


def test_n_choices_stream_side_by_side_each_with_one_end(client):
    options = {"include_usage": True}
    *chunks, last = chat(client, "hello", n=3, stream=True, stream_options=options)
    assert len({(c.id, c.created) for c in [*chunks, last]}) == 1
    assert all(c.usage is None and len(c.choices) == 1 for c in chunks)
    assert last.choices == [] and last.usage.prompt_tokens == 5
    assert last.usage.completion_tokens == 15
    for index in range(3):
        own = [c.choices[0] for c in chunks if c.choices[0].index == index]
        assert (own[0].delta.role, own[0].delta.content) == ("assistant", "")
        assert [c.delta.role for c in own[1:]] == [None] * (len(own) - 1)
        assert "".join(c.delta.content or "" for c in own) == "hello"
        assert [c.finish_reason for c in own] == [None] * (len(own) - 1) + ["stop"]
    order = [c.choices[0].index for c in chunks]
    assert order[3:9] == [0, 1, 2, 0, 1, 2], "side by side, not one after the other"


def test_a_stop_string_ends_its_own_choice_while_the_others_go_on(start):
    service = start()
    service.engine.script = by_prompt("abXcdefgh", "abcdeX", "abcdefgh")
    answer = chat(service.client(), n=3, stop=["X"])
    assert [c.message.content for c in answer.choices] == ["ab", "abcde", "abcdefgh"]
    assert [c.finish_reason for c in answer.choices] == ["stop"] * 3
    service.wait_for(lambda: service.line.held() == 0)
    chunks = list(chat(service.client(), n=3, stop=["X"], stream=True))
    texts = ["", "", ""]
    ends = []
    for choice in (c.choices[0] for c in chunks):
        assert choice.index not in ends, "nothing follows a choice's end"
        texts[choice.index] += choice.delta.content or ""
        if choice.finish_reason:
            ends.append(choice.index)
    assert texts == ["ab", "abcde", "abcdefgh"] and ends == [0, 1, 2]


def test_choices_end_for_reasons_of_their_own(start):
    service = start()
    service.engine.script = lambda ticket: iter(
        [Token(ord("a"), None), Token(ord("b"), ("length", "stop")[ticket.choice])]
    )
    answer = chat(service.client(), n=2)
    assert [c.finish_reason for c in answer.choices] == ["length", "stop"]


@pytest.mark.parametrize("stream", [False, True])
def test_one_choice_that_fails_fails_the_request_and_frees_the_others(start, stream):
    service = start()

    def script(ticket):
        yield Token(ord("a"), None)
        if ticket.choice == 1:
            yield Failed(engine_failed("Sampling failed: a bad row"))
        while True:
            yield Token(ord("b"), None)

    service.engine.script = script
    with pytest.raises(openai.APIError) as caught:
        list(chat(service.client(), n=3, stream=stream))
    assert caught.value.code == "engine_error"
    service.wait_for(lambda: service.line.held() == 0 and service.line.unanswered() == 0)


def test_a_list_of_prompts_gives_the_choices_of_each_in_turn(service, client):
    for prompts in (["one", "three"], [[ord(c) for c in text] for text in ("one", "three")]):
        answer = client.completions.create(model=MODEL, prompt=prompts, n=2)
        assert [(c.index, c.text) for c in answer.choices] == [
            (0, "one"), (1, "one"), (2, "three"), (3, "three"),
        ]  # fmt: skip
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (8, 16)
    same = client.completions.create(model=MODEL, prompt=["hi", "hi"])
    assert same.usage.prompt_tokens == 4, "two prompts, though they are equal"


def test_a_list_of_prompts_streams_with_the_same_indices(client):
    chunks = list(client.completions.create(model=MODEL, prompt=["one", "three"], n=2, stream=True))
    texts, ends = [""] * 4, [0] * 4
    for choice in (c.choices[0] for c in chunks):
        texts[choice.index] += choice.text
        ends[choice.index] += choice.finish_reason is not None
    assert texts == ["one", "one", "three", "three"] and ends == [1] * 4


def test_each_prompt_of_a_list_has_the_limit_that_its_length_leaves(service, client):
    client.completions.create(model=MODEL, prompt=["x" * 90, "y"], max_tokens=50)
    assert [ticket.max_tokens for ticket in service.engine.seen] == [CONTEXT - 90, 50]


def test_one_bad_prompt_of_a_list_refuses_all(service, client):
    for prompts, code in (
        (["ok", "x" * 5000], "context_length_exceeded"),
        ([[1], [0x110000]], None),
        (["ok", ""], None),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model=MODEL, prompt=prompts)
        assert (caught.value.param, caught.value.code) == ("prompt", code)
    assert not service.engine.seen


def test_best_of_is_taken_where_it_asks_for_nothing_more(client):
    answer = client.completions.create(model=MODEL, prompt="hi", n=2, best_of=2)
    assert len(answer.choices) == 2
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt="hi", n=2, best_of=3)
    assert caught.value.param == "best_of"


def test_more_choices_than_the_server_holds_are_400_not_429(start):
    service = start(MAX_BATCH="2", QUEUE_MAX="1")
    client = service.client(max_retries=3)
    for ask in (
        lambda: chat(client, n=4),
        lambda: chat(client, n=4, stream=True),
        lambda: client.completions.create(model=MODEL, prompt=["a", "b"], n=2),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            ask()
        assert "4 choices" in caught.value.message and "3 at most" in caught.value.message
    assert len(chat(client, n=3).choices) == 3


def test_choices_take_places_one_by_one(start):
    service = start(MAX_BATCH="2", QUEUE_MAX="2")
    with service.filled(2):
        with pytest.raises(openai.RateLimitError) as caught:
            chat(service.client(), n=3)
        assert "2 requests running and 0 waiting" in caught.value.message
        assert caught.value.response.headers["retry-after"]
        service.open("/v1/completions", {"prompt": "hi", "n": 2}).close()
    assert len(chat(service.client(), n=4).choices) == 4


def test_an_echo_begins_with_the_prompt(client):
    for prompt in ("hello", [ord(letter) for letter in "hello"]):
        answer = client.completions.create(model=MODEL, prompt=prompt, echo=True, n=2, max_tokens=2)
        assert [c.text for c in answer.choices] == ["hellohe"] * 2
        assert answer.usage.completion_tokens == 4
    chunks = list(client.completions.create(model=MODEL, prompt="hi", echo=True, stream=True))
    assert [c.choices[0].text for c in chunks] == ["hi", "h", "i"]


def test_a_stop_string_in_the_prompt_does_not_stop_its_echo(client):
    answer = client.completions.create(model=MODEL, prompt="hello", echo=True, stop="l")
    assert answer.choices[0].text == "hellohe"


@pytest.mark.parametrize("stream", [False, True])
def test_completion_log_probabilities_are_four_lists(client, stream):
    answer = client.completions.create(
        model=MODEL, prompt="abc", logprobs=2, echo=True, max_tokens=2, n=2, stream=stream
    )
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    told = [{name: [] for name in names} for _ in range(2)]
    for part in answer if stream else [answer]:
        for choice in part.choices:
            for name, values in told[choice.index].items():
                values += getattr(choice.logprobs, name)
    for one in told:
        assert one["tokens"] == list("abcab") and one["text_offset"] == [0, 1, 2, 3, 4]
        assert one["token_logprobs"] == [None, -1, -2, -1, -2]
        assert one["top_logprobs"] == [
            None, {"c": -1.5, "d": -9999.0}, {"d": -2.5, "e": -9999.0},
            {"b": -1.5, "c": -9999.0}, {"c": -2.5, "d": -9999.0},
        ]  # fmt: skip


def test_the_prompt_is_scored_once_and_only_where_it_is_asked_for(service, client):
    for fields, scored in (
        ({"echo": True, "logprobs": 0, "n": 2}, [True, False]),
        ({"echo": True}, [False]),
        ({"logprobs": 3}, [False]),
        ({"prompt": ["a", "b"], "echo": True, "logprobs": 1}, [True, True]),
    ):
        service.engine.seen.clear()
        client.completions.create(**{"model": MODEL, "prompt": "hello"} | fields)
        assert [ticket.score_prompt for ticket in service.engine.seen] == scored


def test_log_probabilities_of_none_asked_for_are_null(client):
    answer = client.completions.create(model=MODEL, prompt="hi!", logprobs=0)
    # The token that ended the answer is no part of what is told.
    assert answer.choices[0].logprobs.tokens == ["h", "i"]
    assert answer.choices[0].logprobs.top_logprobs == [{}, {}]
    assert client.completions.create(model=MODEL, prompt="hi").choices[0].logprobs is None


@pytest.mark.parametrize("stream", [False, True])
def test_chat_log_probabilities_have_bytes_and_join_to_the_text(client, stream):
    answer = chat(client, "hé🙂", logprobs=True, top_logprobs=2, n=2, stream=stream)
    told = [[], []]
    for part in answer if stream else [answer]:
        for choice in part.choices:
            told[choice.index] += choice.logprobs.content if choice.logprobs else []
    for tokens in told:
        assert "".join(t.token for t in tokens) == "hé"
        assert bytes(b for t in tokens for b in t.bytes).decode() == "hé"
        assert [t.logprob for t in tokens] == [-1, -2]
        assert [[a.logprob for a in t.top_logprobs] for t in tokens] == [
            [-1.5, -9999],
            [-2.5, -9999],
        ]
    assert chat(client, "hi").choices[0].logprobs is None
