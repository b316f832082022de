"""argparse with our words, and with help from where the verb explains itself.

Every command line of ours is read by a Parser: in the module of a verb that is Python, and for a
verb that stays bash by options.py. So an unknown option, a missing value and a wrong one are told
in the same words everywhere, with exit code 2 and nothing on stdout. Options are never abbreviated;
--help wins over whatever else is wrong. Standard library alone; Python 3.9.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from scripts.lib.verbs.exit_codes import USAGE

NEGATIVE = re.compile(r"-\d+(\.\d*)?|-\.\d+")
_OF_ARGUMENT = re.compile(r"argument (?P<names>\S+): (?P<what>.*)", re.S)
_MISSING = re.compile(r"the following arguments are required: (?P<names>.*)")
_ONE_OF = re.compile(r"one of the arguments (?P<names>.*) is required")


class Parser(argparse.ArgumentParser):
    """program: as the user called it. text: the help, which names every option."""

    def __init__(self, program: str, text: str):
        super().__init__(prog=program, add_help=False, allow_abbrev=False)
        self._text = text
        # For the list of options alone: parse_args looks for them first.
        self.add_argument("-h", "--help", action="store_true")

    def parse_args(self, args=None, namespace=None):  # argparse's own names
        """The namespace, or the end of the program."""
        words = list(sys.argv[1:] if args is None else args)
        options = words[: words.index("--")] if "--" in words else words
        if "--help" in options or "-h" in options:
            with contextlib.suppress(BrokenPipeError):  # a pager that has seen enough
                print(self.format_help(), flush=True)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self.exit(0)
        self.refuse_unknown(options)
        taken, left = self.parse_known_intermixed_args(words, namespace)
        if left:
            self.unknown(left[0])
        return taken

    def format_help(self) -> str:
        """The text, and behind it what has a word of help and no line in the text."""
        lines = [self._text.strip("\n")]
        for action in self._actions:
            name = ", ".join(action.option_strings)
            if action.help and not re.search(rf"^ +{re.escape(name)}\b.*?  ", lines[0], re.M):
                lines += [""] * (len(lines) == 1) + [f"  {name:<16}  {action.help}"]
        return "\n".join(lines)

    def refuse_unknown(self, words: Sequence[str]) -> None:
        """Before anything else: what follows an option that we do not know means nothing."""
        known = self._option_string_actions
        for word in words:
            if not word.startswith("-") or word == "-" or " " in word or NEGATIVE.fullmatch(word):
                continue  # argparse takes it for a value, too
            if word.partition("=")[0] not in known and (word[:2] == "--" or word[:2] not in known):
                self.unknown(word.partition("=")[0])

    def unknown(self, word: str) -> NoReturn:
        """The one text for what no verb knows."""
        text = f"unknown argument '{word}'"
        if word.startswith("-"):
            import difflib  # costs time that a right command line need not take

            names = list(self._option_string_actions)
            text += f": the nearest known one is {difflib.get_close_matches(word, names, 1, 0)[0]}"
        self.error(text)

    def error(self, message: str) -> NoReturn:
        """One line on stderr, exit code 2."""
        self.exit(USAGE, f"{self.prog}: {in_our_words(message)}; see --help\n")


def in_our_words(message: str) -> str:
    """argparse's messages name the argument first, and then say what is wrong with it."""
    if found := _MISSING.fullmatch(message):
        return f"{found['names']} is missing"
    if found := _ONE_OF.fullmatch(message):
        return f"one of {found['names'].replace(' ', ', ')} is missing"
    found = _OF_ARGUMENT.fullmatch(message)
    if found is None:
        return message
    name, what = found["names"].rpartition("/")[2], found["what"]
    if what.startswith("expected "):
        return f"{name} needs a value"
    if what.startswith("ignored explicit argument"):
        return f"{name} takes no value"
    if other := re.fullmatch(r"not allowed with argument (\S+)", what):
        return f"{other[1].rpartition('/')[2]} and {name}: one of them"
    return f"{name} {what}"
