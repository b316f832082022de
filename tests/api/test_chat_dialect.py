"""Chat completions as OpenAI tells them, whole and in chunks."""

import math

import pytest

from server.api.dialects.chat import ChatDialect
from server.protocol.errors import engine_failed
from server.protocol.pieces import CallPiece, Parts, Piece, TokenLogprob, Usage

USAGE = Usage(prompt=7, completion=5, cached=2, reasoning=1)
TOLD_USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 5,
    "total_tokens": 12,
    "prompt_tokens_details": {"cached_tokens": 2},
    "completion_tokens_details": {
        "reasoning_tokens": 1,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}


def dialect(choices: int = 1, logprobs: bool = False, include_usage: bool = False) -> ChatDialect:
    return ChatDialect("demo", "fp_1", choices, logprobs, include_usage)


def text(value: str, finish: str | None = None, choice: int = 0, logprobs=()) -> Piece:
    return Piece(choice, Parts(text=value), tuple(logprobs), finish)


def token(value: str, logprob: float = -0.5, top=()) -> TokenLogprob:
    return TokenLogprob(ord(value[0]), value, tuple(value.encode()), logprob, tuple(top))


def choices_of(events) -> list[dict]:
    """The only choice of each chunk; and chunks have no names."""
    assert all(name is None for name, _ in events)
    return [choice for _, chunk in events for choice in chunk["choices"]]


def deltas_of(events) -> list[dict]:
    return [choice["delta"] for choice in choices_of(events)]


CALLS = (
    Piece(0, Parts(reasoning="hm")),
    Piece(0, Parts(calls=(CallPiece(0, "call_1", "f"),))),
    Piece(0, Parts(calls=(CallPiece(0, arguments='{"a"'), CallPiece(0, arguments=":1}")))),
    Piece(0, Parts(calls=(CallPiece(1, "call_2", "g", "{}"),))),
    Piece(0, finish="tool_calls"),
)


# Whole.


def test_a_whole_answer():
    one = dialect()
    one.piece(text("hel"))
    one.piece(text("lo", "stop"))
    body = one.whole(USAGE)
    assert body.pop("id").startswith("chatcmpl-")
    assert body.pop("created") > 1_600_000_000
    assert body == {
        "object": "chat.completion",
        "model": "demo",
        "system_fingerprint": "fp_1",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": TOLD_USAGE,
    }


def test_whole_choices_are_in_order_each_with_its_own_reason():
    one = dialect(choices=3)
    for piece in (text("c", "length", 2), text("a"), text("b", "stop", 1), text("a", "stop")):
        one.piece(piece)
    choices = one.whole(USAGE)["choices"]
    assert [c["index"] for c in choices] == [0, 1, 2]
    assert [c["message"]["content"] for c in choices] == ["aa", "b", "c"]
    assert [c["finish_reason"] for c in choices] == ["stop", "stop", "length"]


def test_reasoning_is_told_under_both_names():
    one = dialect()
    one.piece(Piece(0, Parts(reasoning="hm")))
    one.piece(text("so", "stop"))
    message = one.whole(USAGE)["choices"][0]["message"]
    assert message["reasoning_content"] == message["reasoning"] == "hm"
    assert message["content"] == "so"


