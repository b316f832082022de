"""Which running server a client of ours talks to: --url, --port, or the one that runs.

For the verbs that load a server, whichever it is and wherever it stands. Standard library only.
"""

import argparse
import os
import sys

from scripts.lib.settings.kept_settings import SettingError, first_key, lookup
from scripts.lib.status.servers import find_servers
from scripts.lib.verbs.parser import Parser
from scripts.lib.verbs.shared import KINDS, some
from scripts.lib.verbs.verb_settings import ROOT, choose_server, stop


def add_server(parser: argparse.ArgumentParser) -> None:
    """Has the parser take --url and --port."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", type=some)
    where.add_argument("--port", type=KINDS["--port"])


def find_server(parser: Parser, options: argparse.Namespace) -> None:
    """Sets options.url, options.server and options.key; ends the program where it can't.

    server: as its start was recorded here; None with --url. key: from the settings, or "".
    """
    program = parser.prog
    try:
        options.key = first_key(os.environ)
        # HTTP_PORT has a default, which is no word about which server is meant.
        port = options.port or (None if options.url else named_port())
    except SettingError as error:
        stop(program, str(error))
    options.server = None
    if options.url:
        return
    if not find_servers(ROOT):
        parser.error("no server was started from this checkout: name one with --url")
    options.server = choose_server(program, port, ROOT)
    options.url = options.server.url
    if port is None:
        print(f"{program}: port {options.server.port}: {options.url}", file=sys.stderr, flush=True)


def named_port() -> int | None:
    """What the environment or cluster.env says. Raises SettingError."""
    return lookup("HTTP_PORT", os.environ, default=False)
