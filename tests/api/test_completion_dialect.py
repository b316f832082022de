"""Text completions as OpenAI told them, whole and in chunks."""

import math

from server.api.dialects.completions import CompletionDialect
from server.protocol.errors import engine_failed
from server.protocol.pieces import Parts, Piece, TokenLogprob, Usage

USAGE = Usage(prompt=7, completion=5)


def dialect(choices: int = 1, logprobs: bool = False, include_usage: bool = False):
    return CompletionDialect("demo", "fp_1", choices, logprobs, include_usage)


def piece(value: str, finish: str | None = None, choice: int = 0, logprobs=()) -> Piece:
    return Piece(choice, Parts(text=value), tuple(logprobs), finish)


def token(value: str, logprob: float | None = -0.5, top=()) -> TokenLogprob:
    return TokenLogprob(ord(value[0]), value, tuple(value.encode()), logprob, tuple(top))


def choice_of(events) -> dict:
    ((name, chunk),) = events
    (choice,) = chunk["choices"]
    assert name is None
    return choice


def test_usage_adds_up_and_has_all_details():
    assert dialect().whole(USAGE)["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 5,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def test_a_whole_completion():
    one = dialect()
    one.piece(piece("hel"))
    one.piece(piece("lo", "length"))
    body = one.whole(USAGE)
    assert body["id"].startswith("cmpl-") and body["object"] == "text_completion"
    assert body["created"] > 1_600_000_000
    assert (body["model"], body["system_fingerprint"]) == ("demo", "fp_1")
    assert body["choices"] == [
        {"index": 0, "text": "hello", "logprobs": None, "finish_reason": "length"}
    ]


def test_whole_choices_are_in_order_each_with_its_own_reason():
    one = dialect(choices=3)
    for part in (piece("c", "length", 2), piece("a"), piece("b", "stop", 1), piece("a", "stop")):
        one.piece(part)
    choices = one.whole(USAGE)["choices"]
    assert [(c["index"], c["text"], c["finish_reason"]) for c in choices] == [
        (0, "aa", "stop"), (1, "b", "stop"), (2, "c", "length"),
    ]  # fmt: skip


def test_all_chunks_of_an_answer_share_id_time_and_model():
    one = dialect(include_usage=True)
    events = one.piece(piece("a", "stop")) + one.closing(USAGE)
    assert events.pop() == (None, "[DONE]")
    chunks = [chunk for _, chunk in events] + [one.whole(USAGE)]
    for name in ("id", "created", "model", "system_fingerprint", "object"):
        assert len({chunk[name] for chunk in chunks}) == 1
    assert chunks[0]["object"] == "text_completion"
    assert dialect().whole(USAGE)["id"] != chunks[0]["id"]


def test_a_stream_has_text_alone_and_its_reason_last():
    one = dialect()
    assert one.opening() == []
    assert choice_of(one.piece(piece("a"))) == {
        "index": 0, "text": "a", "logprobs": None, "finish_reason": None,
    }  # fmt: skip
    last = choice_of(one.piece(piece("", "stop")))
    assert (last["text"], last["finish_reason"]) == ("", "stop")
    assert one.closing(USAGE) == [(None, "[DONE]")]


def test_usage_is_null_until_a_last_chunk_without_choices():
    one = dialect(include_usage=True)
    ((_, chunk),) = one.piece(piece("a", "stop"))
    assert chunk["usage"] is None
    (_, last), done = one.closing(USAGE)
    assert last["choices"] == [] and last["usage"]["total_tokens"] == 12
    assert done == (None, "[DONE]")
    ((_, chunk),) = dialect().piece(piece("a"))
    assert "usage" not in chunk


def test_a_failure_is_the_error_itself_and_no_done():
    error = engine_failed("Sampling failed")
    assert dialect().failed(error) == [(None, error.body())]
    assert dialect().error_body(error) == error.body()


# Log-probabilities.


def test_log_probabilities_are_four_lists_of_one_length():
    one = dialect(logprobs=True)
    top = [token("h", -0.5), token("j", -math.inf)]
    choice = choice_of(one.piece(piece("h", None, 0, [token("h", -0.5, top)])))
    assert choice["logprobs"] == {
        "tokens": ["h"], "token_logprobs": [-0.5],
        "top_logprobs": [{"h": -0.5, "j": -9999.0}], "text_offset": [0],
    }  # fmt: skip
    choice = choice_of(one.piece(piece("i", "stop", 0, [token("i", -math.inf)])))
    assert choice["logprobs"]["token_logprobs"] == [-9999.0]
    assert choice["logprobs"]["text_offset"] == [1]
    whole = one.whole(USAGE)["choices"][0]["logprobs"]
    assert whole == {
        "tokens": ["h", "i"], "token_logprobs": [-0.5, -9999.0],
        "top_logprobs": [{"h": -0.5, "j": -9999.0}, {}], "text_offset": [0, 1],
    }  # fmt: skip


def test_the_first_token_of_an_echo_has_none():
    one = dialect(logprobs=True)
    prompt = [token("a", None), token("bc", -1.0, [token("bc", -1.0)])]
    told = choice_of(one.piece(piece("abc", None, 0, prompt)))["logprobs"]
    assert told["token_logprobs"] == [None, -1.0]
    assert told["top_logprobs"] == [None, {"bc": -1.0}]
    assert told["text_offset"] == [0, 1]
    told = choice_of(one.piece(piece("d", "stop", 0, [token("d")])))["logprobs"]
    assert told["text_offset"] == [3]


def test_offsets_point_at_each_token_in_the_text_even_where_some_was_held_back():
    """A token's end, that could begin a stop string, comes with the text of a later piece."""
    one = dialect(logprobs=True)
    for part in (
        piece("one", None, 0, [token("one <")]),
        piece(" <two", None, 0, [token("two")]),
        piece("!", "stop", 0, [token("!")]),
    ):
        one.piece(part)
    (choice,) = one.whole(USAGE)["choices"]
    told = choice["logprobs"]
    assert choice["text"] == "".join(told["tokens"]) == "one <two!"
    for name, offset in zip(told["tokens"], told["text_offset"], strict=True):
        assert choice["text"].startswith(name, offset)


def test_tokens_that_are_part_of_a_character_point_at_it():
    data = "a🙂b".encode()
    tokens = [
        TokenLogprob(byte, "\ufffd" if byte > 127 else chr(byte), (byte,), -1.0) for byte in data
    ]
    one = dialect(logprobs=True)
    one.piece(piece("a🙂", None, 0, tokens[:-1]))
    one.piece(piece("b", "stop", 0, tokens[-1:]))
    assert one.whole(USAGE)["choices"][0]["logprobs"]["text_offset"] == [0, 1, 1, 1, 1, 2]


def test_what_follows_an_echo_points_behind_its_text_whatever_its_tokens():
    one = dialect(logprobs=True)
    one.piece(piece("ab", None, 0, [token("<s>", None), token("ab")]))
    one.piece(piece("c", "stop", 0, [token("c")]))
    assert one.whole(USAGE)["choices"][0]["logprobs"]["text_offset"][-1] == 2


def test_choices_count_their_offsets_apart():
    one = dialect(choices=2, logprobs=True)
    one.piece(piece("abc", None, 1, [token("abc")]))
    one.piece(piece("x", None, 0, [token("x")]))
    one.piece(piece("d", "stop", 1, [token("d")]))
    offsets = [c["logprobs"]["text_offset"] for c in one.whole(USAGE)["choices"]]
    assert offsets == [[0], [0, 3]]


def test_a_piece_without_tokens_has_empty_lists_if_they_were_asked_for():
    choice = choice_of(dialect(logprobs=True).piece(piece("", "stop")))
    assert choice["logprobs"] == {
        "tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": [],
    }  # fmt: skip