def test_whole_calls_have_no_content_and_joined_arguments():
    one = dialect()
    for piece in CALLS:
        one.piece(piece)
    (choice,) = one.whole(USAGE)["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"] == [
        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
        {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]


def test_text_before_calls_is_kept():
    one = dialect()
    for piece in (text("I look."), *CALLS):
        one.piece(piece)
    assert one.whole(USAGE)["choices"][0]["message"]["content"] == "I look."


# Streamed.


def test_all_chunks_of_an_answer_share_id_time_and_model():
    one = dialect(include_usage=True)
    events = [*one.opening(), *one.piece(text("a", "stop")), *one.closing(USAGE)]
    assert events.pop() == (None, "[DONE]")
    chunks = [chunk for _, chunk in events] + [one.whole(USAGE)]
    for name in ("id", "created", "model", "system_fingerprint"):
        assert len({chunk[name] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks[:-1]} == {"chat.completion.chunk"}
    assert dialect().whole(USAGE)["id"] != chunks[0]["id"]


def test_a_stream_opens_with_the_role_and_closes_with_the_reason():
    one = dialect()
    events = one.opening() + one.piece(text("a")) + one.piece(text("", "length"))
    assert deltas_of(events) == [{"role": "assistant", "content": ""}, {"content": "a"}, {}]
    choices = choices_of(events)
    assert [c["finish_reason"] for c in choices] == [None, None, "length"]
    assert all(c["index"] == 0 and c["logprobs"] is None for c in choices)
    assert one.closing(USAGE) == [(None, "[DONE]")]


def test_text_that_comes_with_the_end_is_a_chunk_of_its_own():
    events = dialect().piece(text("bye", "stop"))
    assert deltas_of(events) == [{"content": "bye"}, {}]
    assert [c["finish_reason"] for c in choices_of(events)] == [None, "stop"]


def test_every_choice_has_its_own_opening_and_end():
    one = dialect(choices=2)
    assert [c["index"] for c in choices_of(one.opening())] == [0, 1]
    events = one.piece(text("b", "stop", 1)) + one.piece(text("a", "length"))
    assert [(c["index"], c["finish_reason"]) for c in choices_of(events)] == [
        (1, None), (1, "stop"), (0, None), (0, "length"),
    ]  # fmt: skip


def test_reasoning_and_text_of_one_piece_are_two_chunks():
    events = dialect().piece(Piece(0, Parts(text="so", reasoning="hm")))
    assert deltas_of(events) == [{"reasoning_content": "hm", "reasoning": "hm"}, {"content": "so"}]


def test_calls_are_streamed_in_pieces():
    one = dialect()
    deltas = deltas_of([event for piece in CALLS for event in one.piece(piece)])
    assert deltas == [
        {"reasoning_content": "hm", "reasoning": "hm"},
        {"tool_calls": [{"index": 0, "id": "call_1", "type": "function",
                         "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]},
        {"tool_calls": [{"index": 1, "id": "call_2", "type": "function",
                         "function": {"name": "g", "arguments": "{}"}}]},
        {},
    ]  # fmt: skip


def test_usage_is_null_until_a_last_chunk_without_choices():
    one = dialect(include_usage=True)
    events = one.opening() + one.piece(text("a", "stop"))
    assert all(chunk["usage"] is None for _, chunk in events)
    (_, last), done = one.closing(USAGE)
    assert last["choices"] == [] and last["usage"] == TOLD_USAGE
    assert last["object"] == "chat.completion.chunk" and done == (None, "[DONE]")
    quiet = dialect()
    assert not any("usage" in chunk for _, chunk in quiet.opening() + quiet.piece(text("a")))


def test_a_failure_is_the_error_itself_and_no_done():
    error = engine_failed("Sampling failed")
    assert dialect().failed(error) == [(None, error.body())]
    assert dialect().error_body(error) == error.body()


# Log-probabilities.


def test_log_probabilities_go_with_their_text():
    one = dialect(logprobs=True)
    top = [token("h", -0.5), token("j", -math.inf)]
    told = {
        "token": "h", "logprob": -0.5, "bytes": [104],
        "top_logprobs": [
            {"token": "h", "logprob": -0.5, "bytes": [104]},
            {"token": "j", "logprob": -9999.0, "bytes": [106]},
        ],
    }  # fmt: skip
    events = one.piece(text("h", None, 0, [token("h", -0.5, top)]))
    (choice,) = choices_of(events)
    assert choice["delta"] == {"content": "h"}
    assert choice["logprobs"] == {"content": [told], "refusal": None}
    one.piece(text("i", "stop", 0, [token("i", -math.inf)]))
    logprobs = one.whole(USAGE)["choices"][0]["logprobs"]
    assert logprobs["refusal"] is None and logprobs["content"][0] == told
    assert logprobs["content"][1]["logprob"] == -9999.0
    assert "".join(t["token"] for t in logprobs["content"]) == "hi"


@pytest.mark.parametrize(
    "parts",
    [
        Parts(),
        Parts(reasoning="hm"),
        Parts(text="so", reasoning="hm"),
        Parts(calls=(CallPiece(0, "call_1", "f"),)),
    ],
)
def test_log_probabilities_are_told_once_whatever_their_tokens_became(parts):
    one = dialect(logprobs=True)
    events = one.piece(Piece(0, parts, (token("x"), token("y"))))
    carrying = [c for c in choices_of(events) if c["logprobs"]]
    assert len(carrying) == 1 and "content" in carrying[0]["delta"]
    assert [t["token"] for t in carrying[0]["logprobs"]["content"]] == ["x", "y"]
    assert len(one.whole(USAGE)["choices"][0]["logprobs"]["content"]) == 2


def test_an_answer_without_tokens_has_an_empty_list_if_it_was_asked_for():
    one = dialect(logprobs=True)
    one.piece(Piece(0, finish="stop"))
    assert one.whole(USAGE)["choices"][0]["logprobs"] == {"content": [], "refusal": None}
