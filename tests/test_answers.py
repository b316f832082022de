"""OpenAI's shapes, whole and in chunks."""

import pytest

from server.answers import Answer, model_card


def answer(chat: bool) -> Answer:
    return Answer(chat, "demo", "fp_1", prompt_tokens=7)


def test_usage_adds_up_and_has_all_details():
    assert answer(True).usage(5) == {
        "prompt_tokens": 7,
        "completion_tokens": 5,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def test_a_whole_chat_answer():
    body = answer(True).whole("hello", "stop", 5)
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
        "usage": answer(True).usage(5),
    }


def test_a_whole_completion():
    body = answer(False).whole("hello", "length", 5)
    assert body["id"].startswith("cmpl-") and body["object"] == "text_completion"
    assert body["choices"] == [
        {"index": 0, "text": "hello", "logprobs": None, "finish_reason": "length"}
    ]


@pytest.mark.parametrize("chat", [True, False])
def test_all_chunks_of_an_answer_share_id_time_and_model(chat):
    one = answer(chat)
    chunks = [one.chunk("a"), one.closing("stop"), one.usage_chunk(3), one.whole("a", "stop", 3)]
    for name in ("id", "created", "model", "system_fingerprint"):
        assert len({chunk[name] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks[:3]} == {
        "chat.completion.chunk" if chat else "text_completion"
    }
    assert answer(chat).id != one.id


def test_a_chat_stream_opens_with_the_role_and_closes_with_the_reason():
    one = answer(True)
    choices = [c["choices"][0] for c in (one.opening(), one.chunk("a"), one.closing("length"))]
    assert [c["delta"] for c in choices] == [
        {"role": "assistant", "content": ""}, {"content": "a"}, {},
    ]  # fmt: skip
    assert [c["finish_reason"] for c in choices] == [None, None, "length"]
    assert all(c["index"] == 0 and c["logprobs"] is None for c in choices)


def test_a_completion_stream_has_text_alone():
    one = answer(False)
    assert one.opening() is None
    assert one.chunk("a")["choices"][0] == {
        "index": 0, "text": "a", "logprobs": None, "finish_reason": None,
    }  # fmt: skip
    assert one.closing("stop")["choices"][0]["text"] == ""
    assert one.closing("stop")["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("chat", [True, False])
def test_the_usage_chunk_has_no_choices(chat):
    chunk = answer(chat).usage_chunk(3)
    assert chunk["choices"] == [] and chunk["usage"]["total_tokens"] == 10


def test_a_model_card_names_the_context_once_it_is_known():
    card = model_card("org/demo", 5, 8192)
    assert card == {
        "id": "org/demo", "object": "model", "created": 5, "owned_by": "mlx-cluster",
        "max_model_len": 8192,
    }  # fmt: skip
    assert model_card("demo", 5, 0)["max_model_len"] is None
