"""Names, shapes and bytes of a folder's weights, from the headers of its files.

Called before launch and on every rank. Imports no mlx and reads no weights.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MOST_HEADER = 1 << 27  # bytes of a safetensors header that are looked at
# The first number in a name is its layer's.
_IN_LAYER = re.compile(r"(?P<before>.*?)\.(?P<number>\d+)\.(?P<rest>.+)")


@dataclass(frozen=True)
class Weight:
    """One array of a model's files."""

    shape: tuple[int, ...]
    nbytes: int


def read_weights(folder: Path) -> dict[str, Weight]:
    """What the folder's weight files hold, by name. Raises OSError, and ValueError where a file is
    no safetensors file."""
    found = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 2 <= size <= MOST_HEADER:
                raise ValueError(f"{path} is not a safetensors file, or broke off")
            header = json.loads(file.read(size))
        found |= weights_of_header(header)
    return found


def weights_of_header(header: Mapping) -> dict[str, Weight]:
    """The same of one file's header. Raises ValueError where it is none."""
    try:
        return {
            name: Weight(
                tuple(map(int, entry["shape"])),
                int(entry["data_offsets"][1]) - int(entry["data_offsets"][0]),
            )
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"no header of a safetensors file: {error!r}") from None


def by_layer(weights: Mapping[str, Weight]) -> tuple[list[dict[str, Weight]], dict[str, Weight]]:
    """The layers, each with its weights by the name within it; and what is in no layer. Of several
    lists of layers the largest counts: the others are parts that text does not need."""
    lists: dict[str, dict[int, dict[str, Weight]]] = {}
    others = {}
    for name, weight in weights.items():
        match = _IN_LAYER.fullmatch(name)
        if match is None:
            others[name] = weight
            continue
        layers = lists.setdefault(match["before"], {})
        layers.setdefault(int(match["number"]), {})[match["rest"]] = weight
    if not lists:
        return [], others
    largest = max(lists.values(), key=lambda layers: sum(map(total, layers.values())))
    return [largest[number] for number in sorted(largest)], others


def total(weights: Mapping[str, Weight]) -> int:
    """Bytes of them all."""
    return sum(weight.nbytes for weight in weights.values())
