"""The request log: one line of JSON for each request that has ended, on rank 0.

HTTP threads hand accounts over; a RotatingFile's thread writes them to LOG_DIR/requests-PORT.jsonl.
Prompts and answers are in it only if the operator said so (LOG_PROMPTS).
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from server.observe.account import Account
from server.observe.rotating_file import RotatingFile


class RequestLog:
    """model_id: of requests of which no model is known. max_bytes: of a part of the file; 0 is no
    limit. on_drop: hears of each line that is lost."""

    def __init__(
        self, path: Path, model_id: str, max_bytes: int, on_drop: Callable[[], None]
    ) -> None:
        def write(account: Account) -> str:
            return json.dumps(describe(account, model_id), separators=(",", ":"))

        self._file = RotatingFile(path, write, max_bytes, on_drop)
        self.close = self._file.close

    def add(self, account: Account) -> None:
        """Takes the account of a request that has ended. Never waits."""
        if not is_poll(account):
            self._file.add(account)


def is_poll(account: Account) -> bool:
    """Whether somebody only looked, as scrapes and the page do every few seconds."""
    return account.method != "POST" and account.error is None and not account.left


def describe(account: Account, model_id: str) -> dict[str, Any]:
    """The line of a request. Times in seconds; null: not reached, or not known."""
    line: dict[str, Any] = {
        "time": datetime.fromtimestamp(account.began, UTC).isoformat(timespec="milliseconds"),
        "id": account.request_id,
        "key": account.key,
        "method": account.method,
        "route": account.route,
        "model": account.model or model_id,
        "outcome": account.outcome,
        "status": account.code,
        "error": account.error and (account.error.code or account.error.type),
        "error_message": account.error_message,
        "seconds": round(account.seconds, 4),
    }
    generation = account.generation
    if generation is not None:
        tickets = generation.tickets()
        usage = generation.usage()
        started = min((t.started for t in tickets if t.started), default=None)
        first = min((t.first_token for t in tickets if t.first_token), default=None)
        last = max((t.last_token for t in tickets), default=0.0)
        accepted = tickets[0].accepted
        line |= {
            "stream": account.stream,
            "choices": len(tickets),
            "prompt_tokens": usage.prompt,
            "cached_tokens": usage.cached,
            "generated_tokens": usage.completion,
            "queue_s": None if started is None else round(started - accepted, 4),
            "ttft_s": None if first is None else round(first - accepted, 4),
            "tokens_per_s": _rate(usage.completion, len(tickets), first, last),
            "finish": generation.finish_reasons(),
        }
    if account.texts is not None:
        line |= account.texts.describe()
    return line


def _rate(tokens: int, choices: int, first: float | None, last: float) -> float | None:
    """Tokens a second while it decoded: those after the first of each choice."""
    if first is None or last <= first or tokens <= choices:
        return None
    return round((tokens - choices) / (last - first), 2)
