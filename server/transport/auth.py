"""Who may come in: API keys. Called on rank 0's HTTP threads, before a body is read."""

import hashlib
import hmac

from server.observe.account import Account
from server.protocol.errors import ApiError
from server.protocol.settings import UNNAMED, Keys
from server.transport.exchange import Exchange


def check_key(exchange: Exchange, keys: Keys) -> None:
    """Notes the label of the key that the request has, and whose it is; nothing without keys: open
    to all.

    Raises ApiError 401 for a request with none of the keys.
    """
    if not keys:
        return
    bearer = exchange.headers.get("Authorization", "")
    scheme, _, token = bearer.partition(" ")
    given = token.strip() if scheme.lower() == "bearer" else ""
    given = given or exchange.headers.get("x-api-key", "")
    # As bytes, which http.server reads as Latin-1. Every key is compared, in constant time, so
    # that timing tells nothing.
    right = [hmac.compare_digest(given.encode("latin-1", "replace"), k.encode()) for k, _ in keys]
    if not any(right):
        raise ApiError(
            401,
            "Missing or wrong API key. Send it as 'Authorization: Bearer KEY'.",
            type="authentication_error",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
    key, label = keys[right.index(True)]
    exchange.account.key, exchange.account.owner = label, owner_of(key, label)


def may_stop(asking: Account, other: Account, keys: Keys, operators: tuple[str, ...]) -> bool:
    """Whether who asks may end the other's request: their own, or with a key of OPERATOR_KEYS
    anybody's. Without keys nobody can be told from anybody."""
    return not keys or asking.key in operators or asking.owner == other.owner


def owner_of(key: str, label: str) -> str:
    """Who has a key: keys of one name belong together, others to themselves, also when their places
    in the list change."""
    if not UNNAMED.fullmatch(label):
        return f"name {label}"
    return f"key {hashlib.sha256(key.encode()).hexdigest()}"
