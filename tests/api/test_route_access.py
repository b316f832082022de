"""Keys and other origins, through the whole front end."""

import openai
import pytest

from server.scheduler.prefix_index import EVERYBODY
from tests.support.api_service import MODEL, chat


def test_a_key_is_asked_for_everywhere_but_in_health(start):
    service = start(API_KEY="first-key, second-kéy")
    for method, path in (
        ("GET", "/v1/models"),
        ("GET", "/queue"),
        ("POST", "/v1/chat/completions"),
        ("GET", "/nowhere"),
    ):
        answer = service.ask(method, path, "{}" if method == "POST" else None)
        assert answer.status == 401
        assert answer.error["type"] == "authentication_error"
        assert answer.error["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
    assert service.ask("GET", "/health").status == 200
    assert service.ask("OPTIONS", "/v1/models").status == 200


def test_a_new_key_in_the_file_needs_no_restart(start, tmp_path):
    file = tmp_path / "keys"
    file.write_text("old\n")
    service = start(API_KEY_FILE=str(file))
    ask = lambda key: service.ask("GET", "/v1/models", None, f"x-api-key: {key}").status  # noqa: E731
    assert (ask("old"), ask("new")) == (200, 401)
    file.write_text("new of bob\n")
    assert (ask("old"), ask("new")) == (401, 200)


def owners(service, *keys: str) -> list[str]:
    """Whose the prompts are that these keys send."""
    for key in keys:
        assert chat(service.client(key)).choices[0].message.content == "hello"
    return [ticket.owner for ticket in service.engine.seen[-len(keys) :]]


def test_prompts_belong_to_nobody_unless_keys_are_kept_apart(start):
    assert owners(start(API_KEY="one,two"), "one", "two") == ["", ""]
    assert owners(start(), "none") == [""]


def test_prompts_belong_to_the_key_or_to_its_name(start, tmp_path):
    file = tmp_path / "keys"
    file.write_text("a\nb team\nc team\nd key 1\n")
    service = start(API_KEY_FILE=str(file), PREFIX_SHARING="key")
    a, b, c, d = owners(service, "a", "b", "c", "d")
    assert b == c and len({a, b, d}) == 3
    assert "a" not in a.split() and EVERYBODY not in (a, b, d)
    # Its place is another, its owner is not.
    file.write_text("b other\nd\na\n")
    again, _, own = owners(service, "a", "b", "d")
    assert again == a and own == d


def test_every_route_says_whose_its_prompts_are(start):
    service = start(API_KEY="one", PREFIX_SHARING="key")
    bodies = {
        "chat/completions": {"messages": [{"role": "user", "content": "x"}]},
        "completions": {"prompt": ["x", "y"]},
        "responses": {"input": "x"},
        "messages": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 5},
    }
    for path, body in bodies.items():
        asked = {"model": MODEL} | body
        assert service.ask("POST", f"/v1/{path}", asked, "x-api-key: one").status == 200
    assert len(service.engine.seen) == 5
    assert (
        {ticket.owner for ticket in service.engine.seen} == {service.engine.seen[0].owner} != {""}
    )


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Authorization: Bearer first-key", 200),
        ("Authorization: bearer   first-key ", 200),
        ("Authorization: Bearer second-key", 200),
        ("x-api-key: first-key", 200),
        ("X-API-Key: second-key", 200),
        ("Authorization: Bearer first-key,second-key", 401),
        ("Authorization: Bearer FIRST-KEY", 401),
        ("Authorization: Bearer first-ke", 401),
        ("Authorization: Bearer ", 401),
        ("Authorization: Bearer", 401),
        ("Authorization: first-key", 401),
        ("Authorization: Basic first-key", 401),
        ("x-api-key:", 401),
        ("x-api-key: \xff\xfe", 401),
        ("Api-Key: first-key", 401),
    ],
)
def test_each_key_opens_in_either_header(start, header, status):
    service = start(API_KEY="first-key,second-key")
    assert service.ask("GET", "/v1/models", None, header).status == status


def test_a_key_beyond_ascii_opens_as_utf_8(start):
    service = start(API_KEY="schlüssel")
    assert service.ask("GET", "/v1/models", None, "x-api-key: schlüssel").status == 200


def test_the_openai_client_signs_in(start):
    service = start(API_KEY="right")
    assert chat(service.client("right")).choices[0].message.content == "hello"
    with pytest.raises(openai.AuthenticationError) as caught:
        chat(service.client("wrong"))
    assert caught.value.code == "invalid_api_key"


def test_a_large_body_with_a_wrong_key_still_gets_its_401(start):
    """The body is not read; the answer used to be lost in the connection's reset."""
    service = start(API_KEY="right")
    with pytest.raises(openai.AuthenticationError):
        chat(service.client("wrong"), "x" * 10_000_000)


def test_no_origin_is_allowed_unless_configured(service):
    for method in ("GET", "OPTIONS"):
        answer = service.ask(method, "/v1/models", None, "Origin: http://page")
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_an_allowed_origin_may_read_answers_errors_and_streams(start):
    service = start(ALLOWED_ORIGINS="http://page, http://other")
    asks = [
        ("GET", "/v1/models", None),
        ("GET", "/nowhere", None),
        ("POST", "/v1/completions", {"prompt": "x", "stream": True}),
    ]
    for method, path, body in asks:
        answer = service.ask(method, path, body, "Origin: http://page")
        assert answer.headers["access-control-allow-origin"] == "http://page"
        assert answer.headers["vary"] == "Origin"
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        for origin in ("Origin: http://evil", "Origin: http://page.evil", "X-None: 1"):
            answer = service.ask(method, path, body, origin)
            assert "access-control-allow-origin" not in answer.headers
            assert answer.headers["vary"] == "Origin"


def test_a_preflight_needs_no_key_and_allows_what_sdks_send(start):
    service = start(ALLOWED_ORIGINS="http://page", API_KEY="right")
    asked = "authorization,content-type,x-stainless-lang,bad\x01name, folded: 1"
    answer = service.ask(
        "OPTIONS", "/v1/chat/completions", None, "Origin: http://page",
        "Access-Control-Request-Method: POST", f"Access-Control-Request-Headers: {asked}",
    )  # fmt: skip
    assert answer.status == 200
    allowed = answer.headers["access-control-allow-headers"].split(", ")
    assert {"authorization", "content-type", "x-api-key", "x-stainless-lang"} <= set(allowed)
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "folded" not in answer.headers
    answer = service.ask("GET", "/v1/models", None, "Origin: http://page")
    assert answer.status == 401 and answer.headers["access-control-allow-origin"] == "http://page"


def test_any_origin_can_be_allowed(start):
    service = start(ALLOWED_ORIGINS="*")
    answer = service.ask("GET", "/v1/models", None, "Origin: http://anything")
    assert answer.headers["access-control-allow-origin"] == "*"
