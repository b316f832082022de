"""What stands against a model whatever the number of ranks: its files, its architecture, its code.

Called before launch by check_model.py for run and doctor, by check_model.sh, and by sync_model.sh
before it downloads. Imports no mlx, loads no weights and runs nothing of the model folder.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.lib.model.mlx_lm_needs import absent_packages, needs_metal
from scripts.lib.model.model_folder import folder_problems, read_json
from server.protocol.tokenizer_code import must_run
from server.startup.arrangement import LAYER_COUNTS
from server.startup.mlx_lm_source import Architecture, find_architecture, mlx_lm_folder
from server.startup.tensor_sizes import number, sizes_of

MOST_LAYERS = 1000  # the largest models have some 130; each is built to see what it would take


@dataclass(frozen=True)
class Looked:
    """config: its config.json, empty where that cannot be read. architecture: None where mlx-lm has
    none for it. reasons: against serving it, a sentence each. code: what the tokenizer needs to be
    run, and nobody has trusted, or None."""

    config: dict[str, Any]
    architecture: Architecture | None
    reasons: list[str]
    code: str | None


def look(
    folder: Path, trust: bool = False, weights: bool = True, metal: bool | None = None
) -> Looked:
    """weights: they are in the folder, too. metal: whether the ranks have Apple's GPU; None: as
    this machine has. trust: code of the folder may be run for its tokenizer.

    Raises RuntimeError when mlx-lm is not installed for this interpreter.
    """
    package = mlx_lm_folder()
    if package is None:
        raise RuntimeError(f"mlx-lm is not installed for {sys.executable}")
    reasons = folder_problems(folder, weights)
    needed = must_run(folder)
    code = needed.file if needed is not None and not trust else None
    if code is not None:
        reasons.append(needed.refusal)
    if folder.name.endswith(".partial"):
        reasons.append(f"{folder} is an unfinished copy: run scripts/sync_model.sh again")
    try:
        config = read_json(folder / "config.json")
    except ValueError:
        return Looked({}, None, reasons, code)
    architecture, against = _architecture(config, package, metal)
    return Looked(config, architecture, reasons + against, code)


def _architecture(
    config: dict[str, Any], package: Path, metal: bool | None
) -> tuple[Architecture | None, list[str]]:
    """mlx-lm's for the config, and what stands against it."""
    if config.get("model_file") is not None:
        return None, [
            f"config.json wants to run code of its own (model_file is {config['model_file']!r}), "
            "which is not allowed"
        ]
    architecture = find_architecture(config, package)
    if architecture is None:
        kind = config.get("model_type")
        return None, [f"model_type is {kind!r}, which the installed mlx-lm does not know"]
    for key in LAYER_COUNTS:
        if (layers := number(sizes_of(config), key)) > MOST_LAYERS:
            return None, [f"{key} is {layers}: must be at most {MOST_LAYERS}"]
    name = architecture.name
    reasons = [
        f"mlx-lm's {name} needs the package {absent}, which is not installed"
        for absent in absent_packages(name, package)
    ]
    if not (sys.platform == "darwin" if metal is None else metal) and needs_metal(
        config, name, package
    ):
        reasons.append(
            f"mlx-lm's {name} computes with Metal's kernels alone: it needs a Mac's GPU, "
            "and this machine has none"
        )
    return architecture, reasons
