"""The page at / as the server sends it; test_page_browser.py looks at it with a browser."""

import base64
import hashlib
import html
import json
import re
import threading
from collections import Counter

import pytest

from server.api.routes import App
from server.observe.status import Status
from server.protocol.settings import read_settings
from server.scheduler.queue import Line
from server.transport.http_server import Server
from server.transport.page import CLIENTS, LATER, PARTS, SCRIPTS, STYLES, WORKERS, Page
from tests.support.raw_http import RawAnswer, RawClient, request

TEXT = Page().body.decode()
# What is our own of it: not what is vendored, nor what docs/clients.md says.
OWN = "\n".join(
    (PARTS / name).read_text("utf-8")
    for name in ("index.html", *STYLES, *SCRIPTS)
    if not name.startswith("vendor/")
)


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    """A server that has a key and is still loading."""
    settings = read_settings({"MODEL_DIR": str(tmp_path_factory.mktemp("m")), "API_KEY": "right"})
    server = Server("127.0.0.1", 0, App(settings, Status("demo", "run-1"), Line(1, 1)))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server.port
    server.shutdown()
    server.server_close()


def ask(port: int, method: str, path: str) -> RawAnswer:
    with RawClient(port) as client:
        return client.ask(request(method, path), head=method == "HEAD")


def ask_again(port: int, path: str, tags: str) -> tuple[int, str]:
    """The status for who has what has one of these tags, and the tag; a 304 has no body."""
    with RawClient(port) as client:
        asked = request("GET", path, None, f"If-None-Match: {tags}")
        answer = client.ask(asked, head=True)
        assert answer.status != 304 or client.ask(asked, head=True).status == 304
        return answer.status, answer.headers["etag"]


def policy(answer: RawAnswer) -> dict[str, str]:
    parts = answer.headers["content-security-policy"].split("; ")
    return {name: value for name, _, value in (part.partition(" ") for part in parts)}


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/", "/?a=b"])
def test_the_page_needs_no_key_and_no_model(port, path):
    answer = ask(port, "GET", path)
    assert answer.status == 200 and answer.body.decode() == TEXT
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    head = ask(port, "HEAD", path)
    varying = ("date", "x-request-id")
    assert {k: v for k, v in head.headers.items() if k not in varying} == {
        k: v for k, v in answer.headers.items() if k not in varying
    }


def test_what_it_shows_needs_the_key(port):
    assert ask(port, "GET", "/cluster").status == 401


def test_only_its_own_script_and_style_may_run(port):
    answer = ask(port, "GET", "/")
    rules = policy(answer)
    for rule, tag in (("script-src", "script"), ("style-src", "style")):
        ((inside),) = re.findall(f"<{tag}>(.*?)</{tag}>", TEXT, re.DOTALL)
        assert rules[rule].split(" ")[0] == f"'{digest_of(inside.encode())}'"
    assert rules["style-src"].count(" ") == 0
    parts = [digest_of((PARTS / "vendor" / name).read_bytes()) for name in LATER]
    assert rules["script-src"].split(" ")[1:] == [f"'{digest}'" for digest in parts]
    assert rules["worker-src"] == "'self'", "and the page has one way to name one"
    assert rules["trusted-types"] == "parts"
    assert rules["default-src"] == "'none'" and rules["connect-src"] == "'self'"
    for rule in ("base-uri", "form-action", "frame-ancestors"):
        assert rules[rule] == "'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


def digest_of(content: bytes) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}"


@pytest.mark.parametrize("name", [*LATER, *WORKERS])
def test_a_part_needs_no_key_and_is_known_by_its_tag(port, name):
    for path in (f"/page/{name}", f"/v1/page/{name}"):
        answer = ask(port, "GET", path)
        assert answer.status == 200
        assert answer.body == (PARTS / "vendor" / name).read_bytes()
        assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
        assert answer.headers["content-security-policy"] == "default-src 'none'", "a worker's own"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["cache-control"] == "no-cache"
    tag = answer.headers["etag"]
    for known in (tag, f"W/{tag}", f'"old", {tag}', "*"):
        assert ask_again(port, f"/page/{name}", known) == (304, tag)
    assert ask_again(port, f"/page/{name}", '"old"') == (200, tag)
    told = json.loads(re.search(r'<template id="parts">(.*?)</template>', TEXT)[1])
    assert f'"{told[name]}"' == tag


@pytest.mark.parametrize(
    "path", ["/page/", "/page/none.js", "/page/marked.js", "/page/../page.py", "/page/katex.js/x"]
)
def test_nothing_else_is_there(port, path):
    assert ask(port, "GET", path).status in (401, 404)


