"""What the installed mlx-lm can do with an architecture, read from its source text.

Called before launch and by the server. Importing mlx-lm takes seconds and a GPU;
reading the two or three files that matter takes milliseconds. Nothing of them is run.
"""

import ast
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from server.protocol import python_source
from server.startup.unfit import UNFIT


@dataclass(frozen=True)
class Architecture:
    """One file of mlx_lm/models, as far as sharding goes."""

    name: str
    can_shard: bool  # tensor parallel: Model has shard()
    can_pipeline: bool  # pipeline parallel: Model.model has pipeline()
    shard_names: frozenset[str]  # every name and attribute that shard() mentions
    takes_split: bool = False  # its pipeline() takes the number of layers of each rank
    # Kinds of arrangement that are known to be wrong for it, each with the reason.
    unfit: Mapping[str, str] = field(default_factory=dict)


def mlx_lm_folder() -> Path | None:
    """Where mlx-lm is installed for this interpreter, or None."""
    # find_spec of a top-level package finds it without importing it.
    spec = importlib.util.find_spec("mlx_lm")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def find_architecture(config: dict, package: Path) -> Architecture | None:
    """The architecture that mlx-lm in `package` would choose for `config`, None if it has none."""
    name = architecture_name(config, package)
    source = _Source(package / "models")
    # The name comes from a file of the user's: only one that is there may become a path.
    known = {path.stem for path in (package / "models").glob("*.py")}
    model = source.find_class(name, "Model") if name in known else None
    if model is None:
        return None
    inner = source.class_of_attribute(model, "model")
    pipeline = source.find_method(inner, "pipeline") if inner else None
    return Architecture(
        name=name,
        can_shard=source.find_method(model, "shard") is not None,
        can_pipeline=pipeline is not None,
        takes_split=pipeline is not None and _has_argument(pipeline[1], "split"),
        shard_names=source.names_in_method(model, "shard"),
        unfit=UNFIT.get(name, {}),
    )


def architecture_name(config: dict, package: Path) -> str:
    """The module of mlx_lm.models for `config`, after mlx-lm's own table of synonyms."""
    constants = _constants(
        package / "utils.py", ("MODEL_REMAPPING", "MODEL_ARCHITECTURE_REMAPPING")
    )
    model_type = str(config.get("model_type"))
    named = config.get("architectures")
    for architecture in named if isinstance(named, list) else [named]:
        special = constants.get("MODEL_ARCHITECTURE_REMAPPING", {}).get(
            (model_type, str(architecture))
        )
        if special is not None:
            return special
    return constants.get("MODEL_REMAPPING", {}).get(model_type, model_type)


def _constants(path: Path, names: tuple[str, ...]) -> dict:
    found = {}
    for node in python_source.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name in names:
                found[name] = ast.literal_eval(node.value)
    return found


@dataclass(frozen=True)
class _Class:
    module: str
    node: ast.ClassDef


class _Source:
    """The classes of one folder of modules, followed through `from .module import Name`."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._trees: dict[str, ast.Module | None] = {}

    def find_class(self, module: str, name: str) -> _Class | None:
        """The class called `name` in `module`, which may have imported it from a neighbour."""
        tree = self._tree(module)
        for node in tree.body if tree else ():
            if isinstance(node, ast.ClassDef) and node.name == name:
                return _Class(module, node)
            if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return self.find_class(node.module, alias.name)
        return None

    def find_method(self, cls: _Class, name: str) -> tuple[_Class, ast.FunctionDef] | None:
        """The method `name` of `cls` or of its bases, with the class that defines it."""
        for ancestor in self._lineage(cls):
            for node in ancestor.node.body:
                if isinstance(node, ast.FunctionDef) and node.name == name:
                    return ancestor, node
        return None

    def class_of_attribute(self, cls: _Class, attribute: str) -> _Class | None:
        """The class of `self.attribute`: assigned in a method, or a property that passes it on."""
        for ancestor in self._lineage(cls):
            for node in ast.walk(ancestor.node):
                if _assigns_call(node, ["self", attribute]):
                    return self._resolve(ancestor.module, node.value.func)
                if isinstance(node, ast.FunctionDef) and node.name == attribute:
                    return self._follow_property(cls, node)
        return None

    def names_in_method(self, cls: _Class, name: str) -> frozenset[str]:
        """All names and attributes in the method, and in a neighbour's that it hands over to."""
        found = self.find_method(cls, name)
        if found is None:
            return frozenset()
        owner, method = found
        names = set()
        for node in ast.walk(method):
            if isinstance(node, ast.Name):
                names.add(node.id)
            elif isinstance(node, ast.Attribute):
                names.add(node.attr)
                if node.attr == name:
                    other = self._resolve(owner.module, node.value)
                    names |= self.names_in_method(other, name) if other else frozenset()
        return frozenset(names)

    def _follow_property(self, cls: _Class, method: ast.FunctionDef) -> _Class | None:
        for node in ast.walk(method):
            if isinstance(node, ast.Return) and node.value is not None:
                path = _path(node.value)
                if path[:1] == ["self"] and path != ["self", method.name]:
                    at: _Class | None = cls
                    for attribute in path[1:]:
                        at = self.class_of_attribute(at, attribute) if at else None
                    return at
        return None

    def _lineage(self, cls: _Class) -> list[_Class]:
        """`cls` and its bases, the nearest first, as far as they are in this folder."""
        lineage = [cls]
        for base in cls.node.bases:
            found = self._resolve(cls.module, base)
            lineage += self._lineage(found) if found else []
        return lineage

    def _resolve(self, module: str, expression: ast.expr) -> _Class | None:
        """The class that `Name` or `neighbour.Name` stands for in `module`."""
        path = _path(expression)
        if len(path) == 1:
            return self.find_class(module, path[0])
        return self.find_class(path[0], path[1]) if len(path) == 2 else None

    def _tree(self, module: str) -> ast.Module | None:
        if module not in self._trees:
            path = self._folder / f"{module}.py"
            self._trees[module] = (
                python_source.parse(path.read_text(encoding="utf-8")) if path.is_file() else None
            )
        return self._trees[module]


def _has_argument(method: ast.FunctionDef, name: str) -> bool:
    return any(argument.arg == name for argument in method.args.args)


def _assigns_call(node: ast.AST, path: list[str]) -> bool:
    """Whether `node` is `path = Something(...)`."""
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
        return False
    return any(_path(target) == path for target in node.targets)


def _path(node: ast.expr) -> list[str]:
    """["a", "b"] for the expression `a.b`, [] for anything that is not names and dots."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        before = _path(node.value)
        return [*before, node.attr] if before else []
    return []
