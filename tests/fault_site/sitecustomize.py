"""Faults put into a rank from outside: Python imports this at start-up where PYTHONPATH says so.

The server has no switch for faults, so the tests bring them along: the run script hands
`--env PYTHONPATH=<this folder>` and `--env FAULT_DIR=...` to every rank. A rank looks there for
a file that is named for a fault and for it:

  hang-N    rank N hangs before it joins the others, as long as the file is there
  raise-N   rank N raises in its next step, and takes the file away: once
  env-N     lines NAME=VALUE that rank N finds in its environment

Processes that are not ranks see no MLX_RANK and are left alone.
"""

import importlib.abc
import importlib.util
import os
import sys
import time
from pathlib import Path

# What a rank does again and again: a step while it has work, a meeting while it has none.
STEPS = {"server.engine": ("Engine", "step"), "server.mailbox": ("Mailbox", "meet")}


class RaisesOnDemand(importlib.abc.MetaPathFinder):
    """Puts a look at the file before each step, once the module that has it is imported."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def find_spec(self, name, path, target=None):
        if name not in STEPS:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        execute = spec.loader.exec_module

        def execute_and_change(module) -> None:
            execute(module)
            kind, method = STEPS[name]
            self._change(getattr(module, kind), method)

        spec.loader.exec_module = execute_and_change
        return spec

    def _change(self, kind: type, method: str) -> None:
        right = getattr(kind, method)

        def step(*arguments):
            if self._file.exists():
                self._file.unlink()
                raise ArithmeticError("a fault put in by the test")
            return right(*arguments)

        setattr(kind, method, step)


def put_in_faults(folder: Path, rank: str) -> None:
    """What this rank is to suffer."""
    environment = folder / f"env-{rank}"
    if environment.exists():
        os.environ.update(line.split("=", 1) for line in environment.read_text().splitlines())
    while (folder / f"hang-{rank}").exists():
        time.sleep(0.1)
    sys.meta_path.insert(0, RaisesOnDemand(folder / f"raise-{rank}"))


if "FAULT_DIR" in os.environ and "MLX_RANK" in os.environ:
    put_in_faults(Path(os.environ["FAULT_DIR"]), os.environ["MLX_RANK"])
