"""Which hosts a copy goes to, and what this machine needs for it: how both sync verbs begin."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.lib.hosts.find_hostfile import NoHostfile, find_hostfile, local_hostfiles
from scripts.lib.hosts.hostfile import HostfileError, read_hostfile, ssh_name_problem
from scripts.lib.settings.interpreter import NoInterpreter, rank_python
from scripts.lib.verbs.exit_codes import FAILED, MISSING, USAGE
from scripts.lib.verbs.verb_settings import stop

TOOLS = {
    "ssh": "it is part of every macOS and Debian",
    "rsync": "Debian: apt-get install rsync",
}


def need_tools(program: str) -> None:
    """Ends the program where one is missing."""
    for tool, hint in TOOLS.items():
        if shutil.which(tool) is None:
            stop(program, f"{tool} is not installed: {hint}", MISSING)


def need_python(program: str, settings: Mapping[str, str]) -> str:
    """The ranks' interpreter, which need not be there yet; or the end of the program."""
    try:
        return rank_python(settings)
    except NoInterpreter as error:
        stop(program, str(error), MISSING)


def choose_targets(
    program: str, named: Sequence[str], hostfile: str, root: Path, alone: bool = False
) -> tuple[list[str], Path | None]:
    """The hosts named, else all of the hostfile, each once; and the hostfile, if there is one.
    alone: none at all where there is no hostfile either, as this machine is all there is.

    A matrix that is still wrong is no reason not to copy.
    """
    for host in named:
        if problem := ssh_name_problem(host):
            stop(program, f"'{host}': {problem}", USAGE)
    if named and not hostfile and not local_hostfiles(root):
        return list(dict.fromkeys(named)), None
    if named and not hostfile:
        return list(dict.fromkeys(named)), local_hostfiles(root)[0]
    if alone and not hostfile and not local_hostfiles(root):
        return [], None
    try:
        path = find_hostfile(hostfile, root)
        hosts = named or [host.ssh for host in read_hostfile(path).hosts]
    except NoHostfile as error:
        stop(program, str(error), error.code)
    except (OSError, HostfileError) as error:
        stop(program, f"{path}: {error}", FAILED)
    for host in hosts:
        if problem := ssh_name_problem(host):
            stop(program, f"{path}: '{host}': {problem}", FAILED)
    return list(dict.fromkeys(hosts)), path
