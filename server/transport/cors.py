"""Lets pages of the origins that the operator has listed read answers. Called on rank 0's HTTP
threads; which pages may ask at all is for cross_site to say."""

import re

from server.transport.exchange import Exchange

PREFLIGHT_S = 600  # a browser may remember a preflight's answer for so long


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
        headers["Access-Control-Allow-Methods"] = "DELETE, GET, HEAD, OPTIONS, POST"
        headers["Access-Control-Max-Age"] = str(PREFLIGHT_S)
        if exchange.headers.get("Access-Control-Request-Private-Network"):
            # A page from the internet asks a browser for a server that is not on it.
            headers["Access-Control-Allow-Private-Network"] = "true"
    return headers
