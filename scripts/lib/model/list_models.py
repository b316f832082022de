"""The models that MODEL_DIR, MODELS and MODELS_DIR name, as rank 0 will have them: a line each.

usage: list_models.py [--unseen] MODEL_DIR MODEL_ID MODELS MODELS_DIR PINNED

Each may be empty. Prints its own name, then for each model `model`, name and folder, tabs between,
the first to be loaded first, and `others` with a MODELS of all but the first, where there may be
one so long; or `wrong` and why. --unseen: for a host whose folders cannot be seen
from here; what is not here is taken as it is named. Exit codes: 0 done, 2 they are wrong. Standard
library alone, Python 3.9.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from server.protocol.model_list import ServedModel, list_models
from server.protocol.setting import SettingError, parse
from server.protocol.settings_table import BY_NAME

SETTINGS = ("MODEL_DIR", "MODEL_ID", "MODELS", "MODELS_DIR", "PINNED")
SOME_MODEL = "SOME_MODEL"  # below a MODELS_DIR that cannot be seen


def read_list(texts: Sequence[str], unseen: bool = False) -> tuple[ServedModel, ...]:
    """texts: of SETTINGS. Raises SettingError."""
    model_dir, model_id, named, models_dir, pinned = (
        parse(BY_NAME[name], text)
        for name, text in zip(SETTINGS, texts)  # noqa: B905
    )
    first = first_of(model_dir, model_id) if model_dir else None
    places = [word.partition("=")[2] for word in named] + [models_dir] * bool(models_dir)
    if unseen and not all(map(os.path.isdir, places)):
        words = [word.partition("=") for word in named]
        models = [first] if first else []
        models += [ServedModel(name, Path(folder)) for name, _, folder in words]
        if not models:
            models = [ServedModel(SOME_MODEL, Path(models_dir) / SOME_MODEL)]
        return tuple(models)
    models = list_models(first, named, models_dir)
    for name in pinned:
        if not any(name == one.name for one in models):
            names = ", ".join(one.name for one in models)
            raise SettingError(f"PINNED={name!r}: must be of the models: {names}")
    return models


def first_of(model_dir: str, model_id: str) -> ServedModel:
    """MODEL_DIR's. Raises SettingError where the folder's name is none for the API."""
    folder = Path(os.path.abspath(model_dir))
    try:
        parse(BY_NAME["MODEL_ID"], model_id or folder.name)
    except SettingError as error:
        raise SettingError(f"{error}; set MODEL_ID") from None
    return ServedModel(model_id or folder.name, folder)


def as_setting(models: Sequence[ServedModel]) -> list[str]:
    """The MODELS that has just these; nothing where it would be too long, or be read otherwise."""
    words = tuple(f"{one.name}={one.folder}" for one in models)
    try:
        same = parse(BY_NAME["MODELS"], ",".join(words)) == words
    except SettingError:
        same = False
    return [",".join(words)] if same else []


def main(arguments: list[str]) -> int:
    """Exit code."""
    unseen = arguments[:1] == ["--unseen"]
    texts = arguments[unseen:]
    if len(texts) != len(SETTINGS):
        print(__doc__, file=sys.stderr)
        return 2
    lines, code = ["list_models"], 0
    try:
        models = read_list(texts, unseen)
        lines += [f"model\t{one.name}\t{one.folder}" for one in models]
        if models[0].name != SOME_MODEL:
            lines += [f"others\t{words}" for words in as_setting(models[1:])]
    except SettingError as error:
        lines, code = [*lines, f"wrong\t{error}"], 2
    text = "\n".join([*lines, ""])
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