def test_a_part_is_read_and_nothing_else(port):
    assert ask(port, "POST", "/page/katex.js").status == 405


def test_the_first_answer_is_as_small_as_without_its_parts():
    assert len(TEXT) < 330_000
    for name in (*LATER, *WORKERS):
        assert (PARTS / "vendor" / name).read_text("utf-8")[:2000] not in TEXT


def test_it_is_one_file_that_fetches_nothing_from_outside():
    assert re.findall(r'\b(?:src|srcset|action|poster|data)\s*=\s*"', OWN) == []
    links = re.findall(r'<(?:a|link)\b[^>]*\bhref="([^"]*)"', TEXT.partition("<script>")[0])
    assert links and all(link.startswith(("#", "data:")) for link in links)
    addresses = set(re.findall(r"\b(?:https?|wss?)://[^\s'\"`]+", OWN))
    names = {"http://www.w3.org/2000/svg", "http://www.w3.org/1998/Math/MathML"}
    assert addresses == names, "names, not addresses"
    assert "@import" not in OWN and "url(" not in TEXT.split("</style>")[0]


def test_every_file_of_the_page_is_part_of_it():
    files = {
        str(path.relative_to(PARTS)) for path in PARTS.rglob("*") if path.suffix in (".css", ".js")
    }
    assert files == {*STYLES, *SCRIPTS, *(f"vendor/{name}" for name in (*LATER, *WORKERS))}


def test_no_two_scripts_of_the_page_have_one_name_for_two_things():
    """They share one scope: the later one would be called in both places."""
    declared = re.compile(r"^(?:async )?(?:function|const|let|class) (\w+)", re.M)
    names = Counter(declared.findall(OWN))
    assert len(names) > 100 and [name for name, times in names.items() if times > 1] == []


def test_what_is_vendored_is_as_its_packages_have_it():
    """scripts/dev/vendor_page.sh makes both anew."""
    folder = PARTS / "vendor"
    manifest = json.loads((folder / "manifest.json").read_text())
    told = {"manifest.json"}
    for entry in manifest.values():
        assert entry["package"] and re.fullmatch(r"\d+\.\d+\.\d+", entry["version"])
        assert entry["licence"] in ("MIT", "BSD-3-Clause", "Apache-2.0")
        files = {name: digest for name, digest in entry.items() if "." in name}
        kinds = [name.rpartition(".")[2] for name in files]
        assert kinds[-1] == "LICENSE" and set(kinds[:-1]) == {"js"}
        for name, digest in files.items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
        told |= set(files)
    assert {path.name for path in folder.iterdir()} == told


def test_the_script_that_vendors_names_the_versions_of_the_manifest():
    script = (PARTS.parents[2] / "scripts/dev/vendor_page.sh").read_text()
    for name, entry in json.loads((PARTS / "vendor/manifest.json").read_text()).items():
        line = rf"{entry['package']} {entry['version']} \S+ {name} {entry['licence']}"
        assert re.search(line, script)


def test_it_has_no_way_to_write_markup():
    """Of what is vendored the page uses no such way, and the policy would stop it."""
    for way in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function("):
        assert way not in OWN
    # Neither would run under the policy.
    assert not re.search(r"<[^>]+\s(?:on\w+|style)=", TEXT.partition("<script>")[0])


def test_the_clients_of_the_docs_are_part_of_it(tmp_path):
    told = html.unescape(re.search(r'<template id="clients">(.*?)</template>', TEXT, re.DOTALL)[1])
    assert told == CLIENTS.read_text("utf-8")
    bare = Page(clients=tmp_path / "none.md").body.decode()
    assert '<template id="clients"></template>' in bare


@pytest.mark.parametrize(
    ("index", "script"),
    [
        ("<p>", ""),
        ("<style></style><script></script><script></script>", ""),
        ("<style></style><script>old</script>", ""),
        ("<style></style><script></script>", "text = '</SCRIPT>'"),
    ],
)
def test_files_that_are_no_page_are_refused(tmp_path, index, script):
    (tmp_path / "vendor").mkdir()
    for name in (*STYLES, *SCRIPTS, *(f"vendor/{name}" for name in (*LATER, *WORKERS))):
        (tmp_path / name).write_text("")
    (tmp_path / "index.html").write_text(index)
    (tmp_path / SCRIPTS[-1]).write_text(script)
    with pytest.raises(ValueError, match="must"):
        Page(tmp_path)
