"""The options that several verbs have, and what their values may be.

    --port P          which server: the port of its HTTP. Wins over HTTP_PORT
    --local N         N ranks on this machine, in place of the hosts of the hostfile
    --hostfile FILE   the hosts of the cluster. Wins over HOSTFILE
    --env NAME=VALUE  one more variable for every rank
    --json            the last line on stdout is one JSON value
    --dry-run         print what would be run, and run nothing

The functions that look at a value raise argparse's ArgumentTypeError, which names the value and
what is allowed. Standard library alone; Python 3.9.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

from scripts.lib.hosts.reach import MOST_RANKS
from server.protocol.setting import SettingError, allowed, parse
from server.protocol.settings_table import BY_NAME

# Options that are settings, too: they win over the environment and over cluster.env.
SETTINGS = {"--port": "HTTP_PORT", "--hostfile": "HOSTFILE"}


def whole(least: int, most: int) -> Callable[[str], int]:
    """A whole number within limits."""

    def read(text: str) -> int:
        # Not int(), which takes 1_000 and other scripts' digits.
        if not re.fullmatch("0|[1-9][0-9]{0,14}", text) or not least <= int(text) <= most:
            raise wrong(text, f"a whole number from {least} to {most}")
        return int(text)

    return read


def decimal(least: float, most: float, unit: str = "a number") -> Callable[[str], float]:
    """A number within limits."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:  # also refuses nan
            raise wrong(text, f"{unit} from {least:g} to {most:g}")
        return value

    return read


def one_of(*words: str) -> Callable[[str], str]:
    """One of these words."""

    def read(text: str) -> str:
        if text not in words:
            raise wrong(text, "one of " + ", ".join(words))
        return text

    return read


def some(text: str) -> str:
    """Anything but nothing."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def port(text: str) -> int:
    """A port, as HTTP_PORT takes it."""
    setting = BY_NAME["HTTP_PORT"]
    try:
        value = parse(setting, text)
    except SettingError:
        value = None
    if value is None or not text:
        raise wrong(text, allowed(setting))
    return value


def local(text: str) -> int:
    """How many ranks."""
    if not re.fullmatch("[1-9][0-9]?", text) or int(text) > MOST_RANKS:
        raise wrong(text, f"a number of ranks from 1 to {MOST_RANKS}")
    return int(text)


def variable(text: str) -> str:
    """NAME=VALUE. Not the keys: everyone on a rank's host could read them in ps."""
    if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*=.*", text, re.S):
        raise wrong(text, "NAME=VALUE")
    if text.startswith("API_KEY="):
        raise argparse.ArgumentTypeError(
            "API_KEY: everyone on the host could read it in ps; export it instead"
        )
    return text


KINDS: dict[str, Callable] = {
    "--port": port,
    "--local": local,
    "--hostfile": some,
    "--env": variable,
}
FLAGS = ("--json", "--dry-run")


def add(parser: argparse.ArgumentParser, *options: str) -> None:
    """Has the parser take these of the shared options."""
    for option in options:
        if option in FLAGS:
            parser.add_argument(option, action="store_true")
        elif option == "--env":
            parser.add_argument(option, type=KINDS[option], action="append", default=[])
        else:
            parser.add_argument(option, type=KINDS[option])


def wrong(text: str, must_be: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"'{text}': must be {must_be}")
