"""What an architecture of mlx-lm needs beside mlx-lm: Apple's GPU, or a package that is not there.

Called before launch. Read from the source of the files that the architecture imports, as in
mlx_lm_source: nothing of it is run.
"""

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

MAKES_KERNEL = "metal_kernel"  # mx.fast.metal_kernel: compiled for Metal when it is first called
ASKS = "is_available"  # mx.metal.is_available: there is another way where it says no
METAL_METHODS = {"bitnet": "bitlinear_layers"}  # quant_method of a config -> module of its layers


def needs_metal(config: dict, name: str, package: Path) -> bool:
    """Whether the architecture called `name` computes with Metal's kernels and nothing else."""
    modules = [name]
    quantization = config.get("quantization_config")
    if isinstance(quantization, dict) and not config.get("quantization"):
        method = quantization.get("quant_method")
        modules += [METAL_METHODS[method]] if method in METAL_METHODS else []
    files = {path for module in modules for path in _reached(package, module)}
    return any(_only_metal(path) for path in files)


def absent_packages(name: str, package: Path) -> list[str]:
    """Packages that the architecture imports and that are not installed."""
    path = package / "models" / f"{name}.py"
    named = {
        top
        for node in ast.walk(_tree(path))
        for top in _tops(node)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    return sorted(top for top in named if importlib.util.find_spec(top) is None)


def _tops(node: ast.AST) -> Iterator[str]:
    """The packages that an import asks for, by their first name."""
    if isinstance(node, ast.Import):
        yield from (alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
        yield node.module.partition(".")[0]


def _only_metal(path: Path) -> bool:
    """Whether a file makes kernels and never asks whether there is a GPU for them."""
    names = {node.attr for node in ast.walk(_tree(path)) if isinstance(node, ast.Attribute)}
    return MAKES_KERNEL in names and ASKS not in names


def _reached(package: Path, module: str) -> set[Path]:
    """The file of an architecture, and those of mlx-lm's that it imports, however far."""
    found: set[Path] = set()
    waiting = [package / "models" / f"{module}.py"]
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file():
            continue
        found.add(path)
        waiting += _neighbours(path, package)
    return found


def _neighbours(path: Path, package: Path) -> Iterator[Path]:
    """Where what a file imports from mlx-lm may stand: as a module, or as a package."""
    for node in ast.walk(_tree(path)):
        if not isinstance(node, ast.ImportFrom):
            continue
        parts = node.module.split(".") if node.module else []
        if node.level:
            folder = path.parents[node.level - 1]
        elif parts[:1] == [package.name]:
            folder, parts = package, parts[1:]
        else:
            continue
        base = folder.joinpath(*parts)
        for target in (base, *(base / alias.name for alias in node.names)):
            yield target.parent / f"{target.name}.py"
            yield target / "__init__.py"


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
