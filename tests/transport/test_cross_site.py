"""Who may use the server through a browser: pages of other sites, other names, other types."""

import functools
import socket
import threading

import pytest

from server.api.routes import App
from server.observe.status import Status
from server.protocol.settings import SettingError, read_settings
from server.scheduler.queue import Line
from server.transport import host_names
from server.transport.host_names import HostNames, is_address, is_origin_of, split_authority
from tests.support.raw_http import RawClient, request
from tests.transport.test_http_server import serving

GETS = ["/health", "/queue", "/cluster", "/metrics", "/v1/models", "/openapi.json", "/v1/models/x"]
POSTS = [
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages",
    "/v1/messages/count_tokens", "/tokenize", "/detokenize",
]  # fmt: skip
ROUTES = [*(("GET", path) for path in [*GETS, "/nowhere"]), *(("POST", path) for path in POSTS)]
LOADING = 503  # what a request gets that is let in: there is no model here


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts the App under the settings, once, and returns a function that asks it."""
    tmp_path = tmp_path_factory.mktemp("model")
    servers = []

    @functools.cache
    def start_one(**env: str):
        settings = read_settings({"MODEL_DIR": str(tmp_path), "MODEL_ID": "x"} | env)
        status = Status("x", "run")
        context = serving(App(settings, status, Line(1, 1)))
        server = context.__enter__()
        servers.append(context)

        def ask(method: str, path: str, *headers: str, body: str | None = None, host="localhost"):
            data = request(method, path, body, *headers)
            host_line = f"Host: {host}\r\n" if host is not None else ""
            data = data.replace(b"Host: localhost\r\n", host_line.encode("latin-1"), 1)
            with RawClient(server.port) as client:
                return client.ask(data, head=method == "HEAD")

        return ask

    yield start_one
    for context in servers:
        context.__exit__(None, None, None)


def told(answer) -> str:
    """The message; /v1/messages has errors of another shape."""
    return answer.json["error"]["message"]


# Origins.


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "headers",
    [
        ["Origin: https://evil.example"],
        ["Origin: null"],
        ["Origin: http://localhost.evil.example"],
        ["Sec-Fetch-Site: cross-site"],
        ["Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: no-cors"],
    ],
)
def test_a_page_of_another_site_is_refused_everywhere(start, method, path, headers):
    """A page could generate with a text/plain body, which no browser asks about beforehand."""
    ask = start()
    answer = ask(method, path, *headers, "Content-Type: text/plain", body="{}" * (method == "POST"))
    assert answer.status == 403 and "ALLOWED_ORIGINS" in told(answer)
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "headers",
    [
        ["Origin: https://evil.example", "Origin: http://localhost"],
        ["Origin: http://localhost", "Origin: https://evil.example"],
        ["Origin: http://localhost", "Sec-Fetch-Site: cross-site"],
        ["Origin: https://evil.example", "Sec-Fetch-Site: none"],
        ["Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site", "Origin: null"],
        ["Sec-Fetch-Site: rubbish"],
        ["Origin:"],
        ["Origin: http://localhost:81"],
        ["Origin: http://localhost@evil.example"],
        ["Origin: http://evil.example#@localhost"],
        ["Origin: localhost"],
        ["Origin: ws://localhost"],
        ["Origin: app://obsidian.md"],
        ["Origin: file://"],
        ["Origin: vscode-webview://0a1b"],
        ["Origin: chrome-extension://abcdef"],
        ["Origin: https://evil.example", "Upgrade: websocket", "Connection: Upgrade"],
    ],
)
def test_what_is_not_clearly_our_own_page_is_refused(start, headers):
    answer = start()("GET", "/health", *headers)
    assert (answer.status, answer.error["code"]) == (403, "origin_not_allowed")


@pytest.mark.parametrize("env", [{}, {"API_KEY": "right"}])
def test_a_preflight_of_another_site_is_refused_and_a_key_changes_nothing(start, env):
    ask = start(**env)
    asked = ["Origin: https://evil.example", "Access-Control-Request-Method: POST"]
    answer = ask("OPTIONS", POSTS[0], *asked, "Access-Control-Request-Private-Network: true")
    assert answer.status == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]
    key = "Authorization: Bearer right"
    assert ask("GET", "/v1/models", key, "Origin: https://evil.example").status == 403
    assert ask("GET", "/v1/models", key).status == 200


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost", "http://localhost"),
        ("localhost:80", "http://localhost"),
        ("localhost:8080", "http://localhost:8080"),
        ("LocalHost.:8080", "HTTP://LOCALHOST:8080"),
        ("127.0.0.1:9000", "http://127.0.0.1:9000"),  # a forwarded port
        ("[::1]:8080", "http://[::1]:8080"),
        ("localhost", "https://localhost"),  # behind a proxy with TLS
        ("localhost:443", "https://localhost"),
    ],
)
def test_our_own_page_is_let_in(start, host, origin):
    ask = start()
    for site in ([], ["Sec-Fetch-Site: same-origin"]):
        json = "Content-Type: application/json"
        post = ask("POST", POSTS[0], f"Origin: {origin}", json, *site, body="{}", host=host)
        assert post.status == LOADING
        assert ask("GET", "/cluster", *site, host=host).status == 200


def test_our_page_behind_a_proxy_that_renames_the_host_is_vouched_for_by_the_browser(start):
    headers = ["Origin: https://llm.example", "Sec-Fetch-Site: same-origin"]
    headers.append("Content-Type: application/json")
    assert start()("POST", POSTS[0], *headers, body="{}", host="127.0.0.1").status == LOADING


def test_a_link_to_our_page_works_and_leads_nowhere_else(start):
    ask = start()
    for site in ("cross-site", "same-site", "none"):
        link = [f"Sec-Fetch-Site: {site}", "Sec-Fetch-Mode: navigate"]
        for path in ("/", "/?x=1", "/v1/"):
            assert ask("GET", path, *link).status == 200
        assert ask("HEAD", "/", *link).status == 200
    assert ask("GET", "/cluster", "Sec-Fetch-Site: cross-site").status == 403
    assert ask("POST", "/", "Sec-Fetch-Site: cross-site", body="").status == 403
    assert ask("GET", "/cluster", "Sec-Fetch-Site: none").status == 200  # typed by its user


@pytest.mark.parametrize("origin", ["https://Chat.Example", "app://obsidian.md", "null"])
def test_listed_origins_are_let_in_whatever_they_are(start, origin):
    ask = start(ALLOWED_ORIGINS=f"http://other, {origin}/")
    for written in (origin, origin.lower()):
        headers = [f"Origin: {written}", "Sec-Fetch-Site: cross-site"]
        answer = ask("GET", "/cluster", *headers)
        assert answer.status == 200
        assert answer.headers["access-control-allow-origin"] == written
        preflight = ask("OPTIONS", POSTS[0], *headers, "Access-Control-Request-Private-Network: x")
        assert preflight.headers["access-control-allow-private-network"] == "true"
    assert ask("GET", "/cluster", "Origin: https://chat.example.evil").status == 403


def test_a_star_lets_every_page_in(start):
    ask = start(ALLOWED_ORIGINS="*")
    headers = ["Origin: https://evil.example", "Content-Type: text/plain"]
    assert ask("POST", POSTS[0], *headers, body="{}").status == LOADING


# Types.


@pytest.mark.parametrize("path", POSTS)
def test_a_browser_s_body_must_say_that_it_is_json_and_others_need_not(start, path):
    ask = start(ALLOWED_ORIGINS="http://page")
    simple = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", None]
    for given in [*simple, "text/plain;application/json", "application/json, text/plain"]:
        kind = [] if given is None else [f"Content-Type: {given}"]
        for browser in (["Origin: http://localhost"], ["Sec-Fetch-Site: same-origin"],
                        ["Origin: http://page"]):  # fmt: skip
            answer = ask("POST", path, *browser, *kind, body="{}")
            assert answer.status == 415 and "application/json" in told(answer)
        assert ask("POST", path, *kind, body="{}").status == LOADING  # curl -d
        node = "Sec-Fetch-Mode: cors"  # Node.js's fetch sends this, and text/plain for a string
        assert ask("POST", path, node, *kind, body="{}").status == LOADING
    for given in ("application/json", "Application/JSON; charset=utf-8", "application/x+json"):
        kind = f"Content-Type: {given}"
        assert ask("POST", path, "Origin: http://page", kind, body="{}").status == LOADING


# Names.


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.0.0.1:8080", "192.168.1.7:1", "[::1]", "[fe80::1]:8080", "127.1",
        "2130706433", "0x7f.1", "localhost", "LOCALHOST:8080", "localhost.", "chat.localhost:80",
        "host.docker.internal:8080", None,
    ],
)  # fmt: skip
def test_addresses_and_names_of_this_machine_are_answered(start, host):
    ask = start()
    assert ask("GET", "/cluster", host=host).status == 200
    own = socket.gethostname()
    for name in (own, own.upper(), f"{own.partition('.')[0]}.local:8080"):
        assert ask("GET", "/cluster", host=name).status == 200


@pytest.mark.parametrize(("method", "path"), [*ROUTES, ("GET", "/"), ("OPTIONS", "/health")])
def test_a_name_that_anyone_could_own_is_refused_everywhere(start, method, path):
    """DNS rebinding: a page's own name, by then for 127.0.0.1, reads what it likes."""
    body = "{}" if method == "POST" else None
    answer = start()(method, path, body=body, host="rebind.evil.example:8080")
    assert answer.status == 403 and "ALLOWED_HOSTS" in told(answer)


