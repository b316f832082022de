"""Is a model folder whole: configuration, tokenizer, templates, and every weight file to its end?

Called before launch (check_model.py, demo_model.py, sync_model.sh). Which files count is
server/protocol/fingerprint.py's to say. It reads small files and the headers of weights, never
weights, and imports nothing but the standard library, so the size of the model does not matter.
"""

import ast
import json
import re
from pathlib import Path

from server.protocol.fingerprint import WEIGHT_FILES, model_files

INDEX_FILE = "model.safetensors.index.json"
# Any one of these sets is a tokenizer that transformers can read.
TOKENIZER_SETS = (
    ("tokenizer.json",),
    ("tokenizer.model",),
    ("vocab.json", "merges.txt"),
    ("tiktoken.model",),
)
HEADER_LIMIT = 100_000_000  # bytes; the format's own limit


def folder_problems(folder: Path, weights: bool = True) -> list[str]:
    """What is missing or damaged in `folder`, a sentence each; empty when it is whole. weights:
    they are in it, too."""
    if not folder.is_dir():
        return [f"{folder} is not a directory"]
    problems = []
    try:
        read_json(folder / "config.json")
    except ValueError as error:
        problems.append(str(error))
    if not has_tokenizer(folder):
        problems.append(f"{folder} has no tokenizer (tokenizer.json or tokenizer.model)")
    problems += missing_modules(folder)
    for path in model_files(folder):
        # config.json and the index have words of their own.
        if not path.match(WEIGHT_FILES) and path.name not in ("config.json", INDEX_FILE):
            problems += small_file_problems(path)
    return problems + (weight_problems(folder) if weights else [])


def has_tokenizer(folder: Path) -> bool:
    """Whether there are files to make one of."""
    return any(all((folder / name).is_file() for name in names) for names in TOKENIZER_SETS)


def small_file_problems(path: Path) -> list[str]:
    """Why a file of the tokenizer, the templates or their code cannot be what it was."""
    try:
        content = path.read_bytes()
        if not content:
            return [f"{path} is empty"]
        if path.suffix == ".json":
            json.loads(content)
        elif path.suffix == ".py":
            ast.parse(content)  # never run
    except OSError as error:
        return [f"{path} cannot be read: {error.strerror}"]
    except (ValueError, SyntaxError, RecursionError) as error:
        return [f"{path} is not {'JSON' if path.suffix == '.json' else 'Python'}: {error}"]
    return []


def missing_modules(folder: Path) -> list[str]:
    """Code of the tokenizer's that its configuration names and that is not there.

    With a tokenizer.json it is not needed, and copies of such models often lack it.
    """
    if (folder / "tokenizer.json").is_file():
        return []
    try:
        named = read_json(folder / "tokenizer_config.json").get("auto_map")
    except ValueError:
        return []  # absent, which is allowed, or damaged, which is told elsewhere
    classes = named.values() if isinstance(named, dict) else []
    words = [word for entry in classes for word in (entry if isinstance(entry, list) else [entry])]
    modules = {
        word.rpartition(".")[0]
        for word in words
        # ORG/REPO--module.Class is fetched from elsewhere, and not by us.
        if isinstance(word, str) and re.fullmatch(r"\w+\.\w+", word)
    }
    return [
        f"{folder / module}.py is missing: tokenizer_config.json names it"
        for module in sorted(modules)
        if not (folder / f"{module}.py").is_file()
    ]


def weight_problems(folder: Path) -> list[str]:
    """What is missing or damaged among the weight files of `folder`."""
    # The pattern that mlx-lm loads: a file of another name would be passed over in silence.
    names = {path.name for path in folder.glob("model*.safetensors")}
    if not names:
        return [f"{folder} has no weights (model*.safetensors)"]
    if (folder / INDEX_FILE).exists():
        try:
            weight_map = read_json(folder / INDEX_FILE).get("weight_map")
        except ValueError as error:
            return [str(error)]
        if not isinstance(weight_map, dict):
            return [f"{folder / INDEX_FILE} has no weight_map"]
        names |= {str(name) for name in weight_map.values()}
    problems = (safetensors_problem(folder / name) for name in sorted(names))
    return [problem for problem in problems if problem]


def safetensors_problem(path: Path) -> str | None:
    """Why the safetensors file `path` cannot be read to its end, or None.

    The header tells how long the file must be, so a copy that broke off is noticed here.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            if not 2 <= header_size <= min(HEADER_LIMIT, size - 8):
                return f"{path} is not a safetensors file, or broke off"
            header = json.loads(file.read(header_size))
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{path} is not a safetensors file"
    wanted = 8 + header_size + max(ends, default=0)
    return None if size == wanted else f"{path} has {size} bytes of {wanted}"


def read_json(path: Path) -> dict:
    """The object in the JSON file `path`. Raises ValueError with a sentence for the user."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return content
