"""Values as text: JSON, with the slips that models make in it, and literals of Python.

Pure; rank 0's HTTP threads. Nothing is added or guessed: a slip is mended where only one value can
be meant.
"""

import ast
import json
import math
import re
from typing import Any

from server.protocol import python_source

# A string, a bracket, or a quote that opens a string without an end.
JSON = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]]|"', re.DOTALL)
PYTHON = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*"""|' r"'''(?:[^'\\]|\\.|'(?!''))*'''|\"\"\"|'''|"
    r'"[^"\\]*(?:\\.[^"\\]*)*"|' r"'[^'\\]*(?:\\.[^'\\]*)*'|[()\[\]{}]|[\"']",
    re.DOTALL,
)  # fmt: skip
# Templates write what is inside of containers as JSON.
_WORDS = {"true": True, "false": False, "null": None}
_SLIPS = re.compile(
    r'(?P<string>"[^"\\]*(?:\\.[^"\\]*)*")|,(?P<closing>\s*[}\]])|\b(?P<word>True|False|None)\b',
    re.DOTALL,
)
_ESCAPE = re.compile(r'\\(?:(?P<good>u[0-9a-fA-F]{4}|["\\/bfnrt])|(?P<bad>.))', re.DOTALL)
_JSON_WORDS = {"True": "true", "False": "false", "None": "null"}


def read_json(text: str) -> Any:
    """JSON as models write it: with line breaks and lone backslashes in strings, a comma before a
    closing bracket, words of Python. Raises ValueError, RecursionError."""
    try:
        return _loads(text)
    except ValueError:
        mended = _SLIPS.sub(_mended, text)
        if mended == text:
            raise
        return _loads(mended)


def python_tree(source: str) -> ast.expr:
    """An expression. A string in Python has no line breaks; one of a model may."""
    escaped = PYTHON.sub(lambda mark: mark[0].replace("\r", "\\r").replace("\n", "\\n"), source)
    return _JsonWords().visit(python_source.parse(escaped, "eval").body)


def read_python(source: str) -> Any:
    """The value of a literal. Raises whatever ast does."""
    return ast.literal_eval(python_tree(source))


def _loads(text: str) -> Any:
    return json.loads(text, strict=False, parse_constant=_refuse, parse_float=_finite)


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError("a number that no double holds")
    return value


def _mended(slip: re.Match[str]) -> str:
    if slip["string"]:
        return _ESCAPE.sub(_escape, slip["string"])
    return _JSON_WORDS[slip["word"]] if slip["word"] else slip["closing"]


def _escape(found: re.Match[str]) -> str:
    """A backslash before what JSON does not escape is one: patterns and paths have such."""
    if found["good"] or found["bad"] == "'":
        return found[0] if found["good"] else "'"
    return "\\\\" + found["bad"]


class _JsonWords(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(_WORDS[node.id]) if node.id in _WORDS else node
