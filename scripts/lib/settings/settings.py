#!/usr/bin/env python3
"""The table of settings for scripts: checks, help, and what is made from it.

Usage: module.py lib.settings.settings check SCRIPT [--option NAME=VALUE]... [--OTHER NAME=VALUE]...
       module.py lib.settings.settings valid NAME VALUE
       module.py lib.settings.settings help SCRIPT | docs | template

check     Every setting that SCRIPT (its name without .sh) reads, one a line: name, where it goes
          (rank, launch, secret or here), origin, default and value, with \\037 between; a value is
          empty where the default holds. After them, with the place `fact`, what stands in
          server/protocol/limits.py and hosts/reach.py. Each problem is a line instead. --option:
          one for all ranks, as of --env. --OTHER: an option of the script's that stands for a
          setting, such as --port.
valid     Nothing, or what is wrong with this value.
help      The list for SCRIPT's --help.
docs      The table of docs/from-scratch.md. With template: hostfiles/cluster.env.template.

The first line is always `settings`, so that bash can tell an answer from a Python that is none.
Exit codes: 0 done, 2 a setting is wrong, 3 the file that CLUSTER_ENV names cannot be read.
Standard library alone; Python 3.9, which Macs have from Apple.
"""

import sys

if sys.hexversion < 0x03090000:
    sys.exit("Python 3.9 or later is needed")

import os

from scripts.lib.hosts import reach
from scripts.lib.settings import kept_settings
from server.protocol import limits
from server.protocol.setting import Setting, SettingError, allowed, default_words, plain
from server.protocol.settings_table import BENCH, BY_NAME, OF_USERS, RUN

WIDTH = 100
BETWEEN = "\037"


def main(arguments: list) -> int:
    lines, code = answer(arguments)
    text = "\n".join(["settings", *lines]) + "\n"
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
    return code


def answer(arguments: list) -> tuple:
    """The lines to print and the exit code."""
    what, *rest = arguments
    if what == "docs":
        return docs(), 0
    if what == "template":
        return template(), 0
    if what == "help":
        return help_lines(rest[0]), 0
    try:
        if what == "valid":
            plain(BY_NAME[rest[0]], rest[1])
            return [], 0
        script, *options = rest
        pairs = list(zip(options[::2], options[1::2]))  # noqa: B905  # Python 3.9
        for_ranks = [text for option, text in pairs if option == "--option"]
        own = {
            name: (option, value)
            for option, text in pairs
            if option != "--option"
            for name, _, value in [text.partition("=")]
        }
        found, problems = kept_settings.resolve(script, os.environ, for_ranks, own)
    except kept_settings.MissingFile as error:
        return [str(error)], 3
    except SettingError as error:
        return [str(error)], 2
    if problems:
        return problems, 2
    facts = {**vars(limits), **vars(reach)}.items()
    rows = [row(one) for one in found]
    rows += [(name, "fact", "", "", str(value)) for name, value in facts if name.isupper()]
    return [BETWEEN.join(cells) for cells in rows], 0


def row(found: kept_settings.Found) -> tuple:
    """One line of check."""
    setting = found.setting
    place = "here"
    if setting.secret:
        place = "secret"
    elif setting.read_by("rank"):
        place = "rank"
    elif setting.read_by("launch"):
        place = "launch"
    default = "" if setting.default is None else str(setting.default)
    return setting.name, place, found.origin, default, found.text


def help_lines(script: str) -> list:
    """The settings that the script reads, one under the other."""
    import textwrap

    lines = ["", "Settings, from the environment, else from cluster.env (default):"]
    for setting in OF_USERS:
        if setting.read_by(script):
            lines += textwrap.wrap(
                f"{setting.help}{choices(setting)} ({default_words(setting)})", WIDTH,
                initial_indent=f"  {setting.name:<20}  ", subsequent_indent=" " * 24,
                break_on_hyphens=False,
            )  # fmt: skip
    return lines


def docs() -> list:
    """The rows of the runbook's table."""
    lines = ["| variable | default | allowed | meaning |", "|---|---|---|---|"]
    for setting in OF_USERS:
        mark = " b" if setting.read_by(BENCH) else ""
        meaning = setting.help + others(setting)
        cells = f"`{setting.name}`{mark}", default_words(setting), allowed(setting), meaning
        # For Markdown these two are more than text.
        text = "| " + " | ".join(cells).replace("*", "\\*").replace("<", "\\<") + " |"
        lines.append(text)
    return lines


def template() -> list:
    """A cluster.env in which every line is still a comment."""
    import textwrap

    lines = [
        "# Settings that every script reads. Copy this to cluster.env in the checkout, take the #",
        "# from the lines you want, and give them values. The environment wins over it.",
        "#",
        "# NAME=value, one a line. Blanks around a value do not count; quotes around it, single or",
        "# double, are taken off. Nothing is expanded, but ~/ before a path; other paths are meant",
        "# from the folder of cluster.env. With a key in it: chmod 600 cluster.env",
    ]
    for setting in OF_USERS:
        if setting.name in kept_settings.ELSEWHERE:
            continue
        text = f"{setting.help}{others(setting)}: {allowed(setting)} ({default_words(setting)})"
        lines.append("")
        lines += textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ",
                               break_on_hyphens=False)  # fmt: skip
        lines.append(f"#{setting.name}={'' if setting.otherwise else default_words(setting)}")
    return lines


def choices(setting: Setting) -> str:
    """Behind the meaning, if that does not name them."""
    if all(choice in setting.help for choice in setting.choices):
        return ""
    return ": " + ", ".join(setting.choices)


def others(setting: Setting) -> str:
    """Who reads it, if the run script does not."""
    if setting.read_by(RUN) or setting.name in kept_settings.ELSEWHERE:
        return ""
    return f" ({', '.join(f'{name}.sh' for name in setting.readers)})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