@pytest.mark.parametrize(
    "host",
    ["evil", "localhost.evil.example", "127.0.0.1.evil.example", "1.2.3.4.evil", "xlocalhost",
     "notlocal.local", "0x7f.evil"],
)  # fmt: skip
def test_names_that_only_look_like_ours_are_refused(start, host):
    answer = start()("GET", "/health", host=host)
    assert (answer.status, answer.error["code"]) == (403, "host_not_allowed")


@pytest.mark.parametrize(
    "host",
    ["localhost@evil.example", "evil.example#localhost", "localhost:80:80", "localhost:x", "[::1",
     "::1", "localhost/", "local host", "localhost, evil.example", "", "\xe4.example", "[evil]",
     ":8080", "."],
)  # fmt: skip
def test_a_host_that_is_none_is_400(start, host):
    for env in ({}, {"API_KEY": "right"}):
        answer = start(**env)("GET", "/health", host=host)
        assert answer.status == 400 and "Host" in answer.error["message"]


def test_two_hosts_are_400_and_a_whole_url_names_its_own(start):
    ask = start()
    assert ask("GET", "/health", "Host: localhost").status == 400
    assert ask("GET", "http://localhost/queue").status == 200
    assert ask("GET", "http://evil.example/queue").status == 403
    assert ask("GET", "http://localhost@evil.example/queue").status == 400
    assert ask("GET", "http://localhost/queue", host="evil.example").status == 403


