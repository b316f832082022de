"""The settings of a verb that is Python, from its options, the environment and cluster.env.

read_settings ends the program when one is wrong, before anything is done, as check_settings does
for bash. Standard library only.
"""

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from scripts.lib.settings.kept_settings import Found, MissingFile, resolve
from scripts.lib.status.servers import Server, choose_one, find_servers, read_server
from scripts.lib.verbs import shared
from scripts.lib.verbs.exit_codes import MISSING, USAGE
from server.protocol.setting import SettingError

ROOT = Path(__file__).resolve().parents[3]


def read_settings(program: str, options: argparse.Namespace) -> dict[str, Found]:
    """What holds, by name. Options that stand for settings (shared.SETTINGS) win."""
    own = {
        name: (option, str(value))
        for option, name in shared.SETTINGS.items()
        if (value := getattr(options, option.removeprefix("--"), None)) is not None
    }
    try:
        found, problems = resolve(program.partition(".")[0], os.environ, (), own)
    except MissingFile as error:
        stop(program, str(error), MISSING)
    except SettingError as error:
        stop(program, str(error))
    if problems:
        stop(program, "\n".join(problems))
    return {one.setting.name: one for one in found}


def texts(settings: Mapping[str, Found]) -> dict[str, str]:
    """As an environment would have them; empty for the default."""
    return {name: found.text for name, found in settings.items()}


def named_port(settings: Mapping[str, Found]) -> int | None:
    """The port that somebody named, whoever did; None for whichever server runs."""
    found = settings["HTTP_PORT"]
    return int(found.text) if found.text else None


def choose_server(program: str, port: int | None, root: Path = ROOT) -> Server:
    """The server on this port, else the one that runs, else the one started last; or the end."""
    servers = find_servers(root)
    if port is not None:
        server = read_server(root, port)
        if server is not None:
            return server
        ports = ", ".join(str(other.port) for other in servers) or "none"
        stop(
            program,
            f"no server was started on port {port} from this checkout (ports: {ports})",
            MISSING,
        )
    chosen = choose_one(servers)
    if isinstance(chosen, str):
        stop(program, chosen, USAGE if servers else MISSING)
    return chosen


def stop(program: str, text: str, code: int = USAGE) -> NoReturn:
    """Each line on stderr with the program's name before it; ends the program."""
    for line in text.split("\n"):
        print(f"{program}: {line}", file=sys.stderr)
    sys.exit(code)
