#!/usr/bin/env python3
"""Show how the servers of this checkout are: what status.sh runs.

Usage: show_status.py ROOT [--port P] [--json] [--watch SECONDS]

Keys are read from API_KEY or API_KEY_FILE. Exit codes: 0 well, or interrupted; 1 something is not
well; 3 nothing runs. Standard library only.
"""

import argparse
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from scripts.lib.status.ask import gather
from scripts.lib.status.judge import exit_code, report
from scripts.lib.status.servers import Server, find_servers, read_server
from scripts.lib.status.show import render
from server.protocol.printable import printable

CLEAR = "\033[H\033[2J"


def look(root: Path, port: int | None) -> list[dict[str, Any]]:
    """A report of each server, or of the one on this port."""
    servers: list[Server | None] = [read_server(root, port)] if port else [*find_servers(root)]
    found = [server for server in servers if server is not None]
    if not found:
        return []
    with ThreadPoolExecutor(len(found)) as pool:  # One that is slow must not delay the others.
        return list(pool.map(lambda server: report(gather(server, os.environ)), found))


def show(reports: list[dict[str, Any]], as_json: bool, port: int | None) -> None:
    code = exit_code(reports)
    if as_json:
        print(json.dumps({"well": code == 0, "time": time.time(), "servers": reports}))
    elif not reports and port:
        print(f"nothing runs: no server was started on port {port} from this checkout")
    else:
        print("\n".join(printable(line) for line in render(reports).split("\n")))
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("root", type=Path)
    parser.add_argument("--port", type=int)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--watch", type=float)
    args = parser.parse_args()
    try:
        while True:
            reports = look(args.root, args.port)
            if args.watch and not args.json:
                clear = CLEAR if sys.stdout.isatty() else ""
                print(f"{clear}{time.strftime('%Y-%m-%d %H:%M:%S')}  (Ctrl-C ends this)\n")
            show(reports, args.json, args.port)
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
