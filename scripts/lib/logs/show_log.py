#!/usr/bin/env python3
"""Print a server's log, over all its parts, and follow it: what logs.sh runs.

Usage: show_log.py ROOT [--port P] [--rank N] [--lines N] [--since-start] [--follow]

Log lines go to stdout, all else to stderr; what a terminal would obey is shown as an escape.
Exit codes: 0 done or interrupted, 2 usage, 3 there is no such server or log. Standard library only.
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
from scripts.lib.status.servers import Server, choose_one, find_servers, read_server
from server.protocol.printable import printable_line


def say(text: str) -> None:
    print(f"logs.sh: {text}", file=sys.stderr)


def choose_server(root: Path, port: int | None) -> Server | int:
    """The server that is meant; or the exit code, after saying why there is none."""
    if port is not None:
        server = read_server(root, port)
        if server is None:
            ports = ", ".join(str(other.port) for other in find_servers(root)) or "none"
            say(f"no server was started on port {port} from this checkout (ports: {ports})")
            return 3
        return server
    servers = find_servers(root)
    chosen = choose_one(servers)
    if isinstance(chosen, str):
        say(chosen)
        return 2 if servers else 3
    return chosen


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


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("root", type=Path)
    parser.add_argument("--port", type=int)
    parser.add_argument("--rank", type=int)
    parser.add_argument("--lines", type=int, help="all without it")
    parser.add_argument("--since-start", action="store_true")
    parser.add_argument("--follow", action="store_true")
    args = parser.parse_args()
    server = choose_server(args.root, args.port)
    if isinstance(server, int):
        return server
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
