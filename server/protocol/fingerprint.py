"""Hashes short enough to read, by which ranks are compared and models named."""

import hashlib
import json
from pathlib import Path
from typing import Any


def fingerprint(*parts: Any) -> str:
    """One short hash of any JSON-able parts."""
    return digest(json.dumps(parts, sort_keys=True).encode())


def fingerprint_code(folder: Path) -> str:
    """One short hash of all Python files in a folder, whatever room of it they are in."""
    paths = sorted(folder.rglob("*.py"))
    return fingerprint([(str(p.relative_to(folder)), p.read_text("utf-8")) for p in paths])


def digest(data: bytes) -> str:
    """One short hash of bytes."""
    return hashlib.sha256(data).hexdigest()[:16]
