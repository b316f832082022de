"""What came back for one request, from the bytes and when they came.

Takes HTTP/1.0 and 1.1 apart, chunked or not, and server-sent events within. The time of an event
is when the last of its bytes arrived. Never raises for what a server sends: whatever is not an
answer becomes a failure with a name.
"""

import bisect
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_EVENT_END = re.compile(rb"\r?\n\r?\n")


@dataclass
class Answer:
    """One answer. Times are those of the request's clock.

    failure: empty for a whole answer, else refused, reset, timeout, abandoned, busy (429),
    "status N", "error in stream", cut (no end), or garbled. texts: the time of every event that
    carried text. *_tokens are the server's own count, None where it gave none.
    """

    sent: float
    ended: float
    failure: str
    status: int = 0
    texts: list[float] = field(default_factory=list)
    text: str = ""
    finish: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    drafts_right: int | None = None
    drafts_wrong: int | None = None
    retry_after: float | None = None
    body: Any = None  # of an answer that was not a stream
    detail: str = ""  # what the server said to a failure

    @property
    def ttft(self) -> float | None:
        """Seconds to the first event with text."""
        return self.texts[0] - self.sent if self.texts else None

    @property
    def gaps(self) -> list[float]:
        """Seconds between an event with text and the next."""
        return [after - before for before, after in itertools.pairwise(self.texts)]

    @property
    def seconds(self) -> float:
        """From sending to the last byte."""
        return self.ended - self.sent


def read_answer(
    sent: float, ended: float, pieces: Sequence[tuple[float, bytes]], failure: str
) -> Answer:
    """pieces: (when, bytes) as they came."""
    answer = Answer(sent, pieces[-1][0] if pieces else ended, failure)
    raw = b"".join(data for _, data in pieces)
    head, separator, _ = raw.partition(b"\r\n\r\n")
    status = re.match(rb"HTTP/1\.[01] ([0-9]{3})", head)
    if not separator or not status:
        answer.failure = failure or "garbled"
        return answer
    answer.status = int(status[1])
    headers = _headers(head)
    clock = _Clock(pieces)
    start = len(head) + len(separator)
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        body, at = _join_chunks(raw, start, clock)
    else:
        body, at = raw[start:], lambda end: clock(start + end)
    if answer.status != 200:
        _read_refusal(answer, headers, body)
    elif b"event-stream" in headers.get(b"content-type", b""):
        _read_events(answer, body, at)
    else:
        _read_whole(answer, body)
    return answer


class _Clock:
    """When the byte before an offset of the raw answer arrived."""

    def __init__(self, pieces: Sequence[tuple[float, bytes]]) -> None:
        self._ends = list(itertools.accumulate(len(data) for _, data in pieces))
        self._times = [when for when, _ in pieces]

    def __call__(self, end: int) -> float:
        return self._times[min(bisect.bisect_left(self._ends, end), len(self._times) - 1)]


def _headers(head: bytes) -> dict[bytes, bytes]:
    lines = (line.partition(b":") for line in head.split(b"\r\n")[1:])
    return {name.strip().lower(): value.strip() for name, _, value in lines}


def _join_chunks(raw: bytes, place: int, clock: _Clock):
    """The body, and a function from an offset in it to the time when it had come so far."""
    parts: list[bytes] = []
    body_ends: list[int] = []
    raw_starts: list[int] = []
    length = 0
    while (line_end := raw.find(b"\r\n", place)) >= 0:
        try:
            size = int(raw[place:line_end].partition(b";")[0], 16)
        except ValueError:
            break
        if size <= 0:
            break
        part = raw[line_end + 2 : line_end + 2 + size]
        parts.append(part)
        length += len(part)
        body_ends.append(length)
        raw_starts.append(line_end + 2)
        place = line_end + 2 + size + 2

    def at(end: int) -> float:
        number = min(bisect.bisect_left(body_ends, end), len(body_ends) - 1)
        begins = body_ends[number] - len(parts[number])
        return clock(raw_starts[number] + end - begins)

    return b"".join(parts), at


def _read_events(answer: Answer, body: bytes, at) -> None:
    done, place, texts = False, 0, []
    for match in _EVENT_END.finditer(body):
        data = _data(body[place : match.start()])
        place = match.end()
        if data is None:
            continue
        if data == b"[DONE]":
            done = True
            break
        try:
            event = json.loads(data)
        except ValueError:
            answer.failure = answer.failure or "garbled"
            continue
        if not isinstance(event, dict):
            continue
        if event.get("error"):
            answer.failure, answer.detail = "error in stream", str(event["error"])[:300]
            continue
        _note_usage(answer, event.get("usage"))
        if text := _note_choices(answer, event.get("choices") or []):
            answer.texts.append(at(match.end()))
            texts.append(text)
    answer.text = "".join(texts)
    if not answer.failure and not (done and answer.finish):
        answer.failure = "cut"


def _data(event: bytes) -> bytes | None:
    """The data of an event; None for comments and the like."""
    if event.startswith(b"data: ") and b"\n" not in event:
        return event[6:]
    lines = [line[5:].lstrip() for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def _note_choices(answer: Answer, choices: list) -> str:
    said = ""
    for choice in choices:
        answer.finish = choice.get("finish_reason") or answer.finish
        part = choice.get("delta") or choice.get("message") or choice
        for name in ("text", "content", "reasoning_content", "reasoning"):
            if part.get(name):
                said += part[name]
                break
        else:
            # A call's name and arguments are tokens as well.
            if part.get("tool_calls"):
                said += json.dumps(part["tool_calls"])
    return said


def _note_usage(answer: Answer, usage: dict | None) -> None:
    if not usage:
        return
    answer.prompt_tokens = usage.get("prompt_tokens")
    answer.completion_tokens = usage.get("completion_tokens")
    answer.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    details = usage.get("completion_tokens_details") or {}
    answer.drafts_right = details.get("accepted_prediction_tokens")
    answer.drafts_wrong = details.get("rejected_prediction_tokens")


def _read_whole(answer: Answer, body: bytes) -> None:
    try:
        answer.body = json.loads(body)
    except ValueError:
        answer.failure = answer.failure or "garbled"
        return
    if isinstance(answer.body, dict):
        _note_usage(answer, answer.body.get("usage"))
        answer.text = _note_choices(answer, answer.body.get("choices") or [])


def _read_refusal(answer: Answer, headers: dict[bytes, bytes], body: bytes) -> None:
    answer.detail = body[:300].decode("utf-8", "replace")
    if answer.failure:
        return
    answer.failure = "busy" if answer.status == 429 else f"status {answer.status}"
    try:
        answer.retry_after = float(headers.get(b"retry-after", b""))
    except ValueError:
        answer.retry_after = None
