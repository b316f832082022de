#!/usr/bin/env python3
"""Walk the steps of the set-up: look, show, ask, run, look again.

It is setup_cluster.sh, whose header is the help; on rank 0, with the standard library alone. All
that it says goes to stderr, what the commands print where they print it; with --dry-run the
commands go to stdout.
"""

import os
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from scripts.lib.hosts.hostfile import host_name, ssh_name_problem
from scripts.lib.hosts.our_process import read_lines
from scripts.lib.hosts.reach import MOST_RANKS
from scripts.lib.model.list_models import read_list
from scripts.lib.settings.kept_settings import Found, SettingError, first_key
from scripts.lib.setup import look_hosts, steps
from scripts.lib.setup.command import Command, run
from scripts.lib.setup.look import HOLDS, NEEDED, NOT_HERE, STUCK, Look
from scripts.lib.setup.site import Site, model_problem
from scripts.lib.setup.state import FILE, State, StateError, read_state, write_state
from scripts.lib.setup.steps import STEPS, Step
from scripts.lib.sync import checkout
from scripts.lib.sync.parallel import Failure, alone
from scripts.lib.sync.targets import need_python, need_tools
from scripts.lib.verbs import shared
from scripts.lib.verbs.exit_codes import FAILED, MISSING
from scripts.lib.verbs.file_kind import no_file
from scripts.lib.verbs.header import help_of
from scripts.lib.verbs.parser import Parser
from scripts.lib.verbs.verb_settings import ROOT, read_settings, stop, texts
from server.protocol.model_list import ServedModel
from server.protocol.settings_table import OF_USERS

PROGRAM = "setup_cluster.sh"
INTERRUPTED = 130
MOST_ROUNDS = 4  # of a step whose commands show what is to be done next
OTHER_HOSTS = (
    "name the hosts that it is for, or set HOSTFILE to that of these, or write it anew with "
    "--from hostfile"
)


class StepFailed(Exception):
    """A step did not come to hold; the message says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's docstring."""
    for number in (signal.SIGTERM, signal.SIGHUP):  # what it runs has no terminal to hear it from
        signal.signal(number, signal.default_int_handler)
    options, state = parse(arguments)
    if options.list:
        for step in STEPS:
            print(f"{step.name:12} {step.does}")
        return 0
    settings = read_settings(PROGRAM, options)
    given = given_settings()
    site = make_site(options, state, settings)
    walked = [
        step for step in STEPS[steps.NAMES.index(options.first) :] if step.name not in options.skip
    ]
    if problem := no_file(site.hostfile):
        stop(PROGRAM, f"hostfile {site.hostfile} {problem}; set HOSTFILE to another", MISSING)
    if "hostfile" not in [step.name for step in walked] and (other := look_hosts.other_hosts(site)):
        words = f"{other}, not for {', '.join(site.hosts)}: {OTHER_HOSTS}"
        say(words) if options.dry_run else stop(PROGRAM, words)
    if options.dry_run:
        return show_all(site, walked)
    current = options.first

    def go_on(*more: str) -> str:
        kept = settings["MODEL_DIR"].text or state.model
        known = site.listed or site.model == kept
        return str(taking_up(options, given, "" if known else site.model, *more))

    try:
        with alone(ROOT / checkout.STATE, PROGRAM):
            write_state(ROOT, state)
            for step in walked:
                current = step.name
                walk(site, step, options)
                model = state.model if site.listed else site.model
                write_state(ROOT, replace(state, model=model, measured=site.measured))
        command = steps.serve(site, None)[0]
        say(f"done; to serve this model later: {replace(command, env=given | command.env)}")
        return 0
    except Failure as failure:
        say(str(failure))
        return FAILED
    except KeyboardInterrupt:
        say(f"interrupted at {current}; to go on: {go_on()}")
        return INTERRUPTED
    except StepFailed as error:
        say(f"step {current}: {error}")
        say(f"to go on: {go_on('--from', current)}")
        return FAILED
    except OSError as error:
        say(f"step {current}: {error}")
        return MISSING


def parser() -> Parser:
    made = Parser(PROGRAM, help_of(PROGRAM))
    shared.add(made, "--dry-run")
    made.add_argument("--model", type=shared.some)
    made.add_argument("--ring-tcp", action="store_true")
    made.add_argument("--yes", action="store_true")
    made.add_argument("--from", dest="first", type=shared.one_of(*steps.NAMES), default="ssh")
    made.add_argument("--skip", action="append", type=shared.one_of(*steps.NAMES), default=[])
    made.add_argument("--list", action="store_true")
    made.add_argument("hosts", nargs="*", metavar="HOST")
    return made


