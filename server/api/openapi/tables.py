"""The rows on fields in docs/api.md and docs/operations.md, of the tables that parsers read by.

`python -m server.api.openapi.tables` prints them; tests/api/test_docs_fields.py holds the docs to
them.
"""

from collections.abc import Iterator
from dataclasses import replace

from server.api.dialects import (
    chat_request,
    completions,
    embeddings,
    messages_request,
    responses_request,
    tokenize,
)
from server.api.fields import Field, Fields, described
from server.api.formats import FORMATS
from server.api.requests import CHOICES, GENERATING, MODEL

BOTH: Fields = {**CHOICES, **FORMATS}


def _without(fields: Fields, *others: Fields) -> Fields:
    return {name: f for name, f in fields.items() if not any(name in other for other in others)}


# By the route, in the order of docs/api.md.
ROUTES: dict[str, Fields] = {
    "All that generate": GENERATING,
    "Chat and completions": BOTH,
    "Chat": _without(chat_request.CHAT, GENERATING, BOTH),
    "Completions": _without(completions.COMPLETION, GENERATING, BOTH),
    "Responses": _without(responses_request.RESPONSES, GENERATING),
    "Messages": _without(messages_request.MESSAGES, GENERATING),
    "Embeddings": _without(embeddings.EMBEDDINGS, MODEL),
    "Tokenize": {
        name: replace(f, needed=False)
        for name, f in described({**tokenize.TEXT, **tokenize.TURNS}).items()
    },
    "Detokenize": tokenize.IDS,
}


def field_tables() -> dict[str, str]:
    """Each route's fields: what is allowed, and what else there is to say."""
    head = ["| field | allowed | note |", "|---|---|---|"]
    return {
        route: "\n".join([*head, *(_row(name, f) for name, f in described(fields).items())])
        for route, fields in ROUTES.items()
    }


def costs() -> str:
    """The rows of those fields that cost something before the request has a place."""
    return "\n".join(dict.fromkeys(_costs()))


def _costs() -> Iterator[str]:
    for fields in ROUTES.values():
        for name, field in described(fields).items():
            if field.cost:
                yield f"| `{name}` | {field.kind.allowed} | {field.cost} |"


def _row(name: str, field: Field) -> str:
    must = " (required)" if field.needed else ""
    return f"| `{name}`{must} | {field.kind.allowed} | {field.note} |".replace("|  |", "| |")


if __name__ == "__main__":
    for route, text in field_tables().items():
        print(f"\n{route}\n\n{text}")
    print(f"\nCosts\n\n{costs()}")
