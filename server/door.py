"""Who may come in: API keys, and pages of other origins. Called on rank 0's HTTP threads."""

import hmac
import re

from server.errors import ApiError
from server.exchange import Exchange

PREFLIGHT_S = 600  # a browser may remember a preflight's answer for so long


def check_key(exchange: Exchange, keys: tuple[str, ...], labels: tuple[str, ...]) -> str | None:
    """The label of the key that the request has; None without keys: open to all.

    Raises ApiError 401 for a request with none of the keys.
    """
    if not keys:
        return None
    bearer = exchange.headers.get("Authorization", "")
    scheme, _, token = bearer.partition(" ")
    given = token.strip() if scheme.lower() == "bearer" else ""
    given = given or exchange.headers.get("x-api-key", "")
    # As bytes, which http.server reads as Latin-1. Every key is compared, in constant time, so
    # that timing tells nothing.
    right = [hmac.compare_digest(given.encode("latin-1", "replace"), k.encode()) for k in keys]
    if not any(right):
        raise ApiError(
            401,
            "Missing or wrong API key. Send it as 'Authorization: Bearer KEY'.",
            type="authentication_error",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return labels[right.index(True)]


def cross_origin(exchange: Exchange, allowed: tuple[str, ...]) -> dict[str, str]:
    """What lets a page of an allowed origin read the answer. None allowed: nothing at all."""
    if not allowed:
        return {}
    headers = {"Vary": "Origin"}
    origin = exchange.headers.get("Origin")
    listed = {one.lower().rstrip("/") for one in allowed}
    if origin is None or not ("*" in allowed or origin.lower() in listed):
        return headers
    headers["Access-Control-Allow-Origin"] = "*" if "*" in allowed else origin
    headers["Access-Control-Expose-Headers"] = "Retry-After, x-request-id"
    if exchange.command == "OPTIONS":
        asked = exchange.headers.get("Access-Control-Request-Headers", "")
        names = {"authorization", "content-type", "x-api-key"}
        # SDKs add a dozen of their own. Names alone: nothing else may get into our headers.
        names.update(re.findall(r"[a-z0-9-]+", asked.lower())[:64])
        headers["Access-Control-Allow-Headers"] = ", ".join(sorted(names))
        headers["Access-Control-Allow-Methods"] = "GET, HEAD, OPTIONS, POST"
        headers["Access-Control-Max-Age"] = str(PREFLIGHT_S)
        if exchange.headers.get("Access-Control-Request-Private-Network"):
            # A page from the internet asks a browser for a server that is not on it.
            headers["Access-Control-Allow-Private-Network"] = "true"
    return headers
