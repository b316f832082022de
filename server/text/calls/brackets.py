"""Where a bracket in other text is closed, and values of Python. Pure; rank 0's HTTP threads.

Quotes tell what is inside of a string, so that no bracket and no marker in one ends anything.
"""

import ast
import re
from typing import Any

from server.text.calls.reader import NotACall, Scan

# A string, a bracket, or a quote that opens a string without an end.
JSON = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]]|"', re.DOTALL)
PYTHON = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*"""|' r"'''(?:[^'\\]|\\.|'(?!''))*'''|\"\"\"|'''|"
    r'"[^"\\]*(?:\\.[^"\\]*)*"|' r"'[^'\\]*(?:\\.[^'\\]*)*'|[()\[\]{}]|[\"']",
    re.DOTALL,
)  # fmt: skip
_PAIRS = {")": "(", "]": "[", "}": "{"}
# Templates write what is inside of containers as JSON.
_WORDS = {"true": True, "false": False, "null": None}


def bracket_end(scan: Scan, at: int, language: re.Pattern[str]) -> int:
    """After the bracket that closes the one that stands there. Raises NotACall, More."""
    stack = []
    for token in language.finditer(scan.text, at):
        mark, scan.reached = token[0], token.end()
        if mark in ("(", "[", "{"):
            stack.append(mark)
        elif mark in _PAIRS:
            if stack.pop() != _PAIRS[mark]:
                raise NotACall("brackets that do not match")
            if not stack:
                return token.end()
        elif mark in ('"', "'", '"""', "'''"):
            break
    scan.more()
    raise NotACall("brackets without an end")


def python_tree(source: str) -> ast.expr:
    """An expression. A string in Python has no line breaks; one of a model may."""
    escaped = PYTHON.sub(lambda mark: mark[0].replace("\r", "\\r").replace("\n", "\\n"), source)
    return _JsonWords().visit(ast.parse(escaped, mode="eval").body)


def read_python(source: str) -> Any:
    """The value of a literal. Raises whatever ast does."""
    return ast.literal_eval(python_tree(source))


class _JsonWords(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(_WORDS[node.id]) if node.id in _WORDS else node
