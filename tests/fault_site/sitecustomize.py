"""Faults put into a rank from outside: Python imports this at start-up where PYTHONPATH says so.

The server has no switch for faults, so the tests bring them along: the run script hands
`--env PYTHONPATH=<this folder>` and `--env FAULT_DIR=...` to every rank. A rank looks there for
a file that is named for a fault and for it:

  hang-N    rank N hangs before it joins the others, as long as the file is there
  raise-N   rank N raises in its next step, and takes the file away: once
  load-N    rank N stays at the beginning of loading, as long as the file is there
  coin-N    rank N tosses a coin, each step, for whether MLX is slow to take one
  env-N     lines NAME=VALUE that rank N finds in its environment

Processes that are not ranks see no MLX_RANK and are left alone.
"""

import importlib.abc
import importlib.util
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType


class Changes(importlib.abc.MetaPathFinder):
    """Changes modules, by their names, once they have been imported."""

    def __init__(self, changes: dict[str, Callable[[ModuleType], None]]) -> None:
        self._changes = changes

    def find_spec(self, name, path, target=None):
        if name not in self._changes:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        execute = spec.loader.exec_module

        def execute_and_change(module) -> None:
            execute(module)
            self._changes[name](module)

        spec.loader.exec_module = execute_and_change
        return spec


def before(owner: object, name: str, action: Callable[[], None]) -> None:
    """Has the function do something else first."""
    right = getattr(owner, name)

    def changed(*arguments, **named):
        action()
        return right(*arguments, **named)

    setattr(owner, name, changed)


def stay(file: Path) -> None:
    """As long as the file is there."""
    while file.exists():
        time.sleep(0.1)


def raise_once(file: Path) -> None:
    if file.exists():
        file.unlink()
        raise ArithmeticError("a fault put in by the test")


class Coin:
    """A limit that any number is over half of the time."""

    def __lt__(self, other: float) -> bool:
        return random.random() < 0.5


def put_in_faults(folder: Path, rank: str) -> None:
    """What this rank is to suffer."""
    environment = folder / f"env-{rank}"
    if environment.exists():
        os.environ.update(line.split("=", 1) for line in environment.read_text().splitlines())
    stay(folder / f"hang-{rank}")

    def step() -> None:
        raise_once(folder / f"raise-{rank}")

    changes = {
        # What a rank does again and again: a step while it has work, a meeting while it has none.
        "server.engine": lambda module: before(module.Engine, "step", step),
        "server.mailbox": lambda module: before(module.Mailbox, "meet", step),
        "server.loading": lambda module: before(
            module, "load_shard", lambda: stay(folder / f"load-{rank}")
        ),
    }
    if (folder / f"coin-{rank}").exists():
        changes["server.director"] = lambda module: setattr(module, "SLOW_S", Coin())
    sys.meta_path.insert(0, Changes(changes))


if "FAULT_DIR" in os.environ and "MLX_RANK" in os.environ:
    put_in_faults(Path(os.environ["FAULT_DIR"]), os.environ["MLX_RANK"])
