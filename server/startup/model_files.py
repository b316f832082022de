"""What a model folder is, in a few hashes: to compare ranks, and to name the model in answers.

Small files (config, tokenizer, index) count by content; weight shards by size and safetensors
header, because hashing hundreds of gigabytes would take longer than loading them. Imports no mlx.
"""

import struct
from pathlib import Path

from server.protocol.fingerprint import digest

SMALL = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.py")


def fingerprint_files(model_dir: Path) -> dict[str, str]:
    """File name to a short description of its content. Raises OSError."""
    files = {}
    for pattern in SMALL:
        for path in _visible(model_dir, pattern):
            files[path.name] = digest(path.read_bytes())
    for path in _visible(model_dir, "*.safetensors"):
        files[path.name] = f"{path.stat().st_size} bytes, header {digest(_header(path))}"
    return dict(sorted(files.items()))


def _visible(model_dir: Path, pattern: str) -> list[Path]:
    """Files only. Hidden ones are not the model's: macOS leaves ._config.json on some disks."""
    return [p for p in model_dir.glob(pattern) if p.is_file() and not p.name.startswith(".")]


def _header(path: Path) -> bytes:
    """The JSON header of a safetensors file: names, types, shapes and offsets."""
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        return file.read(min(length, 2**27))
