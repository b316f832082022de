"""The help of a script, which is the comment that it begins with, and the options that it names.

The usage tells which options there are and whether they take a value: [--dry-run], [--local N],
[--env NAME=VALUE]..., [-n | --lines N]. Standard library alone; Python 3.9.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.lib.verbs import shared
from scripts.lib.verbs.parser import Parser

# In brackets: an option, the name of its value if it takes one, and dots where it may be repeated.
OPTION = re.compile(r"(?<![\w-])(?P<name>--?[a-z][a-z-]*)(?:[ =](?P<value>\[?[A-Z][A-Z=]*\]?))?")
SCRIPTS = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Option:
    """One option of a usage. value: the name of its value, in brackets if it may be left out; empty
    for a flag."""

    name: str
    value: str = ""

    def values(self, following: Sequence[str]) -> int:
        """How many of the words that follow it are its value."""
        if self.value.startswith("["):
            return int(bool(following) and not following[0].startswith("-"))
        return int(bool(self.value))


def read_help(script: Path) -> str:
    """The comment that the script begins with, without its first line."""
    lines = []
    for line in script.read_text("utf-8").splitlines()[1:]:
        if not line.startswith("#"):
            break
        lines.append(line[2:])
    return "\n".join(lines)


def help_of(name: str) -> str:
    """The help of scripts/NAME, with the settings that it reads."""
    from scripts.lib.settings.settings import help_lines

    settings = help_lines(name.rpartition("/")[2].partition(".")[0])
    return "\n".join([read_help(SCRIPTS / name), *settings])


def usage_options(text: str) -> Iterator[Option]:
    """Every option of the usage in a help text, once."""
    usage = re.search(r"^usage: .*?(?=^$|\Z)", text, re.M | re.S | re.I)
    seen = set()
    for found in OPTION.finditer(usage[0] if usage else ""):
        if found["name"] not in seen:
            seen.add(found["name"])
            yield Option(found["name"], found["value"] or "")


def bash_parser(program: str, text: str) -> Parser:
    """Reads what the usage has: shared options checked, the others for bash to look at."""
    parser = Parser(program, text)
    for option in usage_options(text):
        if option.name in ("-h", "--help"):
            continue
        if option.name in shared.KINDS or option.name in shared.FLAGS:
            shared.add(parser, option.name)
        elif option.value:
            count = "?" if option.value.startswith("[") else None
            parser.add_argument(option.name, type=shared.some, nargs=count, action="append")
        else:
            parser.add_argument(option.name, action="store_true")
    return parser
