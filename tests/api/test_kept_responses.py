"""Answers that are kept: going on from them, who finds them, and how much of them there is."""

import openai
import pytest

from server.api.dialects.kept_responses import KeptResponses
from server.api.dialects.responses import ResponsesDialect, parse
from server.protocol.errors import ApiError
from tests.support.front_end import MODEL, TEXT, FrontEnd
from tests.support.played import SCRIPTS, SERVED, called, ended, whole_of

ADD = {"type": "function", "name": "add"}


def answer(shelf, script="text", **body) -> dict:
    _, echo = parse({"input": "hi", "tools": [ADD]} | body, SERVED, shelf)

    def keep(response):
        if echo.said is not None:
            shelf.keep(response, echo.said)

    return whole_of(ResponsesDialect(echo, keep), SCRIPTS[script])


def turns(shelf, **body) -> list[dict]:
    return parse({"input": "hi"} | body, SERVED, shelf)[0].messages


def refusal(shelf, **body) -> ApiError:
    with pytest.raises(ApiError) as refused:
        turns(shelf, **body)
    return refused.value


def result(text="2"):
    return {"type": "function_call_output", "call_id": "call_0", "output": text}


def test_a_request_goes_on_from_an_answer():
    shelf = KeptResponses(10).of(None)
    first = answer(shelf, "text then call", instructions="Old.")
    told = turns(
        shelf, previous_response_id=first["id"], input=[result()], instructions="New.", tools=[ADD]
    )
    assert [turn["role"] for turn in told] == ["system", "user", "assistant", "tool"]
    assert told[0]["content"] == "New." and told[1]["content"] == "hi"
    assert told[2]["content"].strip() == "I'll add." and told[2]["reasoning_content"] == "Hm."
    assert told[2]["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 1}}


def test_a_chain_holds_all_that_was_said_and_may_fork():
    shelf = KeptResponses(10).of(None)
    first = answer(shelf, input="one")
    forks = [answer(shelf, input=text, previous_response_id=first["id"]) for text in ("a", "b")]
    for fork, text in zip(forks, "ab", strict=True):
        assert fork["previous_response_id"] == first["id"] and fork["store"] is True
        told = turns(shelf, input="end", previous_response_id=fork["id"])
        assert [turn["content"] for turn in told] == ["one", "Hello", text, "Hello", "end"]


@pytest.mark.parametrize("type", [{"type": "item_reference"}, {"type": None}, {}])
def test_an_item_of_an_answer_may_be_referred_to(type):
    shelf = KeptResponses(10).of(None)
    first = answer(shelf, "text then call")
    user = {"role": "user", "content": "hi"}
    by_id = [{**type, "id": item["id"]} for item in first["output"]]
    assert turns(shelf, input=[user, *by_id, result()], tools=[ADD]) == turns(
        shelf, input=[user, *first["output"], result()], tools=[ADD]
    )


def test_nothing_is_kept_of_what_shall_not_be():
    for store, most in ((False, 10), (True, 0), (None, 0)):
        shelf = KeptResponses(most).of(None)
        response = answer(shelf, store=store)
        assert response["store"] is False and not shelf.bytes and not len(shelf)
        assert refusal(shelf, previous_response_id=response["id"]).status == 404


def test_what_is_not_there_is_told_in_openais_words():
    shelf = KeptResponses(10).of(None)
    missing = refusal(shelf, previous_response_id="resp_1")
    assert (missing.status, missing.param) == (404, "previous_response_id")
    assert missing.code == "previous_response_not_found"
    assert missing.message == "Previous response with id 'resp_1' not found."
    missing = refusal(shelf, input=[{"type": "item_reference", "id": "msg_1"}])
    assert (missing.status, missing.param) == (404, "input")
    assert missing.message.startswith("Item with id 'msg_1' not found.")
    assert len(refusal(shelf, previous_response_id="x" * 10**6).message) < 200


def test_each_key_finds_its_own_alone():
    store = KeptResponses(10)
    mine, other = store.of("mine"), store.of("other")
    first = answer(mine)
    assert mine.response(first["id"]) == first
    for look in (other.response, other.delete, other.conversation):
        with pytest.raises(ApiError) as refused:
            look(first["id"])
        assert refused.value.status == 404
    assert store.of("mine") is mine and len(mine) == 1


def test_the_oldest_of_whoever_has_most_goes_first():
    store = KeptResponses(4)
    quiet, busy = store.of("quiet"), store.of("busy")
    kept = answer(quiet)
    ids = [answer(busy)["id"] for _ in range(6)]
    assert quiet.response(kept["id"]) and (len(quiet), len(busy)) == (1, 3)
    busy.conversation(ids[3])  # used: not the oldest any more
    answer(busy)
    assert busy.response(ids[3])
    with pytest.raises(ApiError):
        busy.response(ids[4])


def test_bytes_are_bounded_and_a_conversation_counts_once():
    store = KeptResponses(1000, most_bytes=200_000)
    shelf = store.of(None)
    first = answer(shelf, input="x" * 50_000)
    grown = shelf.bytes
    assert grown > 50_000
    last = first
    for _ in range(5):
        last = answer(shelf, previous_response_id=last["id"], input="y")
    assert len(shelf) == 6 and shelf.bytes < grown + 50_000
    for _ in range(8):
        answer(shelf, input="z" * 50_000)
        assert shelf.bytes <= 200_000
    assert 0 < len(shelf) < 8
    answer(shelf, input="z" * 300_000)  # more than there may be of all
    assert len(shelf) == 0 and shelf.bytes == 0


def test_a_deleted_answer_is_gone_with_its_items():
    shelf = KeptResponses(10).of(None)
    first = answer(shelf)
    second = answer(shelf, previous_response_id=first["id"])
    shelf.delete(first["id"])
    for look in (shelf.response, shelf.delete, shelf.conversation):
        with pytest.raises(ApiError):
            look(first["id"])
    with pytest.raises(ApiError):
        shelf.item(first["output"][0]["id"])
    # What goes on from it has all that it needs.
    assert len(turns(shelf, previous_response_id=second["id"])) == 5
    shelf.delete(second["id"])
    assert shelf.bytes == 0


def test_an_answer_that_nobody_could_send_back_is_told_and_not_kept():
    shelf = KeptResponses(10).of(None)
    _, echo = parse({"input": "hi", "tools": [{"type": "custom", "name": "put"}]}, SERVED, shelf)
    dialect = ResponsesDialect(echo, lambda response: shelf.keep(response, echo.said))
    half = [called(0, '{"input": "\\ud83d"}', name="put"), ended("tool_calls")]
    assert whole_of(dialect, half)["output"][0]["input"] == "\ud83d"
    assert len(shelf) == 0 and shelf.bytes == 0


def test_a_conversation_has_no_more_turns_by_being_kept():
    shelf = KeptResponses(10).of(None)
    first = answer(shelf, input=[{"role": "user", "content": "x"}] * 9_000)
    items = [{"role": "user", "content": "x"}] * 1_000
    assert refusal(shelf, previous_response_id=first["id"], input=items).param == "input"


# Through the front end.


@pytest.fixture(scope="module")
def front_end(demo_model_dir):
    one = FrontEnd(demo_model_dir, API_KEY="right,other", RESPONSES_KEPT="3")
    yield one
    one.end()


def client(front_end, key="right") -> openai.OpenAI:
    return openai.OpenAI(base_url=front_end.url, api_key=key, max_retries=0)


@pytest.mark.parametrize("stream", [False, True])
def test_openai_goes_on_from_an_answer_shows_it_and_deletes_it(front_end, stream):
    api = client(front_end)
    if stream:
        with api.responses.stream(model=MODEL, input="Where?") as events:
            first = events.until_done().get_final_response()
    else:
        first = api.responses.create(model=MODEL, input="Where?")
    second = api.responses.create(model=MODEL, input="And?", previous_response_id=first.id)
    assert second.output_text == TEXT and second.previous_response_id == first.id
    assert second.usage.input_tokens > first.usage.input_tokens + first.usage.output_tokens
    shown = api.responses.retrieve(first.id)
    assert shown.to_dict() == first.to_dict() if not stream else shown.id == first.id
    with pytest.raises(openai.NotFoundError):
        client(front_end, "other").responses.retrieve(first.id)
    api.responses.delete(first.id)
    for ask in (api.responses.retrieve, api.responses.delete):
        with pytest.raises(openai.NotFoundError) as missing:
            ask(first.id)
        assert missing.value.body["message"] == f"Response with id {first.id!r} not found."
    with pytest.raises(openai.NotFoundError) as missing:
        api.responses.create(model=MODEL, input="And?", previous_response_id=first.id)
    assert missing.value.code == "previous_response_not_found"


def test_the_setting_bounds_how_many_are_kept(front_end):
    api = client(front_end)
    ids = [api.responses.create(model=MODEL, input="Where?").id for _ in range(4)]
    with pytest.raises(openai.NotFoundError):
        api.responses.retrieve(ids[0])
    assert [api.responses.retrieve(id).id for id in ids[1:]] == ids[1:]


def test_other_methods_are_told_what_there_is(front_end):
    told = front_end.ask("PUT", "/v1/responses/x", {}, "Authorization: Bearer right")
    assert told.status == 405 and told.headers["allow"] == "DELETE, GET, HEAD, OPTIONS"
    assert front_end.ask("DELETE", "/v1/responses/x").status == 401
