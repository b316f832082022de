#!/usr/bin/env python3
"""Show how the servers of this checkout are: status.sh, whose header is the help.

Keys are read from API_KEY or API_KEY_FILE. Standard library only.
"""

import json
import os
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from scripts.lib.settings.kept_settings import Found
from scripts.lib.status.ask import gather
from scripts.lib.status.judge import exit_code, report
from scripts.lib.status.servers import Server, find_servers, read_server
from scripts.lib.status.show import render
from scripts.lib.verbs import shared
from scripts.lib.verbs.header import help_of
from scripts.lib.verbs.parser import Parser
from scripts.lib.verbs.verb_settings import ROOT, named_port, read_settings, stop, texts
from server.protocol.printable import printable

PROGRAM = "status.sh"
CLEAR = "\033[H\033[2J"


def look(root: Path, port: int | None, keys: Mapping[str, str]) -> list[dict[str, Any]]:
    """A report of each server, or of the one on this port."""
    servers: list[Server | None] = [read_server(root, port)] if port else [*find_servers(root)]
    found = [server for server in servers if server is not None]
    if not found:
        return []
    with ThreadPoolExecutor(len(found)) as pool:  # One that is slow must not delay the others.
        return list(pool.map(lambda server: report(gather(server, keys)), found))


def show(reports: list[dict[str, Any]], as_json: bool, port: int | None) -> None:
    code = exit_code(reports)
    if as_json:
        print(json.dumps({"well": code == 0, "time": time.time(), "servers": reports}))
    elif not reports and port:
        print(f"nothing runs: no server was started on port {port} from this checkout")
    else:
        print("\n".join(printable(line) for line in render(reports).split("\n")))
    sys.stdout.flush()


def parser() -> Parser:
    made = Parser(PROGRAM, help_of(PROGRAM))
    shared.add(made, "--port", "--json")
    made.add_argument("--watch", type=shared.decimal(0.5, 99_999, "seconds"))
    return made


def find_keys(settings: Mapping[str, Found]) -> dict[str, str]:
    """Where keys of the server may be. Ends the program for a file named now that is not there."""
    file = settings["API_KEY_FILE"]
    told = texts(settings)
    if file.text and not os.access(file.text, os.R_OK):
        if file.origin == "environment":
            must = "must be a file that can be read here, with one key a line"
            stop(PROGRAM, f"API_KEY_FILE='{file.text}': {must}")
        told["API_KEY_FILE"] = ""  # It is kept for rank 0, which may be elsewhere.
    return told


def main() -> int:
    args = parser().parse_args()
    settings = read_settings(PROGRAM, args)
    port, keys = named_port(settings), find_keys(settings)
    try:
        while True:
            reports = look(ROOT, port, keys)
            if args.watch and not args.json:
                clear = CLEAR if sys.stdout.isatty() else ""
                print(f"{clear}{time.strftime('%Y-%m-%d %H:%M:%S')}  (Ctrl-C ends this)\n")
            show(reports, args.json, port)
            if not args.watch:
                return exit_code(reports)
            time.sleep(args.watch)
    except KeyboardInterrupt:
        return 0  # The way to end --watch.
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
