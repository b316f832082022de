"""The one exception that becomes an HTTP error. Raised deep, rendered in one place.

Shapes and codes follow OpenAI's: {"error": {"message", "type", "param", "code"}}.
"""

import math
import reprlib
from collections.abc import Sequence
from typing import Any

from server.protocol.printable import printable

NAMES_SHOWN = 8  # of models
NAME_CHARS = 120  # of a field's name in an error: some hold a key that the client has chosen


class ApiError(Exception):
    """An answer other than success.

    status is the HTTP status; type, param and code are OpenAI's error fields. retry_after is in
    seconds and becomes the Retry-After header; None sends none, and tells SDKs not to retry when
    the same request would only fail again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        message = printable(message)  # it may quote what a client wrote, or a library that does
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.retry_after = retry_after
        self.extra_headers = headers or {}

    def body(self) -> dict[str, Any]:
        """The JSON body, all four keys always present."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    def headers(self) -> dict[str, str]:
        """Headers that belong to the error, for SDKs that retry by themselves."""
        headers = dict(self.extra_headers)
        if self.retry_after is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after)))
        elif self.status >= 500 or self.status in (408, 409, 429):
            # openai-python retries these twice by default; without this it would repeat a
            # request that fails the same way again.
            headers["x-should-retry"] = "false"
        return headers


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the client sent something that is not allowed."""
    return ApiError(400, message, param=param, code=code)


def model_not_found(asked: str, served: Sequence[str]) -> ApiError:
    """404 for a model that is not one of those being served."""
    names = ", ".join(map(repr, served[:NAMES_SHOWN]))
    more = f" and {len(served) - NAMES_SHOWN} more" if len(served) > NAMES_SHOWN else ""
    return ApiError(
        404,
        f"The model {show(asked, 100)} does not exist; this server serves {names}{more}.",
        param="model",
        code="model_not_found",
    )


def context_exceeded(
    prompt_tokens: int, context: int, param: str, *, counted: bool = True
) -> ApiError:
    """400 for a prompt that leaves no room; worded so that LangChain and litellm recognise it.

    counted: else prompt_tokens is the least that it can have, known from its length.
    """
    return ApiError(
        400,
        f"This model's maximum context length is {context} tokens, and the prompt must leave room "
        f"for at least one more. However, your prompt has {'' if counted else 'at least '}"
        f"{prompt_tokens} tokens. "
        f"(context_length_exceeded; prompt is too long: {prompt_tokens} tokens > "
        f"{context - 1} maximum)",
        param=param,
        code="context_length_exceeded",
    )


def queue_full(waiting: int, running: int, retry_after: float) -> ApiError:
    """429: every slot and every place in the line is taken."""
    return ApiError(
        429,
        f"The server is full: {running} requests running and {waiting} waiting. Try again later.",
        type="rate_limit_exceeded",
        code="rate_limit_exceeded",
        retry_after=retry_after,
    )


def too_many_grammars(waiting: int) -> ApiError:
    """429: one key, or one address, has as many new grammars on their way as it may."""
    return ApiError(
        429,
        f"{waiting} new grammars or schemas of yours wait to be compiled. Try again later.",
        type="rate_limit_exceeded",
        code="rate_limit_exceeded",
        retry_after=5,
    )


def unavailable(message: str, code: str, retry_after: float = 5) -> ApiError:
    """503: loading, draining, restarting."""
    return ApiError(503, message, type="server_error", code=code, retry_after=retry_after)


def stopped() -> ApiError:
    """403, which no SDK tries again: somebody who may has ended the request."""
    return ApiError(
        403,
        "The request was stopped by somebody who has a key for that, or on the server's page.",
        type="permission_error",
        code="request_stopped",
    )


def timed_out(seconds: float, setting: str = "REQ_TIMEOUT") -> ApiError:
    """504: the ranks have stopped working on the request. setting: REQ_TIMEOUT, when nothing went
    on for so long, or REQ_TOTAL_TIMEOUT, when all of it took longer."""
    what = "made no progress for" if setting == "REQ_TIMEOUT" else "did not finish within"
    return ApiError(
        504,
        f"The request {what} {seconds:g} s ({setting}).",
        type="server_error",
        code="request_timeout",
    )


def engine_failed(message: str) -> ApiError:
    """500: this request failed inside the engine; others go on."""
    return ApiError(500, message, type="server_error", code="engine_error")


def show(value: Any, limit: int = 60) -> str:
    """The value as it goes into an error message, cut so that rubbish does not come back whole."""
    # Not repr(): it would write out megabytes, or run out of stack, before we cut.
    short = reprlib.Repr()
    short.maxstring = short.maxother = limit
    text = short.repr(value)
    return text if len(text) <= limit else text[:limit] + "..."


def wrong(name: str, value: Any, allowed: str) -> ApiError:
    """The one wording for a bad value: field, value, what is allowed."""
    name = name if len(name) <= NAME_CHARS else name[:NAME_CHARS] + "..."
    return bad_request(f"Invalid value for {name!r}: {show(value)}. It must be {allowed}.", name)
