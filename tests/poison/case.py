"""One hostile request and what may come of it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.support.raw_http import request

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
COUNT = "/v1/messages/count_tokens"
FINE = 200
BAD = 400
EITHER = (200, 400)  # a matter of taste, or of the model's chat template


@dataclass(frozen=True)
class Case:
    """statuses: of each answer that must come, in order; a tuple in it lists alternatives.

    leave: how the client goes without waiting for an answer ("close", "reset", "shutdown");
    None: it waits for all of statuses.
    """

    name: str
    make: Callable[[], bytes]
    statuses: tuple[int | tuple[int, ...], ...]
    leave: str | None = None
    head: bool = False


def wire(name: str, data: bytes | str, *statuses: int | tuple[int, ...], **more: Any) -> Case:
    """These very bytes."""
    raw = data.encode("latin-1") if isinstance(data, str) else data
    return Case(name, lambda: raw, statuses, **more)


def body(name: str, path: str, data: bytes | str, status: int | tuple[int, ...]) -> Case:
    """A well-formed request with this body."""
    return Case(name, lambda: request("POST", path, data), (status,))


def later(
    name: str, path: str, make: Callable[[], bytes | str], status: int | tuple[int, ...]
) -> Case:
    """As body(), for large ones: made only when sent."""
    return Case(name, lambda: request("POST", path, make()), (status,))


def put(base: dict[str, Any], field: str, text: str) -> str:
    """base as JSON, with field set to what text says, valid JSON or not."""
    rest = json.dumps({name: value for name, value in base.items() if name != field})
    return f"{{{json.dumps(field)}: {text}, {rest[1:]}"
