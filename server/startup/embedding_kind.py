"""Whether a model was made for embeddings, and for such as are computed here: its folder says.

Called by rank 0. sentence-transformers writes down what its makers do with the hidden states
(modules.json, and a folder for each module). What is computed here is the last token's, made as
long as 1, of a model whose tokens see those before them; anything else would give vectors that
look right and mean nothing, so it is refused.
"""

import json
from pathlib import Path
from typing import Any

from server.protocol.embedding_kind import EmbeddingKind

MODULES = "modules.json"
KNOWN = ("Transformer", "Pooling", "Normalize")
LAST_TOKEN = "lasttoken"
OLD_FLAG = "pooling_mode_"


def embedding_kind(folder: Path, config: dict[str, Any], size: int) -> EmbeddingKind:
    """size: of the hidden states that the ranks can hand out; 0 for none."""
    modules = _read(folder / MODULES)
    kinds = {}
    if isinstance(modules, list):
        named = [one for one in modules if isinstance(one, dict)]
        kinds = {str(one.get("type")).rpartition(".")[2]: str(one.get("path")) for one in named}
    trained = "Pooling" in kinds
    if not size:
        return EmbeddingKind(0, trained, "its output projection was not found")
    if config.get("use_bidirectional_attention") or config.get("is_causal") is False:
        return EmbeddingKind(size, trained, "its tokens see those after them, too")
    if unknown := [kind for kind in kinds if kind not in KNOWN]:
        return EmbeddingKind(size, trained, f"{MODULES} has {unknown[0]}")
    if trained and (pooling := _pooling(folder, kinds["Pooling"])) != LAST_TOKEN:
        return EmbeddingKind(size, trained, f"it pools by {pooling}, and not by its last token")
    return EmbeddingKind(size, trained)


def _pooling(folder: Path, path: str) -> str:
    """What the module's own file says; the last token if there is none: of models whose tokens see
    only what is before them it is the only one that has seen all."""
    inside = (folder / path).resolve()
    told = _read(inside / "config.json") if inside.is_relative_to(folder.resolve()) else None
    if not isinstance(told, dict):
        return LAST_TOKEN
    modes = [name.removeprefix(OLD_FLAG) for name in told if name.startswith(OLD_FLAG)]
    modes = [name for name in modes if told[OLD_FLAG + name] is True]
    return str(told.get("pooling_mode") or " and ".join(modes) or LAST_TOKEN)


def _read(path: Path) -> Any:
    """A JSON file; None where there is none that can be read."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
