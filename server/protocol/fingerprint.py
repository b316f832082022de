"""Hashes short enough to read, by which ranks are compared and models named; what goes into them.

What a model folder holds that counts (MODEL_FILES) and which code ranks run stand here alone: the
handshake, the doctor, sync_model.sh, sync_nodes.sh and check_model.py all ask here, so none passes
what another refuses. The doctor also sends this text to hosts that have no checkout: standard
library alone, Python 3.9, and no import of ours.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

# Configuration, tokenizer and its code, chat templates, the index: at the top of the folder.
SMALL_FILES = ("*.json", "*.jsonl", "*.jinja", "*.model", "*.tiktoken", "*.txt", "*.py")
WEIGHT_FILES = "*.safetensors"
MODEL_FILES = (*SMALL_FILES, WEIGHT_FILES)
CODE_FOLDERS = ("server",)  # of the checkout: what ranks run of it
MOST_HEADER = 1 << 27  # bytes of a safetensors header that are looked at


def fingerprint(*parts: Any) -> str:
    """One short hash of any JSON-able parts."""
    return digest(json.dumps(parts, sort_keys=True).encode())


def digest(data: bytes) -> str:
    """One short hash of bytes."""
    return hashlib.sha256(data).hexdigest()[:16]


def model_files(folder: Path) -> "list[Path]":
    """The files of the model, by name. Hidden ones are none: macOS leaves ._config.json."""
    found = {path for pattern in MODEL_FILES for path in folder.glob(pattern)}
    return sorted(path for path in found if path.is_file() and not path.name.startswith("."))


def fingerprint_files(model_dir: Path) -> "dict[str, str]":
    """File name to a short description of its content. Raises OSError.

    Small files count by content; weights by size and safetensors header, because hashing hundreds
    of gigabytes would take longer than loading them.
    """
    return {path.name: _describe(path) for path in model_files(model_dir)}


def code_digests(root: Path, folders: "tuple[str, ...]" = CODE_FOLDERS) -> "dict[str, str]":
    """Each source file in these folders of a checkout, with its hash. Raises OSError."""
    paths = sorted(path for folder in folders for path in (root / folder).rglob("*.py"))
    return {path.relative_to(root).as_posix(): digest(path.read_bytes()) for path in paths}


def code_fingerprint(root: Path) -> str:
    """One hash of all that ranks run of a checkout. Raises OSError."""
    return fingerprint(code_digests(root))


def _describe(path: Path) -> str:
    if not path.match(WEIGHT_FILES):
        return digest(path.read_bytes())
    with path.open("rb") as file:
        length = file.read(8)
        header = file.read(min(int.from_bytes(length, "little"), MOST_HEADER))
    # Of a length that broke off nothing is read.
    return f"{path.stat().st_size} bytes, header {digest(header if len(length) == 8 else b'')}"
