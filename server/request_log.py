"""The request log: one line of JSON for each request that has ended, on rank 0.

HTTP threads hand accounts over; one thread writes. Nobody waits for the disk: what it does not take
is dropped and counted. Prompts and answers are in it only if the operator said so (LOG_PROMPTS).
The file is LOG_DIR/requests-PORT.jsonl; full, it becomes .1, and the four parts before it are kept.
"""

import contextlib
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from server.account import Account

KEPT = 4  # older parts
LINES_HELD = 10_000  # for a slow disk; then they are dropped
ON_THEIR_WAY_S = 0.05  # at the end, for requests whose last byte has just been sent
CLOSE_S = 1.0  # at the end, for what has not been written

log = logging.getLogger(__name__)


class RequestLog:
    """model_id: what is served. max_bytes: of a part; 0 is no limit. on_drop: hears of each line
    that is lost."""

    def __init__(
        self, path: Path, model_id: str, max_bytes: int, on_drop: Callable[[], None]
    ) -> None:
        self._path = path
        self._model_id = model_id
        self._max_bytes = max_bytes
        self._on_drop = on_drop
        self._fd: int | None = None
        self._size = 0
        self._torn = False  # the disk took a part of a line
        self._told = False
        self._lines: queue.Queue[Account | None] = queue.Queue(LINES_HELD)
        self._writer = threading.Thread(target=self._run, name="request log", daemon=True)
        self._writer.start()

    def add(self, account: Account) -> None:
        """Takes the account of a request that has ended. Never waits."""
        if is_poll(account):
            return
        try:
            self._lines.put_nowait(account)
        except queue.Full:
            self._on_drop()

    def close(self) -> None:
        """Writes what there is, if the disk takes it soon. More than once does no harm."""
        time.sleep(ON_THEIR_WAY_S)
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)
        self._writer.join(CLOSE_S)

    def _run(self) -> None:
        while (account := self._lines.get()) is not None:
            try:
                line = json.dumps(describe(account, self._model_id), separators=(",", ":"))
                self._write(line.encode() + b"\n")
                self._told = False
            except OSError as error:
                self._on_drop()
                if not self._told:
                    self._told = True
                    log.warning("cannot write %s: %s; going on", self._path, error.strerror)
            except Exception:
                self._on_drop()  # a request that cannot be described must not end the log
                log.exception("%s: no line in the request log", account.request_id)

    def _write(self, line: bytes) -> None:
        if self._fd is None:
            self._open()
        if self._max_bytes and self._size and self._size + len(line) > self._max_bytes:
            self._turn()
        data = b"\n" + line if self._torn else line
        written = os.write(self._fd, data)
        self._size += written
        self._torn = written < len(data)
        if self._torn:
            raise OSError(0, "it took only a part of a line")

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Its owner's alone: labels of keys and, if asked for, what people wrote.
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._size = os.fstat(self._fd).st_size

    def _turn(self) -> None:
        """Moves every part one further and begins a new one."""
        for number in range(KEPT, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(self._part(number - 1), self._part(number))
        os.close(self._fd)
        self._fd = None
        self._open()

    def _part(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path


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
        "model": model_id,
        "outcome": account.outcome,
        "status": account.code,
        "error": account.error and (account.error.code or account.error.type),
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
        line["error_message"] = account.error and account.error.message
    return line


def _rate(tokens: int, choices: int, first: float | None, last: float) -> float | None:
    """Tokens a second while it decoded: those after the first of each choice."""
    if first is None or last <= first or tokens <= choices:
        return None
    return round((tokens - choices) / (last - first), 2)
