"""Which headers and fields clients send: their names, and the types of what is in lists; no value.

A recording sits in front of an App. What real clients were seen to send is kept in
tests/agents/fields_seen.json, from which docs/api.md says of each field what becomes of it.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

KEPT = Path(__file__).parents[1] / "agents/fields_seen.json"
# What is below these is the user's, or a tool's.
OPAQUE = {"input_schema", "parameters", "schema", "arguments", "metadata", "client_metadata"}
DEPTH = 5
# Every HTTP client has these.
COMMON_HEADERS = {"host", "connection", "content-length", "transfer-encoding"}


class Recording:
    """routes: for each "METHOD path" the names of headers, query parameters and fields."""

    def __init__(self) -> None:
        self.routes: dict[str, dict[str, set[str]]] = {}

    def of(self, app: Callable) -> Callable:
        """The app, with what it is asked noted."""

        def answer(exchange) -> None:
            read_body = exchange.read_body

            def read_and_note() -> bytes:
                raw = read_body()
                self._note(exchange, raw)
                return raw

            exchange.read_body = read_and_note
            try:
                app(exchange)
            finally:
                del exchange.read_body

        answer.closed, answer.connection_refused = app.closed, app.connection_refused
        return answer

    def _note(self, exchange, raw: bytes) -> None:
        if "user-agent" not in exchange.headers:
            return  # a test's own
        path, _, query = exchange.path.partition("?")
        seen = self.routes.setdefault(
            f"{exchange.command} {path}", {"headers": set(), "query": set(), "fields": set()}
        )
        seen["headers"] |= {name.lower() for name in exchange.headers} - COMMON_HEADERS
        seen["query"] |= {part.partition("=")[0] for part in query.split("&") if part}
        seen["fields"] |= set(_names(json.loads(raw)))


def _names(value, name: str = "", depth: int = 0):
    if isinstance(value, list):
        for item in value:
            kind = item.get("type", item.get("role")) if isinstance(item, dict) else None
            yield from _names(item, f"{name}[{kind}]" if kind else f"{name}[]", depth)
    elif isinstance(value, dict) and depth < DEPTH:
        for key, item in value.items():
            full = f"{name}.{key}" if name else key
            yield full
            if key not in OPAQUE and not full.endswith("[tool_use].input"):
                yield from _names(item, full, depth + 1)


def check_kept(client: str, recordings: list[Recording]) -> None:
    """That what the client sent is kept; with FIELDS_SEEN=write it is added. Of what is inside a
    field some depends on how a run went, so only what is on top has to be there."""
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    known = _triples(kept.get(client, {}))
    sent = set().union(*(_triples(recording.routes) for recording in recordings))
    if os.environ.get("FIELDS_SEEN") == "write":
        merged: dict[str, dict[str, list[str]]] = {}
        for route, kind, name in sorted(known | sent):
            merged.setdefault(route, {}).setdefault(kind, []).append(name)
        kept = dict(sorted((kept | {client: merged}).items()))
        KEPT.write_text(json.dumps(kept, indent=1) + "\n")
        return
    new = {told for told in sent - known if "." not in told[2] and "[" not in told[2]}
    assert not new, f"not in {KEPT.name} (FIELDS_SEEN=write adds it): {sorted(new)}"


def _triples(routes: dict) -> set[tuple[str, str, str]]:
    return {
        (route, kind, name)
        for route, seen in routes.items()
        for kind, names in seen.items()
        for name in names
    }
