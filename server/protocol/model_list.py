"""Which models are served: names and folders, as MODEL_DIR, MODELS and MODELS_DIR tell them.

Asked on every rank, and by the scripts before a launch, which may have an old Python: standard
library alone, Python 3.9. The first of the list is loaded at the start, and is meant by requests
that name none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from server.protocol.setting import SettingError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}")
DEEP = 3  # folders below MODELS_DIR: OWNER/NAME is two
MODELS_MOST = 256
LOOKED_AT_MOST = 20_000  # folders


@dataclass(frozen=True)
class ServedModel:
    """A model that may be loaded."""

    name: str
    folder: Path


def list_models(
    first: ServedModel | None, named: tuple[str, ...], folder: str | None
) -> tuple[ServedModel, ...]:
    """first: MODEL_DIR's; named: words of MODELS; folder: MODELS_DIR. What is named twice alike
    counts once. Raises SettingError."""
    found = [] if first is None else [first]
    for word in named:
        name, _, path = word.partition("=")
        one = ServedModel(name, _resolved("MODELS", word, Path(path).expanduser()))
        if any((name, one.folder) == (other.name, other.folder.resolve()) for other in found):
            continue  # the scripts name the first of them in MODEL_DIR, too
        if any(name == other.name for other in found):
            raise SettingError(f"MODELS={word!r}: must have another name; {name!r} is taken")
        found.append(one)
    if folder:
        top = _resolved("MODELS_DIR", folder, Path(folder))
        if is_model(top):
            raise SettingError(
                f"MODELS_DIR={folder!r}: must be a folder of models; it is one: set MODEL_DIR"
            )
        for path in find_models(top):
            name = path.relative_to(top).as_posix()
            if any(path.resolve() == other.folder for other in found):
                continue
            if not NAME.fullmatch(name) or any(name == other.name for other in found):
                raise SettingError(
                    f"MODELS_DIR={folder!r}: {name!r} must be a name that no other model has, of "
                    "up to 200 letters, digits and any of ._:/@+-; name it in MODELS"
                )
            found.append(ServedModel(name, path.resolve()))
        if not found:
            raise SettingError(f"MODELS_DIR={folder!r}: must have models below it; there is none")
    if len(found) > MODELS_MOST:
        raise SettingError(
            f"MODELS and MODELS_DIR: {len(found)} models: must be {MODELS_MOST} at most"
        )
    return tuple(found)


def find_models(top: Path) -> list[Path]:
    """The folders below it that are models, by name. None is looked for within another."""
    found, level, seen = [], [top], 0
    for _ in range(DEEP):
        inner = []
        for folder in level:
            for path in _folders(folder):
                seen += 1
                if seen > LOOKED_AT_MOST:
                    raise SettingError(
                        f"MODELS_DIR={str(top)!r}: must be a folder of models; it has more than "
                        f"{LOOKED_AT_MOST} folders"
                    )
                (found if is_model(path) else inner).append(path)
        level = inner
    return sorted(found)


def is_model(folder: Path) -> bool:
    """Whether it has what a model cannot be without."""
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _folders(folder: Path) -> list[Path]:
    try:
        inner = [path for path in folder.iterdir() if not path.name.startswith(".")]
        return [path for path in inner if path.is_dir()]
    except OSError:
        return []  # one that cannot be read is no model


def _resolved(setting: str, text: str, path: Path) -> Path:
    try:
        resolved, problem = path.resolve(), ""
        if not resolved.is_dir():
            problem = "no such folder"
    except (OSError, RuntimeError) as error:
        problem = str(error)
    if problem:
        raise SettingError(f"{setting}={text!r}: must lead to a folder; {problem}")
    return resolved
