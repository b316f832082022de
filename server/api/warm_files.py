"""What PREFIX_WARM names: prompts whose beginnings are computed before anybody asks for them.

Read on rank 0's main thread, before anything starts: who has written one wrong learns it at once,
by file and line. A file that ends in .json holds a request of /v1/chat/completions or a list of
them, one in .jsonl has one a line; any other is the text of a system prompt.
"""

import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.api.dialects.chat_request import parse
from server.api.json_limits import MAX_JSON_DEPTH, TooManyValues, check_depth, loads
from server.protocol.errors import ApiError, show
from server.protocol.requests import ChatRequest, Served
from server.protocol.setting import SettingError

BYTES_MOST = 64 * 2**20  # of a file
PROMPTS_MOST = 1000  # of all files
BLANK = re.compile(r"[\s,]*")  # between values of JSON
DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Warm:
    """One prompt. origin: its file and line; instructions: it is a system prompt, and of the
    conversation nothing else counts."""

    origin: str
    request: ChatRequest
    instructions: bool = False


def read_warm(files: tuple[str, ...], served: Served) -> tuple[Warm, ...]:
    """The prompts of all files, in order. Raises SettingError."""
    found: list[Warm] = []
    for file in files:
        for one in _read(Path(os.path.expanduser(file)), served):
            if len(found) == PROMPTS_MOST:
                raise _wrong(one.origin, f"at most {PROMPTS_MOST} prompts in all files")
            found.append(one)
    return tuple(found)


def _read(file: Path, served: Served) -> Iterator[Warm]:
    if not file.is_absolute():  # rank 0 is elsewhere than who has written it
        raise _wrong(str(file), "an absolute path")
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # a pipe would be waited for
            raise _wrong(str(file), "a file, not a folder, a pipe or a device")
        with file.open("rb") as opened:
            data = opened.read(BYTES_MOST + 1)
    except OSError as error:
        raise _wrong(str(file), f"a file that can be read: {error.strerror}") from None
    if len(data) > BYTES_MOST:
        raise _wrong(str(file), f"a file of at most {BYTES_MOST >> 20} MiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _wrong(f"{file}:{line}", f"UTF-8: {error.reason}") from None
    if not text.strip():
        raise _wrong(f"{file}:1", "a prompt: it is empty")
    if file.suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                origin = f"{file}:{number}"
                yield _request(_json(line, str(file), number), origin, served)
    elif file.suffix == ".json":
        value = _json(text, str(file), 1)
        bodies = value if isinstance(value, list) else [value]
        if not bodies:
            raise _wrong(f"{file}:1", "a request, or a list of them: it is empty")
        for body, start in zip(bodies, _starts(text), strict=True):
            line = text.count("\n", 0, start) + 1
            yield _request(body, f"{file}:{line}", served)
    else:
        turn = {"role": "system", "content": text}
        yield Warm(f"{file}:1", ChatRequest([turn]), instructions=True)


def _json(text: str, file: str, line: int) -> Any:
    """line: that text begins with."""
    try:
        value = loads(text)
    except json.JSONDecodeError as error:
        where = f"{file}:{line + error.lineno - 1}"
        raise _wrong(where, f"JSON: {error.msg} (column {error.colno})") from None
    except TooManyValues as error:
        raise _wrong(f"{file}:{line}", f"smaller: it {error}") from None
    except RecursionError:
        value = None
    if value is None or (isinstance(value, dict | list) and not check_depth(value)):
        raise _wrong(f"{file}:{line}", f"JSON of at most {MAX_JSON_DEPTH} levels, and not null")
    return value


def _request(body: Any, origin: str, served: Served) -> Warm:
    if not isinstance(body, dict):
        raise _wrong(origin, f"a JSON object as for /v1/chat/completions, not {show(body)}")
    try:
        return Warm(origin, parse({**body, "model": served.model_id}, served))
    except ApiError as error:
        raise _wrong(origin, f"a request of /v1/chat/completions: {error.message}") from None


def _starts(text: str) -> list[int]:
    """Where each value of a JSON list begins, or the only one if it is none."""
    at, found = BLANK.match(text).end(), []
    if text[at] != "[":
        return [at]
    at += 1
    while text[at := BLANK.match(text, at).end()] != "]":
        found.append(at)
        _, at = DECODER.raw_decode(text, at)
    return found


def _wrong(origin: str, must_be: str) -> SettingError:
    return SettingError(f"PREFIX_WARM: {origin}: must be {must_be}")
