"""What clients send, without what they say: bodies of the same shape, and names of headers.

A recording sits in front of an App. A shape is a body whose texts, names and ids are one letter and
whose schemas are empty, so that it can be kept and sent again: tests/agents/recorded has those of
each client. A path names a field: `messages[user].content[text].text`, where the brackets have an
item's type, else its role.
"""

import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from server.transport.exchange import Exchange
from tests.support.paths import ROOT

KEPT = ROOT / "tests/agents/recorded"
X = "x"
# Fields whose texts are words of the API, not a client's.
WORDS = {
    "type", "role", "effort", "reasoning_effort", "status", "tool_choice", "truncation", "syntax",
    "verbosity", "summary", "mode", "detail", "media_type", "service_tier", "ttl", "display",
    "include", "execution",
}  # fmt: skip
WORD = re.compile(r"[A-Za-z0-9_.-]{1,40}(/[a-z]+)?")
SCHEMAS = {"parameters", "input_schema", "schema"}
OPAQUE = SCHEMAS | {"metadata", "client_metadata", "logit_bias"}  # whose fields are a client's own
READ_AS = {"definition": "start: /x/", "arguments": "{}"}  # texts that have to be of a language


class Recording:
    """headers: names that were sent. bodies: what was sent, by path. asked: each request, and what
    it came to."""

    def __init__(self) -> None:
        self.headers: set[str] = set()
        self.bodies: dict[str, list[Any]] = defaultdict(list)
        self.asked: list[str] = []

    def of(self, app: Callable) -> Callable:
        """The app, with what it is asked noted."""

        def answer(exchange: Exchange) -> None:
            if "user-agent" not in exchange.headers:
                return app(exchange)  # a test's own
            path = exchange.path.partition("?")[0]

            def read_and_note() -> bytes:
                raw = Exchange.read_body(exchange)
                self.bodies[path].append(json.loads(raw))
                return raw

            self.headers |= {name.lower() for name in exchange.headers}
            exchange.read_body = read_and_note  # type: ignore[method-assign]
            try:
                return app(exchange)
            finally:
                del exchange.read_body
                self.asked.append(f"{exchange.command} {path} {exchange.account.code}")

        answer.closed, answer.connection_refused = app.closed, app.connection_refused
        return answer


def shape_of(value: Any, name: str = "", inside: str = "") -> Any:
    """The shape of a JSON value in a field of this name. inside: the type of its object."""
    if isinstance(value, dict):
        if name in SCHEMAS:
            return {"type": "object"}
        if name == "input" and inside.endswith("tool_use"):
            return {}
        kind = str(value.get("type", ""))
        return {key: shape_of(inner, key, kind) for key, inner in value.items()}
    if isinstance(value, list):
        shapes = [shape_of(item, name, inside) for item in value]
        shapes = [one for i, one in enumerate(shapes) if one not in shapes[:i]]
        return list(map(_named_apart, shapes, range(len(shapes)))) if name == "tools" else shapes
    if isinstance(value, str):
        if name in WORDS and WORD.fullmatch(value):
            return value
        return READ_AS.get(name, X if value else "")
    return value


def _named_apart(tool: Any, place: int) -> Any:
    """No two tools of a request may have the same name."""
    if place and isinstance(tool, dict) and "function" in tool:
        return tool | {"function": tool["function"] | {"name": f"{X}{place}"}}
    return tool | {"name": f"{X}{place}"} if place and "name" in tool else tool


def paths_of(shape: Any, path: str = "") -> Iterator[tuple[str, tuple[str | int, ...]]]:
    """Each field that holds a value, with the keys that lead to it."""
    if isinstance(shape, dict) and shape:
        for key, inner in shape.items():
            deeper = f"{path}.{key}" if path else key
            if key in OPAQUE:
                yield deeper, (key,)
                continue
            for found, keys in paths_of(inner, deeper):
                yield found, (key, *keys)
    elif isinstance(shape, list) and any(isinstance(inner, dict) for inner in shape):
        for place, inner in enumerate(shape):
            kind = inner.get("type", inner.get("role", ""))
            for found, keys in paths_of(inner, f"{path}[{kind}]"):
                yield found, (place, *keys)
    else:
        yield path, ()


def worth_keeping(bodies: Iterable[Any]) -> list[Any]:
    """Shapes of these bodies, without those that have no field of their own."""
    shapes = sorted(map(shape_of, bodies), key=lambda shape: -len(json.dumps(shape)))
    kept, known = [], set()
    for shape in shapes:
        paths = {path for path, _ in paths_of(shape)}
        if not paths <= known:
            kept.append(shape)
            known |= paths
    return kept


def kept_of(client: str, folder: Path = KEPT) -> dict[str, Any]:
    """What is kept of a client: its version, headers, and bodies by path."""
    path = _file(client, folder)
    if not path.exists():
        return {"client": client, "version": "", "headers": [], "bodies": {}}
    return json.loads(path.read_text(encoding="utf-8"))


def check_kept(
    client: str, recordings: list[Recording], version: str = "", folder: Path = KEPT
) -> None:
    """That what a client sent is kept; with FIELDS_SEEN=write it is added. Of what is inside a
    field some depends on how a run went, so only what is on top has to be there."""
    kept = kept_of(client, folder)
    headers = set(kept["headers"]).union(*(one.headers for one in recordings))
    bodies = defaultdict(list, {path: list(sent) for path, sent in kept["bodies"].items()})
    for one in recordings:
        for path, sent in one.bodies.items():
            bodies[path] += sent
    more = {
        "client": client,
        "version": version or kept["version"],
        "headers": sorted(headers),
        "bodies": {path: worth_keeping(sent) for path, sent in sorted(bodies.items())},
    }
    if os.environ.get("FIELDS_SEEN") == "write":
        _write(_file(client, folder), more)
        return
    new = {name for name in {*_names(more)} - {*_names(kept)} if "[" not in name}
    assert not new, f"{client} sends more than is kept (FIELDS_SEEN=write adds it): {sorted(new)}"


def _names(kept: dict[str, Any]) -> Iterator[str]:
    yield from kept["headers"]
    for path, sent in kept["bodies"].items():
        yield from (f"{path} {name}" for body in sent for name, _ in paths_of(body))


def _file(client: str, folder: Path) -> Path:
    return folder / f"{re.sub('[^a-z0-9-]+', '-', client.lower()).strip('-')}.json"


def _write(path: Path, kept: dict[str, Any]) -> None:
    """One line a body: it is to be compared, not read."""
    text = json.dumps(kept | {"bodies": dict.fromkeys(kept["bodies"], "BODIES")}, indent=1)
    for sent in kept["bodies"].values():
        lines = ",\n".join(f"   {json.dumps(body)}" for body in sent)
        text = text.replace('"BODIES"', f"[\n{lines}\n  ]", 1)
    path.parent.mkdir(exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
