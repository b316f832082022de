"""What becomes of each field that clients send: found out by trying, and told as a table.

A field is *honoured* if the request that comes of it differs with another value or without it,
*ignored* if nothing does, and *refused* if it is what the 400 is about. The tables of
docs/api.md: `python -m tests.support.field_fates`.
"""

import copy
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from server.api.dialects import chat_request, completions, messages_request, responses_request
from server.api.dialects.kept_responses import KeptResponses, Shelf
from server.protocol.errors import ApiError
from server.protocol.requests import Served
from tests.support.fields_seen import KEPT, X, paths_of

Parse = Callable[[dict[str, Any]], Any]
SERVED = Served(X)
GONE = object()
FAMILIES = ("x-stainless-", "x-codex-", "sec-fetch-")  # of headers, told as one
OTHERS: dict[type, list[Any]] = {
    bool: [True, False],
    int: [0, 1, 2, 64],
    float: [0, 0.5, 1],
    str: ["other"],
    list: [["other"]],
    dict: [{"other": 1}],
    type(None): ["other", 1],
}


class AllKept(Shelf):
    """Knows every id: what a recording refers to is not there any more."""

    keeps = True

    def conversation(self, id: str) -> tuple[dict[str, Any], ...]:
        return ({"type": "message", "role": "user", "content": id},)

    def item(self, id: str) -> dict[str, Any]:
        return {"type": "message", "role": "assistant", "content": id}


def _responses(body: dict[str, Any]) -> Any:
    request, echo = responses_request.parse(body, SERVED, AllKept(KeptResponses(1)))
    return request, replace(echo, left_out=())  # for the log


PARSERS: dict[str, Parse] = {
    "/v1/chat/completions": lambda body: chat_request.parse(body, SERVED),
    "/v1/completions": lambda body: completions.parse(body, SERVED),
    "/v1/responses": _responses,
    "/v1/messages": lambda body: messages_request.parse(body, SERVED),
    "/v1/messages/count_tokens": lambda body: messages_request.parse_count(body, SERVED),
}


def parsed(route: str, body: dict[str, Any]) -> Any:
    """The request that comes of a body, or the ApiError. Parsers may change what they are given."""
    try:
        return PARSERS[route](copy.deepcopy(body))
    except ApiError as error:
        return error


def fates_in(route: str, body: dict[str, Any]) -> dict[str, str]:
    """What becomes of each field of one body."""
    found: dict[str, str] = {}
    while isinstance(error := parsed(route, body), ApiError):
        at: tuple[str | int, ...] = ()
        for field, keys in paths_of(body):
            for n in range(1, len(keys) + 1):
                if _dotted(keys[:n]) == error.param:
                    found[field], at = "refused", keys[:n]
        assert at, error.message
        body = _with(body, at, GONE)
    for field, keys in paths_of(body):
        if found.get(field) != "honoured":
            found[field] = "honoured" if _matters(route, body, keys) else "ignored"
    return found


def _matters(route: str, body: dict[str, Any], keys: tuple[str | int, ...]) -> bool:
    as_it_is, value = parsed(route, body), _at(body, keys)
    for other in (GONE, *(one for one in OTHERS[type(value)] if one != value)):
        got = parsed(route, _with(body, keys, other))
        if isinstance(got, ApiError) or got != as_it_is:
            return True
    return False


def _dotted(keys: tuple[str | int, ...]) -> str:
    parts = (f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return "".join(parts).removeprefix(".")


def _at(body: Any, keys: tuple[str | int, ...]) -> Any:
    for key in keys:
        body = body[key]
    return body


def _with(body: dict[str, Any], keys: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(body)
    inner = _at(changed, keys[:-1])
    if value is GONE:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    return changed


@dataclass(frozen=True)
class Recorded:
    """One client's recording."""

    client: str
    version: str
    headers: list[str]
    bodies: dict[str, list[dict[str, Any]]]


def recordings() -> list[Recorded]:
    files = sorted(KEPT.glob("*.json"))
    return [Recorded(**json.loads(file.read_text(encoding="utf-8"))) for file in files]


def fates(route: str) -> dict[str, str]:
    """What becomes of each field that somebody sends. What is honoured in one request may stand
    idle in another, as the summary of a thought beside the thought."""
    found: dict[str, str] = {}
    for one in recordings():
        for body in one.bodies.get(route, ()):
            for field, told in fates_in(route, body).items():
                if found.get(field) in (None, "ignored"):
                    found[field] = told
    return found


def fate_table(route: str) -> str:
    """A row for each object of a request."""
    rows: dict[str, dict[str, list[str]]] = {}
    for field, told in sorted(fates(route).items()):
        place = field.rindex("]") + 1 if "]" in field else 0
        row = rows.setdefault(field[:place], {"honoured": [], "ignored": [], "refused": []})
        row[told].append(f"`{field[place:].lstrip('.') or '[]'}`")
    head = ["| in | honoured | ignored | refused |", "|---|---|---|---|"]
    return "\n".join([*head, *(_row(place, row) for place, row in rows.items())])


def _row(place: str, row: dict[str, list[str]]) -> str:
    cells = [f"`{place}`" if place else "the body", *(", ".join(one) for one in row.values())]
    return f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")


def clients() -> str:
    """Who was recorded."""
    return ", ".join(f"{one.client} {one.version}" for one in recordings())


def header_lines(read: Collection[str]) -> str:
    """What becomes of the headers that clients send, of which the server reads these."""
    sent = sorted({name for one in recordings() for name in one.headers})
    ignored = dict.fromkeys(_family(name) for name in sent if name not in read)
    honoured = [f"`{name}`" for name in sent if name in read]
    told = ", ".join(f"`{name}`" for name in ignored)
    return f"Headers, read: {', '.join(honoured)}.\nIgnored: {told}."


def _family(name: str) -> str:
    return next((f"{one}..." for one in FAMILIES if name.startswith(one)), name)


if __name__ == "__main__":
    print(clients())
    for route in PARSERS:
        print(f"\n{route}\n\n{fate_table(route)}")
