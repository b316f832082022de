"""Code that a model folder brings for its tokenizer: which, and whether it has to be run.

Called by the ranks while they load, and before a launch. Standard library only. The code is parsed
and never run.
"""

import ast
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.protocol import python_source

TOKENIZER = "tokenizer.json"
RANKS = "tiktoken.model"
# The class whose code does no more than tiktoken with this file, and the name of its pattern.
KNOWN_CLASS, PATTERN = "TikTokenTokenizer", "pat_str"


@dataclass(frozen=True)
class Code:
    """file: what transformers would import; name: the class in it."""

    file: str
    name: str

    @property
    def refusal(self) -> str:
        return (
            f"the tokenizer needs code of the model folder to be run ({self.file}). Look at it, "
            "and if you trust it set TRUST_REMOTE_CODE=1; or put a tokenizer.json into the folder"
        )


def wanted_code(folder: Path) -> Code | None:
    """What the tokenizer's config names, if it names any."""
    mapped = read_json(folder / "tokenizer_config.json").get("auto_map")
    wanted = mapped.get("AutoTokenizer") if isinstance(mapped, dict) else mapped
    names = wanted if isinstance(wanted, list) else [wanted]
    for name in reversed(names):  # the fast one, if there is one, is the second
        if isinstance(name, str) and "." in name:
            module, _, class_name = name.rpartition("--")[2].rpartition(".")
            return Code(f"{module}.py", class_name)
    return None


def must_run(folder: Path) -> Code | None:
    """The code without which the tokenizer cannot be made."""
    code = wanted_code(folder)
    if code is None or (folder / TOKENIZER).is_file() or split_pattern(folder, code) is not None:
        return None
    return code


def split_pattern(folder: Path, code: Code) -> str | None:
    """Of a tokenizer that is tiktoken's: the pattern by which it splits a text. None for others."""
    added = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder")
    if code.name != KNOWN_CLASS or not added or not (folder / RANKS).is_file():
        return None
    try:
        tree = python_source.parse((folder / code.file).read_text("utf-8"))
    except (OSError, ValueError, SyntaxError, RecursionError):
        return None
    found = [
        _text(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name) and target.id == PATTERN
    ]
    return found[0] if len(found) == 1 else None


def _text(node: ast.expr | None) -> str | None:
    """The text that an expression of texts stands for: one, a sum, or some that are joined."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            parts = [_text(left), _text(right)]
            return None if None in parts else "".join(parts)
        case ast.Call(
            func=ast.Attribute(value=between, attr="join"),
            args=[ast.List(elts=elements) | ast.Tuple(elts=elements)],
            keywords=[],
        ):
            joint, parts = _text(between), [_text(element) for element in elements]
            return None if None in (joint, *parts) else joint.join(parts)
    return None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is none."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
