"""Faults put into a rank from outside: Python imports this at start-up where PYTHONPATH says so.

The server has no switch for faults, so the tests bring them along: the run script hands
`--env PYTHONPATH=<this folder>` and `--env FAULT_DIR=...` to every rank. A rank looks there for
a file that is named for a fault and for it:

  hang-N    rank N hangs before it joins the others, as long as the file is there
  mute-N    rank N joins, and falls silent with all its threads, where the file is there
  raise-N   rank N raises in its next step, and takes the file away: once
  load-N    rank N stays at the beginning of loading, as long as the file is there
  piece-N   rank N stays before each piece of another model's weights, as long as the file is there
  memory-N  rank N has no memory for its next piece of them, and the file is taken away: once
  elsewhere-N  "FOLDER=OTHER": rank N has the files of the other folder where a model should be
  coin-N    rank N tosses a coin, each step, for whether MLX is slow to take one
  eager-N   rank N drafts whatever a step costs
  garble-N  "KIND: HOW", a kind of sealed message (wire/link.py) or any, and one of SPOILT below:
            rank N gets its next message of that kind so, and the file is taken away: once
  env-N     lines NAME=VALUE that rank N finds in its environment

Other processes see no MLX_RANK and are left alone, but for the supervisor, which is told by
RESTART_PAUSE_S how long it may wait at most before it starts the ranks again: after each failure of
a row it waits for twice as long. And transformers is imported in half the time: kept_names.py.
"""

import importlib.abc
import importlib.util
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import kept_names


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


def stop(file: Path) -> None:
    """Until somebody continues this process."""
    if file.exists():
        os.kill(os.getpid(), signal.SIGSTOP)


def raise_once(file: Path) -> None:
    if file.exists():
        file.unlink()
        raise ArithmeticError("a fault put in by the test")


# What becomes of a sum; lazy, as it is itself. before: the last of that kind and size; again: sums
# the same values once more.
SPOILT = {
    "flipped": lambda mx, total, before, again: mx.bitwise_xor(total, _first(mx, total, 1 << 3)),
    "wild": lambda mx, total, before, again: mx.add(total, _first(mx, total, 10**9)),
    "emptied": lambda mx, total, before, again: mx.depends([mx.zeros_like(total)], [total])[0],
    "repeated": lambda mx, total, before, again: mx.depends([before], [total])[0],
    # One message of the others' is lost to this rank: from now on it hears their next ones.
    "shifted": lambda mx, total, before, again: mx.depends([again()], [total])[0],
}


def _first(mx, total, value: int):
    """Zeros but for a first value."""
    return mx.concatenate([mx.array([value], mx.int32), mx.zeros(len(total) - 1, mx.int32)])


def garble(file: Path, module: ModuleType) -> None:
    """Spoils what the file says, when it is there."""
    link, kind, before = module.Link, None, {}
    bare = link.sum

    def told_kind(name: str) -> None:
        right = getattr(link, name)

        def told(self, what, *arguments, **named):
            nonlocal kind
            kind = what
            try:
                return right(self, what, *arguments, **named)
            finally:
                kind = None

        setattr(link, name, told)

    def spoilt_sum(self, values):
        total = bare(self, values)
        if kind is None:
            return total
        key = kind, len(total)
        order = file.read_text().split(": ") if file.exists() else []
        if order and order[0] in (kind, "any") and (order[1] != "repeated" or key in before):
            file.unlink()
            again = lambda: bare(self, values)  # noqa: E731
            total = SPOILT[order[1]](module.mx, total, before.get(key), again)
        before[key] = total
        return total

    told_kind("seal")
    told_kind("bring")
    link.sum = spoilt_sum


def starve(stays: Path, fails: Path, module: ModuleType) -> None:
    """Of pieces of weights."""
    pace = module.Considerate
    evaluate, attempt = pace.evaluate, pace.attempt

    def fail() -> None:
        raise RuntimeError("[malloc] Unable to allocate 123 bytes, says the test")

    def starved(self, link, piece):
        stay(stays)
        lacks = fails.exists()
        if lacks:
            fails.unlink()
            self.attempt = lambda link, act: attempt(self, link, fail)
        return evaluate(self, link, piece)

    pace.evaluate = starved


def lead_elsewhere(file: Path, module: ModuleType) -> None:
    right = module.Maker.another

    def another(self, number, *arguments):
        if file.exists():
            place, other = map(Path, file.read_text().split("="))
            models = [
                replace(one, folder=other) if one.folder == place else one
                for one in self.settings.models
            ]
            before, self.settings = self.settings, replace(self.settings, models=tuple(models))
            try:
                return (yield from right(self, number, *arguments))
            finally:
                self.settings = before
        return (yield from right(self, number, *arguments))

    module.Maker.another = another


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
        "server.engine.engine": lambda module: before(module.Engine, "step", step),
        "server.wire.mailbox": lambda module: before(module.Mailbox, "meet", step),
        "server.wire.link": lambda module: garble(folder / f"garble-{rank}", module),
        "server.startup.joining": lambda module: before(
            module, "meet", lambda: stop(folder / f"mute-{rank}")
        ),
        "server.startup.loading": lambda module: before(
            module, "load_shard", lambda: stay(folder / f"load-{rank}")
        ),
    }
    changes["server.startup.piece_pace"] = lambda module: starve(
        folder / f"piece-{rank}", folder / f"memory-{rank}", module
    )
    changes["server.ready"] = lambda module: lead_elsewhere(folder / f"elsewhere-{rank}", module)
    if (folder / f"coin-{rank}").exists():
        changes["server.scheduler.scheduler"] = lambda module: setattr(module, "SLOW_S", Coin())
    if (folder / f"eager-{rank}").exists():
        changes["server.scheduler.speculation"] = lambda module: vars(module).update(
            WORTH=0.0, FIRST=1e9, WON_MOST=1e9
        )
        # Nor what a draft model does, which is taken for nothing.
        changes["server.startup.draft_model"] = lambda module: setattr(
            module, "measure_draft", lambda model: None
        )
        changes["server.scheduler.model_drafts"] = lambda module: setattr(module, "WEIGHT", 0.0)
    sys.meta_path.insert(0, Changes(changes))


if kept := os.environ.get("NAMES_KEPT"):
    keep = {kept_names.CHANGED: lambda module: kept_names.keep_names(Path(kept), module)}
    sys.meta_path.insert(0, Changes(keep))
if "RESTART_PAUSE_S" in os.environ:
    pause_s = float(os.environ["RESTART_PAUSE_S"])
    shorten = {
        "scripts.lib.supervise.restart_policy": lambda module: setattr(
            module, "LONGEST_PAUSE_S", pause_s
        )
    }
    sys.meta_path.insert(0, Changes(shorten))
if "FAULT_DIR" in os.environ and "MLX_RANK" in os.environ:
    put_in_faults(Path(os.environ["FAULT_DIR"]), os.environ["MLX_RANK"])