def parse(arguments: Sequence[str] | None) -> tuple[Namespace, State]:
    """The command line, and with it what is to be remembered; or the end of the program."""
    reader = parser()
    options = reader.parse_args(arguments)
    options.terminal = sys.stdin.isatty() and sys.stderr.isatty()
    if options.list:
        return options, State()
    try:
        old = read_state(ROOT)
    except StateError as error:
        if not options.hosts or no_file(ROOT / FILE):  # which cannot be written over
            stop(PROGRAM, str(error))
        old = State()
    check_hosts(reader, options.hosts or old.hosts)
    if options.model:
        if problem := model_problem(options.model):
            reader.error(f"--model {problem}")
        if os.path.isdir(options.model):
            options.model = os.path.abspath(options.model)
    if not options.yes and not options.dry_run and not options.terminal:
        reader.error("there is no terminal to ask at: --yes, or --dry-run to see what it would do")
    return options, State(
        hosts=tuple(options.hosts) or old.hosts,
        model=options.model or old.model,
        ring_tcp=options.ring_tcp or (old.ring_tcp and not options.hosts),
        measured=old.measured,
    )


def check_hosts(reader: Parser, hosts: Sequence[str]) -> None:
    """As every script would refuse them, but before the first step."""
    if not hosts:
        reader.error("HOST is missing: ssh names of all Macs, rank 0 first")
    for host in hosts:
        if problem := ssh_name_problem(host):
            reader.error(f"HOST '{host}': {problem}")
    names = list(map(host_name, hosts))
    if twice := [host for host in hosts if names.count(host_name(host)) > 1]:
        reader.error(f"HOST {' and '.join(twice)}: name each host once")
    if not 2 <= len(hosts) <= MOST_RANKS:
        reader.error(f"HOST: must be 2 to {MOST_RANKS} of them, not {len(hosts)}")


def given_settings() -> dict[str, str]:
    """What the environment sets, for all that we start; but no secrets, as it is shown."""
    given = {}
    for setting in OF_USERS:
        text = os.environ.get(setting.name, "")
        if text.strip() and setting.kind == "path":  # what we start runs in the checkout
            text = os.environ[setting.name] = os.path.abspath(os.path.expanduser(text.strip()))
        if text.strip() and not setting.secret:
            given[setting.name] = text
    return given


def make_site(options: Namespace, state: State, settings: Mapping[str, Found]) -> Site:
    """With the settings, which children read for themselves, too."""
    need_tools(PROGRAM)
    named = settings["MODEL_DIR"].text
    model, model_id = options.model or named or state.model, settings["MODEL_ID"].text
    several = bool(settings["MODELS"].text or settings["MODELS_DIR"].text)
    listed = several and not model
    if listed:
        first = first_listed(settings)
        model, model_id = str(first.folder), first.name
    elif model and (problem := model_problem(model)):
        whose = "MODEL_DIR" if named else "the model of the last time,"
        stop(PROGRAM, f"{whose} {problem}; name one with --model")
    if not model and not options.terminal and not options.dry_run:
        stop(PROGRAM, "--model is missing: --yes does not answer which model is to be served")
    try:
        key = first_key(os.environ) or key_in(settings["API_KEY_FILE"].text)
    except SettingError as error:
        stop(PROGRAM, str(error))
    system = os.uname().sysname
    return Site(
        root=ROOT,
        hosts=state.hosts,
        model=model,
        model_id=model_id,
        ring_wanted=state.ring_tcp,
        python=need_python(PROGRAM, os.environ | texts(settings)),
        named_hostfile=settings["HOSTFILE"].text,
        port=settings["HTTP_PORT"].value,
        key=key,
        measured=state.measured,
        at_terminal=options.terminal or (options.dry_run and not options.yes),
        systems={state.hosts[0]: system},
        several=several,
        listed=listed,
    )


def first_listed(settings: Mapping[str, Found]) -> ServedModel:
    """Of MODELS and MODELS_DIR; or the end of the program."""
    try:
        return read_list(["", "", settings["MODELS"].text, settings["MODELS_DIR"].text, ""])[0]
    except SettingError as error:
        stop(PROGRAM, str(error))


