"""What setup_cluster.sh remembers from one call to the next: what it was told, never what it found.

run/setup.json, which git ignores. Whether a step still holds is looked at each time; the benchmark
alone is known by having been run, for these hosts and this model.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from scripts.lib.hosts.hostfile import ssh_name_problem
from scripts.lib.verbs.file_kind import no_file, write_whole

FILE = "run/setup.json"


class StateError(ValueError):
    """The file is none of ours; the message says what to do."""


@dataclass(frozen=True)
class State:
    """hosts: ssh names, rank 0 first. model: folder or repo, "" if none was named. measured: what
    the benchmark was last run for."""

    hosts: tuple[str, ...] = ()
    model: str = ""
    ring_tcp: bool = False
    measured: str = ""


def read_state(root: Path) -> State:
    """What is remembered; nothing at first. Raises StateError."""
    path = root / FILE
    if problem := no_file(path):
        raise StateError(f"{path} {problem}; remove it, and name the hosts")
    try:
        told = json.loads(path.read_text("utf-8"))
        state = replace(State(**told), hosts=tuple(told["hosts"]))
        right = isinstance(told["hosts"], list) and not any(map(ssh_name_problem, state.hosts))
        if not right or {type(state.model), type(state.measured)} != {str}:
            raise TypeError
    except FileNotFoundError:
        return State()
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}; make it yours, or remove it") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise StateError(f"{path}: not as it was written; remove it, and name the hosts") from None
    return state


def write_state(root: Path, state: State) -> None:
    """Whole or not at all."""
    write_whole(root / FILE, json.dumps(asdict(state), indent=1) + "\n")
