"""The requests that have a place in the line and are not over, as GET /cluster lists them.

Called on rank 0's HTTP threads; reads what the requests' own threads and the engine's side have
written. Imports no mlx.
"""

import time
from collections.abc import Callable
from typing import Any

from server.observe.account import Account, Answering
from server.observe.usage import shown

QUEUED, PREFILL, DECODE, SENDING = PHASES = ("queued", "prefill", "decode", "sending")


def describe_live(
    accounts: list[Account], row_tokens: int, may_stop: Callable[[Account], bool]
) -> list[dict[str, Any]]:
    """In the order they came. row_tokens: what a row takes beside its tokens. may_stop: whether
    whoever asks may end that one."""
    now = time.monotonic()
    return [
        _describe(account, generation, row_tokens, now) | {"stop": may_stop(account)}
        for account in accounts
        if (generation := account.generation) is not None
    ]


def _describe(
    account: Account, generation: Answering, row_tokens: int, now: float
) -> dict[str, Any]:
    usage, tickets = generation.usage(), generation.tickets()
    rows = generation.rows()
    return {
        "id": account.request_id,
        "key": None if account.key is None else shown(account.key),
        "route": account.route,
        "model": account.model or None,
        "stream": account.stream,
        "phase": _phase(generation),
        "age_s": round(now - account.started, 2),
        "choices": len(tickets),
        "prompt_tokens": usage.prompt,
        "cached_tokens": usage.cached,
        "generated_tokens": usage.completion,
        "max_tokens": sum(ticket.max_tokens for ticket in tickets),
        "kv_tokens": sum(rows) + row_tokens * len(rows),
    }


def _phase(generation: Answering) -> str:
    """That of the choice which has got furthest and is not done."""
    tickets = generation.tickets()
    if all(generation.finish_reasons()):
        return SENDING
    if any(ticket.first_token for ticket in tickets):
        return DECODE
    return PREFILL if any(ticket.started for ticket in tickets) else QUEUED
