"""Which models are served: names and folders, as MODEL_DIR, MODELS and MODELS_DIR tell them.

Asked on every rank, and by the scripts before a launch, which may have an old Python: standard
library alone, Python 3.9. The first of the list is loaded at the start, and is meant by requests
that name none.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from server.protocol.setting import SettingError

UNFINISHED = ".partial"  # how the name of a copy ends until it is whole
HUB = "models--"  # how folders of the hub's cache begin: models--OWNER--NAME
NOTHING = "there is no model in it"  # of a folder, nor a part of one
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}")
DEEP = 3  # folders below MODELS_DIR: OWNER/NAME is two
MODELS_MOST = 256
LOOKED_AT_MOST = 20_000  # folders

Found = "tuple[list[ServedModel], list[tuple[Path, str]]]"


@dataclass(frozen=True)
class ServedModel:
    """A model that may be loaded. folder: as it was told, from the root: links on the way may lead
    elsewhere on other hosts."""

    name: str
    folder: Path

    @property
    def place(self) -> str:
        """The same for every way to this folder."""
        return os.path.realpath(self.folder)


@dataclass(frozen=True)
class Below:
    """What is below MODELS_DIR. models: by name; others: folders that are none, and why."""

    models: tuple[ServedModel, ...]
    others: tuple[tuple[Path, str], ...]


def list_models(
    first: ServedModel | None, named: tuple[str, ...], folder: str | None
) -> tuple[ServedModel, ...]:
    """first: MODEL_DIR's; named: words of MODELS; folder: MODELS_DIR. What is named twice alike
    counts once. Raises SettingError."""
    found = [] if first is None else [first]
    for word in named:
        name, _, path = word.partition("=")
        one = ServedModel(name, _absolute("MODELS", word, path))
        if any((name, one.place) == (other.name, other.place) for other in found):
            continue  # the scripts name the first of them in MODEL_DIR, too
        if any(name == other.name for other in found):
            raise SettingError(f"MODELS={word!r}: must have another name; {name!r} is taken")
        found.append(one)
    if folder:
        top = _absolute("MODELS_DIR", folder, folder)
        if is_model(top):
            raise SettingError(
                f"MODELS_DIR={folder!r}: must be a folder of models; it is one: set MODEL_DIR"
            )
        for one in look_below(top).models:
            if any(one.place == other.place for other in found):
                continue
            if not NAME.fullmatch(one.name) or any(one.name == other.name for other in found):
                raise SettingError(
                    f"MODELS_DIR={folder!r}: {one.name!r} must be a name that no other model has, "
                    "of up to 200 letters, digits and any of ._:/@+-; name it in MODELS"
                )
            found.append(one)
        if not found:
            raise SettingError(f"MODELS_DIR={folder!r}: must have models below it; there is none")
    if len(found) > MODELS_MOST:
        raise SettingError(
            f"MODELS and MODELS_DIR: {len(found)} models: must be {MODELS_MOST} at most"
        )
    return tuple(found)


def look_below(top: Path) -> Below:
    """No model is looked for within another, and none in hidden folders. Of several ways to one
    folder the one without links gives the name. Raises SettingError where there is too much."""
    seen = 0

    def look(folder: Path, deep: int) -> Found:
        nonlocal seen
        models, others = [], []
        for path in _folders(folder):
            seen += 1
            if seen > LOOKED_AT_MOST:
                raise SettingError(
                    f"MODELS_DIR={str(top)!r}: must be a folder of models; it has more than "
                    f"{LOOKED_AT_MOST} folders"
                )
            version = _of_hub(path)
            if is_model(version or path):
                called = path if version is None else path.parent / _name_at_hub(path)
                models.append(ServedModel(called.relative_to(top).as_posix(), version or path))
                continue
            closed = deep == DEEP or path.name.startswith(HUB) or path.name.endswith(UNFINISHED)
            inner = ([], []) if closed else look(path, deep + 1)
            models += inner[0]
            others += inner[1] if inner[0] else [(path, _why_none(version or path))]
        return models, others

    models, others = look(top, 1)
    real, by_place = os.path.realpath(top), {}

    def way(one: ServedModel) -> tuple[bool, int, str]:
        inner = one.folder.relative_to(top)
        return one.place != os.path.join(real, inner), len(inner.parts), one.name

    for one in sorted(models, key=way):
        by_place.setdefault(one.place, one)
    found = sorted(by_place.values(), key=lambda one: one.name)
    return Below(tuple(found), tuple(others))


def is_model(folder: Path) -> bool:
    """Whether it has what a model cannot be without."""
    whole = os.path.isfile(folder / "config.json") and _has_weights(folder)
    return whole and not folder.name.endswith(UNFINISHED)


def _why_none(folder: Path) -> str:
    """Why it is no model."""
    if folder.name.endswith(UNFINISHED):
        return "it is an unfinished copy"
    config, weights = os.path.isfile(folder / "config.json"), _has_weights(folder)
    if config == weights:
        return NOTHING
    return "it has no model*.safetensors" if config else "it has no config.json"


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("model*.safetensors"))


def _name_at_hub(folder: Path) -> str:
    return folder.name[len(HUB) :].replace("--", "/", 1)


def _of_hub(folder: Path) -> Path | None:
    """Of a repo in the hub's cache the version that its main branch names, else the only one."""
    if not folder.name.startswith(HUB):
        return None
    versions = _folders(folder / "snapshots")
    try:
        commit = (folder / "refs/main").read_text("utf-8").strip()
    except (OSError, ValueError):
        commit = ""
    named = [path for path in versions if path.name == commit]
    return next(iter(named or (versions if len(versions) == 1 else [])), None)


def _folders(folder: Path) -> list[Path]:
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []  # one that cannot be read is no model
    return [path for path in paths if os.path.isdir(path)]


def _absolute(setting: str, text: str, path: str) -> Path:
    if not os.path.isdir(path):
        problem = "no such folder"
        if re.search(r"[,\s][^\s,=/]+=", path):  # of a list, taken for a part of the path
            problem += "; each of the list must be NAME=/FOLDER"
        raise SettingError(f"{setting}={text!r}: must lead to a folder; {problem}")
    return Path(os.path.abspath(path))
