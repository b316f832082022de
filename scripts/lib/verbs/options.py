#!/usr/bin/env python3
"""Read the command line of a verb that is bash: what read_options (ask_python.sh) asks.

Usage: module.py lib.verbs.options SCRIPT [--words] [--with MODULE] -- ARGUMENT...

The options are those of the usage in SCRIPT's header. The first line of the answer is `options`;
then comes a line of shell for each that was given, in order: `option --local 2`. With --words also
`word install` for each argument that is none. --with: those that MODULE's add_options adds to a
parser are allowed, too, checked, and handed on as they stand: `rest --max-tokens`, `rest 16`.

Exit codes: 0 done; 2 usage, with a line that says what is wrong. Standard library alone; Python
3.9.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from scripts.lib.verbs.header import Option, bash_parser, read_help, usage_options


def main(arguments: list[str]) -> int:
    """See the module's docstring."""
    script, *ours = arguments[: arguments.index("--")]
    words = arguments[arguments.index("--") + 1 :]
    path = Path(script)
    text = read_help(path)
    parser = bash_parser(path.name, text)
    if "--words" in ours:
        parser.add_argument("word", nargs="*", default=[])
    if "--with" in ours:
        # Whatever stands behind -- was meant for the other one; all may stand anywhere.
        words = [word for word in words if word != "--"]
        module = importlib.import_module("scripts." + ours[ours.index("--with") + 1])
        module.add_options(parser)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parser.parse_args(words)
    except SystemExit as end:
        # Not on stderr, where a Python that is none of ours may have said anything.
        print("options", said.getvalue(), sep="\n", end="")
        return int(end.code or 0)
    kind = "rest" if "--with" in ours else "word"
    options = {option.name: option for option in usage_options(text)}
    print("\n".join(["options", *told(options, words, kind)]))
    return 0


def told(options: Mapping[str, Option], words: Sequence[str], kind: str) -> Iterator[str]:
    """A line for each option, in the order in which they came; kind says what the others are."""
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        if word == "--":
            yield from (f"{kind} {shlex.quote(other)}" for other in left)
            return
        if name not in options:
            yield f"{kind} {shlex.quote(word)}"
            continue
        if not equals:
            value = " ".join(left.pop(0) for _ in range(options[name].values(left)))
        yield f"option {name} {shlex.quote(value)}" if options[name].value else f"option {name}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