def test_with_a_key_any_name_will_do(start):
    ask = start(API_KEY="right")
    assert ask("GET", "/v1/models", "x-api-key: right", host="llm.example").status == 200
    assert ask("GET", "/v1/models", host="llm.example").status == 401


def test_listed_names_are_answered(start):
    ask = start(ALLOWED_HOSTS="llm.example, Mac1.Tail.ts.net")
    for host in ("llm.example:8080", "LLM.example.", "mac1.tail.ts.net"):
        assert ask("GET", "/cluster", host=host).status == 200
    assert ask("GET", "/cluster", host="x.llm.example").status == 403
    assert start(ALLOWED_HOSTS="*")("GET", "/cluster", host="evil.example").status == 200


@pytest.mark.parametrize("value", ["http://llm.example", "llm.example:80", "a/b", "[::1]"])
def test_a_listed_name_that_could_never_match_ends_the_start(tmp_path, value):
    with pytest.raises(SettingError, match="ALLOWED_HOSTS.*host names"):
        read_settings({"MODEL_DIR": str(tmp_path), "ALLOWED_HOSTS": value})


def test_the_full_name_is_asked_for_once_and_believed_only_if_it_begins_like_ours(monkeypatch):
    asked = []

    def getfqdn():
        asked.append(1)
        return answers[0]

    answers = ["mac1.lan.example"]
    monkeypatch.setattr(socket, "gethostname", lambda: "mac1")
    monkeypatch.setattr(socket, "getfqdn", getfqdn)
    names = HostNames()
    assert "evil.example" not in names and not asked
    assert "mac1.lan.example" in names and "mac1.evil.example" not in names
    assert asked == [1]
    answers[0] = "evil.example"
    names = HostNames()
    assert "mac1.evil.example" not in names and "evil.example" not in names


def test_a_slow_name_server_holds_one_request_for_a_moment_only(monkeypatch):
    answer = threading.Event()
    monkeypatch.setattr(socket, "gethostname", lambda: "mac1")
    monkeypatch.setattr(socket, "getfqdn", lambda: answer.wait() and "mac1.lan")
    monkeypatch.setattr(host_names, "LOOKUP_S", 0.05)
    names = HostNames()
    assert "mac1.lan" not in names
    answer.set()
    monkeypatch.setattr(host_names, "LOOKUP_S", 20)
    assert "mac1.lan" in names


def test_authorities_and_origins_are_taken_apart():
    assert split_authority("A.b.:0080") == ("a.b", "80")
    assert split_authority("[fe80::1%en0]:1") == ("fe80::1%en0", "1")
    assert is_address("fe80::1%en0") and is_address("127.1") and not is_address("face.example")
    assert not is_address("fade") and not is_address("x")
    assert is_origin_of("https://a", ("a", "443")) and not is_origin_of("https://a", ("a", "80"))
