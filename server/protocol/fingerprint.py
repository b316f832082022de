"""Hashes short enough to read, by which ranks are compared and models named."""

import hashlib
import json
from typing import Any


def fingerprint(*parts: Any) -> str:
    """One short hash of any JSON-able parts."""
    return digest(json.dumps(parts, sort_keys=True).encode())


def digest(data: bytes) -> str:
    """One short hash of bytes."""
    return hashlib.sha256(data).hexdigest()[:16]