def key_in(file: str) -> str:
    """The first key of a file, which is here, as rank 0 is; it may have a name behind it."""
    return next((line.split()[0] for line in read_lines(Path(file)) if line), "") if file else ""


def show_all(site: Site, walked: Sequence[Step]) -> int:
    """--dry-run: every command that a step may need, on stdout."""
    lines = []
    for step in walked:
        lines.append(f"# {step.name}: {step.does}")
        lines += [f"+ {command}" for command in step.commands(site, None)]
    print("\n".join(lines))
    return 0


def walk(site: Site, step: Step, options: Namespace) -> None:
    """One step. Raises StepFailed."""
    if step.needs_model and not site.model:
        site.model = ask_model()
    where = f"[{steps.NAMES.index(step.name) + 1}/{len(STEPS)}] {step.name}"
    if step.name != "ssh" and len(site.systems) < len(site.hosts):
        found = look_at(site, look_hosts.ssh)  # what the hosts are, where that step was left out
        if found.verdict != HOLDS:
            raise StepFailed(found.words)
    done: list[Command] = []
    for _ in range(MOST_ROUNDS):
        found = look_at(site, step.look)
        if found.verdict in (HOLDS, NOT_HERE):
            say(f"{where}: {found.verdict}{': ' * bool(found.words)}{found.words}")
            return
        try:
            commands = step.commands(site, found) if found.verdict == NEEDED else []
        except Failure as failure:
            raise StepFailed(str(failure)) from None
        if done and commands == done:
            break
        say(f"{where}: {step.does}")
        lines = found.words.splitlines()
        for line in lines if found.verdict == NEEDED or len(lines) > 1 else ():
            say(f"    {line}")
        if found.verdict == STUCK:
            raise StepFailed(one_line(found.words))
        if not do(step, commands, options):
            return
        if step.name == "benchmark":
            site.measured = site.what_is_measured
        if not step.again:
            return
        done = commands
    raise StepFailed(f"it was done, and is still not so: {one_line(found.words)}")


def do(step: Step, commands: list[Command], options: Namespace) -> bool:
    """Shows and runs them, after a yes where they change something; False: skip it. Raises
    StepFailed."""
    for command in commands:
        say(f"  + {command}")
    if step.changes and not options.yes:
        answer = ask("  do it? [y]es, [n]o, [s]kip: ", ("y", "yes", "n", "no", "s", "skip"))
        if answer.startswith("s"):
            return False
        if answer.startswith("n"):
            raise StepFailed("not done, as you said")
    for command in commands:
        ended = run(command, ROOT)
        if ended.code != 0:
            said = f"exit code {ended.code} of {command.words[0]}: {one_line(ended.said)}"
            raise StepFailed(said.rstrip(": "))
    return True


def one_line(words: str) -> str:
    return "; ".join(words.splitlines())


def look_at(site: Site, look) -> Look:
    """A look that cannot be had is a step that cannot go on."""
    try:
        return look(site)
    except (Failure, OSError, subprocess.SubprocessError) as error:
        return Look(STUCK, str(error))


def ask(question: str, allowed: Sequence[str]) -> str:
    """An answer from the terminal; no end of input, which is as Ctrl-C."""
    while True:
        print(question, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise KeyboardInterrupt
        if (word := line.strip().lower()) in allowed:
            return word


def ask_model() -> str:
    while True:
        print("Which model? A folder here, or ORG/NAME: ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise KeyboardInterrupt
        model = os.path.expanduser(line.strip())
        if not (problem := model_problem(model)):
            return os.path.abspath(model) if os.path.isdir(model) else model
        say(problem)


def taking_up(options: Namespace, given: Mapping[str, str], model: str, *more: str) -> Command:
    """The command that takes it up again. Hosts and model are remembered, settings are not; model:
    where it is not the one that is remembered or set."""
    if model:
        more = (*more, "--model", model)
        given = {name: text for name, text in given.items() if name != "MODEL_DIR"}
    skip = [word for name in options.skip for word in ("--skip", name)]
    return Command((f"scripts/{PROGRAM}", *more, *["--yes"] * options.yes, *skip), given)


def say(text: str) -> None:
    """With our name where it is about us; a step's own lines stand as they are."""
    name = "" if text[:1] in ("[", " ") else f"{PROGRAM}: "
    print(f"{name}{text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
