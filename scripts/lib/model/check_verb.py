#!/usr/bin/env python3
"""The command line of check_model.sh, whose header is the help: what a model would do, before it is
downloaded or started. Goes on with the ranks' interpreter where this one has no mlx-lm.
"""

import argparse
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from scripts.lib.hosts.find_hostfile import NoHostfile, find_hostfile
from scripts.lib.hosts.hostfile import HostfileError, read_hostfile, ssh_name_problem
from scripts.lib.hosts.on_hosts import LOCAL_HOST
from scripts.lib.hosts.reach import MOST_RANKS
from scripts.lib.model.hub_repo import REPO
from scripts.lib.settings.interpreter import NoInterpreter, problem, rank_python, succeeds
from scripts.lib.settings.kept_settings import Found
from scripts.lib.verbs import shared
from scripts.lib.verbs.exit_codes import DONE, FAILED, MISSING, USAGE
from scripts.lib.verbs.header import help_of
from scripts.lib.verbs.parser import Parser
from scripts.lib.verbs.verb_settings import ROOT, read_settings, stop, texts

PROGRAM = "check_model.sh"
NEEDED = "mlx_lm"
MOST_GB = 100_000
MODELS_MOST = 8  # of which every set is looked at


def make_parser() -> Parser:
    made = Parser(PROGRAM, help_of(PROGRAM))
    shared.add(made, "--hostfile", "--json")
    who = made.add_mutually_exclusive_group()
    who.add_argument("--hosts", type=hosts)
    who.add_argument("--memory", type=gigabytes)
    made.add_argument("--ranks", type=shared.local)
    made.add_argument("--revision", type=shared.some)
    made.add_argument("models", nargs="*", metavar="MODEL")
    return made


def hosts(text: str) -> list[str]:
    """ssh names, commas between."""
    names = text.split(",")
    for name in names:
        if problem := ssh_name_problem(name):
            raise shared.wrong(name, f"a name that ssh takes: {problem}")
    if len(names) > MOST_RANKS:
        raise shared.wrong(text, f"{MOST_RANKS} hosts at most")
    return names


def gigabytes(text: str) -> list[float]:
    """Sizes, commas between."""
    sizes = [shared.decimal(1, MOST_GB, "gigabytes")(word) for word in text.split(",")]
    if len(sizes) > MOST_RANKS:
        raise shared.wrong(text, f"{MOST_RANKS} numbers at most")
    return sizes


class Stopped(Exception):
    """There is no report: why, and the exit code."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(arguments)
    try:
        return tell(options)
    except Stopped as error:
        if options.json:
            ok = False if error.code == FAILED else None  # else nobody knows
            model = options.models[0] if len(options.models) == 1 else options.models or None
            print(json.dumps({"model": model, "ok": ok, "error": str(error)}), flush=True)
        if error.code == USAGE:
            parser.error(str(error))
        stop(PROGRAM, str(error), error.code)


def tell(options: argparse.Namespace) -> int:
    """Prints the report; the exit code. Raises Stopped."""
    check_models(options)
    settings = read_settings(PROGRAM, options)
    python = go_on_where_mlx_lm_is(texts(settings))
    for name in ("HF_TOKEN", "HF_ENDPOINT"):  # which the hub's own package reads as it is imported
        if settings[name].text:
            os.environ[name] = settings[name].text
    # What it stands on needs the environment.
    from scripts.lib.model.check_report import as_text
    from scripts.lib.model.hub_errors import NotGiven
    from scripts.lib.model.hub_files import NoWeights
    from scripts.lib.model.model_report import examine, judged
    from scripts.lib.model.together import as_text as together_as_text
    from scripts.lib.model.together import judge_together

    machines = choose_machines(options, settings, python)
    ranks = options.ranks or (len(machines.names) if len(machines.names) > 1 else None)
    reports, against = [], []
    for model in options.models:
        with tempfile.TemporaryDirectory(prefix="check-model-") as scratch:
            try:
                report = examine(
                    model,
                    options.revision,
                    Path(scratch),
                    machines,
                    settings,
                    (ranks,) if options.ranks else (),
                )
            except NotGiven as error:
                code = FAILED if isinstance(error, NoWeights) else MISSING
                raise Stopped(str(error), code) from error
        reasons = judged(report, ranks)
        reports.append(report | {"ok": not reasons, "reasons": reasons})
        several = f"{model}: " if len(options.models) > 1 else ""
        against += [f"{several}{reason}" for reason in reasons]
        if not options.json:
            print("\n" * (len(reports) > 1) + as_text(report), end="", flush=True)
    if len(reports) == 1:
        told = reports[0]
    else:
        budget = settings["KV_BUDGET_GB"].value
        beside = judge_together(reports, ranks or 1, int(budget * 1e9) if budget else None)
        told = {"models": reports, "together": beside, "ok": not against, "reasons": against}
        if not options.json:
            print(together_as_text(beside), end="")
    if options.json:
        print(json.dumps(told))
    for reason in against:
        print(f"{PROGRAM}: {reason}", file=sys.stderr)
    return FAILED if against else DONE


def check_models(options: argparse.Namespace) -> None:
    """Raises Stopped."""
    if not options.models:
        raise Stopped(
            "MODEL is missing: must be the folder of a model, or a Hugging Face repo", USAGE
        )
    if len(options.models) > MODELS_MOST:
        raise Stopped(f"{len(options.models)} models: must be {MODELS_MOST} at most", USAGE)
    for model in options.models:
        folder = Path(model)
        if not folder.is_dir() and not REPO.fullmatch(model):
            raise Stopped(
                f"MODEL is {model!r}: neither a folder that is there nor a Hugging Face repo "
                "(ORG/NAME)",
                USAGE,
            )
        if folder.is_dir() and options.revision:
            raise Stopped(f"{model} is a folder: --revision is for repos", USAGE)


def go_on_where_mlx_lm_is(environment: Mapping[str, str]) -> str:
    """The ranks' interpreter; in its place, where this one lacks what is needed. Raises Stopped."""
    try:
        python = rank_python(os.environ | environment)
    except NoInterpreter as error:
        raise Stopped(str(error), MISSING) from error
    if not importlib.util.find_spec(NEEDED):
        if why := problem(python):
            raise Stopped(why, MISSING)
        if not succeeds(python, f"import {NEEDED}"):
            raise Stopped(f"mlx-lm is not installed for {python}: see README.md", MISSING)
        module = [str(ROOT / "scripts/lib/module.py"), "lib.model.check_verb"]
        os.execv(python, [python, *module, *sys.argv[1:]])
    return python


def choose_machines(options: argparse.Namespace, settings: Mapping[str, Found], python: str):
    """Those whose memory counts. Raises Stopped."""
    from scripts.lib.model import hosts_memory

    if options.memory:
        return hosts_memory.said(options.memory)
    if options.hosts:
        return hosts_memory.asked(list(dict.fromkeys(options.hosts)), python)
    try:
        path = find_hostfile(settings["HOSTFILE"].text, ROOT)
        names = [host.ssh for host in read_hostfile(path).hosts]
    except NoHostfile as error:
        if settings["HOSTFILE"].text:
            raise Stopped(str(error), error.code) from error
        names = [LOCAL_HOST]
    except (OSError, HostfileError) as error:
        raise Stopped(f"{path}: {error}", MISSING) from error
    for name in names:
        if problem := ssh_name_problem(name):
            raise Stopped(f"{path}: '{name}': {problem}", MISSING)
    return hosts_memory.asked(list(dict.fromkeys(names)), python)


if __name__ == "__main__":
    sys.exit(main())
