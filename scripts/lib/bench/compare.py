#!/usr/bin/env python3
"""Play every scene to our server and to mlx_lm.server in turn, and judge what came of it.

Run by scripts/dev/bench_compare.sh, whose --help says what it does. Needs the standard library
alone: the contenders are processes of the interpreter given with --python.
"""

import argparse
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scripts.lib.bench import page
from scripts.lib.bench.contenders import (
    Bare,
    Before,
    Broken,
    Contender,
    Ours,
    Place,
    Theirs,
    Undrafted,
    environment,
    module,
)
from scripts.lib.bench.rows import (
    BARE,
    BEFORE,
    OFF,
    OURS,
    THEIRS,
    Check,
    Samples,
    make_checks,
    render,
)
from scripts.lib.bench.scenes import throughput

KINDS = {OURS: Ours, OFF: Undrafted, THEIRS: Theirs, BARE: Bare, BEFORE: Before}
FAILED, USAGE = 1, 2


def main() -> int:
    """Measures, prints the table; returns the exit code."""
    arguments = parse_arguments()
    checks = make_checks(arguments.quick)
    chosen = choose(checks, arguments.only, arguments.before)
    if arguments.list:
        for check in checks:
            ranks = "1 rank" if check.ranks == 1 else f"{check.ranks} ranks"
            also = "" if check.default else " (only when named)"
            print(f"{check.id:<14} {check.model}, {ranks}: {check.what}{also}")
        return 0
    if arguments.check:
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    work = Path(tempfile.mkdtemp(prefix="bench-"))
    run = Run(arguments, work)
    code = 0
    try:
        make_models(arguments, work, chosen)
        for (model, ranks, settings, draft_model), group in grouped(chosen):
            run.play_group(model, ranks, dict(settings), group, draft_model)
    except KeyboardInterrupt:
        say("stopped early; this is what was measured")
        code = 128 + signal.SIGINT
    except (Broken, subprocess.CalledProcessError) as error:
        say(f"given up: {error}")
        code = FAILED
    finally:
        shutil.rmtree(work, ignore_errors=True)
    missed = report(arguments, checks, run)
    return code or missed


class Run:
    """What has been measured so far, and those that are measured."""

    def __init__(self, arguments: argparse.Namespace, work: Path) -> None:
        self.arguments, self.work = arguments, work
        self.results: dict[str, Samples] = {}
        self.notes: list[str] = []
        self._began = time.monotonic()
        # A seed of its own for each run, as a prefix cache could outlive one.
        self._tag = f"{os.getpid()} {time.time_ns()}"

    def play_group(
        self, model: str, ranks: int, settings: dict, checks: list[Check], draft_model: str = ""
    ) -> None:
        """All checks that share a model and a number of ranks, round after round."""
        self.tell(f"{model} on {ranks} rank(s): starting")
        place = Place(self.arguments.python, self.work / model, ranks, self.work,
                      environment(self.arguments.env),
                      self.work / draft_model if draft_model else None)  # fmt: skip
        sides = list(dict.fromkeys(side for check in checks for side in check.sides))
        contenders: dict[str, Contender | None] = {}
        try:
            for side in sides:
                contenders[side] = self.start(side, place, settings)
            if not any(contenders.values()):
                return
            most = max(check.rounds or self.arguments.rounds for check in checks)
            for number in range(1, min(most, self.arguments.rounds) + 1):
                for check in checks:
                    if check.rounds is None or number <= check.rounds:
                        self.play(check, number, contenders, place, settings)
        finally:
            for contender in filter(None, contenders.values()):
                contender.end()

    def start(self, side: str, place: Place, settings: dict) -> Contender | None:
        """Started, warm, and stopped as it stands; None, and a note, if that fails."""
        kind = KINDS[side]
        if side in (OURS, OFF):
            contender = kind(place, settings)
        elif side == BEFORE:
            contender = kind(place, settings, self.arguments.before)
        elif side == THEIRS:
            contender = kind(place, self.arguments.peer_flag)
        else:
            contender = kind(place)
        try:
            contender.wait_ready()
            for clients in (8, 32):
                throughput(clients, 1, 32, 4, "greedy")(contender, f"{self._tag} warm {clients}")
            contender.pause()
        except (Broken, OSError) as error:
            self.note(f"{place.model.name}, {place.ranks} rank(s): {error}")
            contender.end()
            return None
        except BaseException:
            contender.end()
            raise
        return contender

    def play(
        self, check: Check, number: int, contenders: dict, place: Place, settings: dict
    ) -> None:
        """One round of one check, the sides in turn. What breaks is started again."""
        samples = self.results.setdefault(check.id, {side: [] for side in check.sides})
        # Who goes first changes from round to round.
        sides = check.sides if number % 2 else check.sides[::-1]
        for side in sides:
            contender = contenders[side]
            if contender is None:
                samples[side].append(None)
                continue
            try:
                contender.resume()
                sample = check.scene(contender, f"{self._tag} {check.id} {number}")
                contender.pause()
            except (Broken, OSError) as error:
                sample = None
                self.note(f"{check.id}, round {number}: {error}")
                contender.end()
                contenders[side] = self.start(side, place, settings)
            samples[side].append(sample)
            shown = ["broken"]
            if sample is not None:
                shown = [f"{one.key} {one.show(sample.get(one.key))}" for one in check.measures]
            self.tell(f"round {number}, {check.id}, {contender.name}: {', '.join(shown)}")

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.tell(text)

    def tell(self, text: str) -> None:
        seconds = int(time.monotonic() - self._began)
        say(f"{seconds // 60:2}:{seconds % 60:02} {text}")


