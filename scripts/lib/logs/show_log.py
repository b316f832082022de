#!/usr/bin/env python3
"""Print a server's log, over all its parts, and follow it: logs.sh, whose header is the help.

Log lines go to stdout, all else to stderr; what a terminal would obey is shown as an escape.
Standard library only.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from scripts.lib.logs.log_files import (
    every_line,
    follow,
    last_lines,
    lines_of_last_run,
    of_rank,
    open_parts,
)
from scripts.lib.status.servers import Server
from scripts.lib.verbs import shared
from scripts.lib.verbs.header import help_of
from scripts.lib.verbs.parser import Parser
from scripts.lib.verbs.verb_settings import choose_server, named_port, read_settings
from server.protocol.printable import printable_line


PROGRAM = "logs.sh"
DEFAULT_LINES = 100
MOST_LINES = 1_000_000_000


def say(text: str) -> None:
    print(f"{PROGRAM}: {text}", file=sys.stderr)


def show(args: argparse.Namespace, server: Server) -> int:
    """Print what there is, then what comes, if asked to."""
    choose = every_line if args.rank is None else of_rank(args.rank)
    with ExitStack() as stack:
        files = open_parts(server.log, stack)
        if not files and not args.follow:
            say(f"there is no log at {server.log}")
            return 3
        if not files:
            say(f"waiting for {server.log}")
        if args.lines == 0:
            for file in files[:1]:
                file.seek(0, os.SEEK_END)
        elif args.since_start:
            lines = lines_of_last_run(files, choose)
            write(lines if args.lines is None else lines[-args.lines :])
        else:
            write(last_lines(files, args.lines, choose))
        if args.follow:
            for line in choose(follow(server.log, files[0] if files else None)):
                write([line])
    return 0


def write(lines: Iterable[bytes]) -> None:
    sys.stdout.buffer.writelines(printable_line(line) + b"\n" for line in lines)
    sys.stdout.buffer.flush()


def count_of_lines(text: str) -> int | str:
    """For --lines: a number, or all."""
    if text == "all":
        return text
    try:
        return shared.whole(0, MOST_LINES)(text)
    except argparse.ArgumentTypeError:
        raise shared.wrong(text, "a number of lines, or: all") from None


def parser() -> Parser:
    made = Parser(PROGRAM, help_of(PROGRAM))
    shared.add(made, "--port")
    made.add_argument("-f", "--follow", action="store_true")
    made.add_argument("--rank", type=shared.whole(0, 9999))
    made.add_argument("-n", "--lines", type=count_of_lines)
    made.add_argument("--since-start", action="store_true")
    return made


def main() -> int:
    args = parser().parse_args()
    settings = read_settings(PROGRAM, args)
    server = choose_server(PROGRAM, named_port(settings))
    if args.lines is None and not args.since_start:
        args.lines = DEFAULT_LINES
    elif args.lines == "all":
        args.lines = None
    if args.rank is not None and server.hosts and args.rank >= len(server.hosts):
        say(f"--rank {args.rank}: must be a rank from 0 to {len(server.hosts) - 1}")
        return 2
    try:
        return show(args, server)
    except KeyboardInterrupt:
        return 0  # The way to end --follow.
    except BrokenPipeError:
        # A pager or head has seen enough. Python would complain when it closes stdout.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        say(f"{server.log} cannot be read: {error.strerror}")
        return 3


if __name__ == "__main__":
    sys.exit(main())