def grouped(checks: list[Check]):
    """By what their servers have in common, in the order of the table."""

    def place(check: Check):
        return check.model, check.ranks, check.settings, check.draft_model

    order = list(dict.fromkeys(map(place, checks)))
    ordered = sorted(checks, key=lambda check: order.index(place(check)))
    return [(key, list(group)) for key, group in itertools.groupby(ordered, place)]


def make_models(arguments: argparse.Namespace, work: Path, checks: list[Check]) -> None:
    """demo and tiny, and those that copy where a check wants them, into work."""
    command = [arguments.python, *module("lib.bench.models"), arguments.demo, work]
    command += ["copier"] if any(check.model == "copier" for check in checks) else []
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)


def report(arguments: argparse.Namespace, checks: list[Check], run: Run) -> int:
    """Prints, keeps and writes what was measured; returns the exit code."""
    facts = describe(arguments)
    kept = {name: {"samples": samples} | facts for name, samples in run.results.items()}
    if arguments.results:
        old = {}
        with contextlib.suppress(FileNotFoundError):
            old = json.loads(arguments.results.read_text("utf-8"))
        kept = old | kept
        arguments.results.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    samples = {name: one["samples"] for name, one in kept.items()}
    table = render(checks, samples)
    print(table)
    for note in run.notes:
        print(f"note: {note}")
    if arguments.write:
        page.write_table(arguments.write, table, list(kept.values()), run.notes)
    summary, missed = {}, 0
    for check in checks:
        if check.id not in samples:
            continue
        for measure in check.measures:
            figure = measure.goal.figure(measure.key, samples[check.id])
            met = measure.goal.met(figure)
            missed += met is False or figure is None
            summary.setdefault(check.id, []).append(
                {"key": measure.key, "figure": figure, "limit": measure.goal.limit, "met": met}
            )
    print(json.dumps(facts | {"checks": summary, "samples": samples, "notes": run.notes}))
    return FAILED if missed or not samples else 0


def describe(arguments: argparse.Namespace) -> dict:
    """When and where, to stand beside the numbers."""
    code = "import importlib.metadata as m; print(m.version('mlx'), m.version('mlx-lm'))"
    done = subprocess.run([arguments.python, "-c", code], capture_output=True, text=True,
                          check=False)  # fmt: skip
    mlx, mlx_lm = (done.stdout.split() + ["?", "?"])[:2]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": page.describe_machine(),
        "mlx": mlx,
        "mlx_lm": mlx_lm,
        "demo": Path(arguments.demo).name,
        "rounds": arguments.rounds,
        "quick": arguments.quick,
        "peer_flags": arguments.peer_flag,
    }


def choose(checks: list[Check], names: list[str], before: Path | None = None) -> list[Check]:
    """Those named, or all that need no name. before: the checkout that some are held to. Ends the
    program with a usage error."""
    known = {check.id for check in checks}
    for name in names:
        if name not in known:
            say(f"--only {name}: must be one of {', '.join(sorted(known))}")
            sys.exit(USAGE)
    chosen = [check for check in checks if (check.id in names if names else check.default)]
    needing = next((check.id for check in chosen if BEFORE in check.sides), None)
    if needing is not None and before is None:
        say(f"--only {needing}: needs --before, the folder of another checkout")
        sys.exit(USAGE)
    return chosen


def say(text: str) -> None:
    print(f"bench_compare.sh: {text}", file=sys.stderr, flush=True)


def parse_arguments() -> argparse.Namespace:
    """The command line, of which scripts/dev/bench_compare.sh has checked most."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--demo", default="")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--peer-flag", action="append", default=[])
    parser.add_argument("--before", type=Path)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--check", action="store_true", help="check the arguments alone")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
