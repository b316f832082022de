#!/usr/bin/env python3
"""Put a model on other hosts, at the same path, and see that every byte arrived.

It is sync_model.sh, whose header is the help; needs the standard library alone, and huggingface-hub
for a download. All hosts at once, each by itself: one that fails stops no other. A copy lies in
NAME.partial until all its files have the right size and sha256, and is then renamed; so a folder
with the model's name is a whole model, or was one before this began.
"""

import argparse
import contextlib
import importlib.util
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from scripts.lib.hosts.on_hosts import LOCAL_HOST
from scripts.lib.model.hub_errors import NotGiven
from scripts.lib.model.hub_repo import REPO
from scripts.lib.model.list_models import SETTINGS, read_list
from scripts.lib.model.model_folder import folder_problems
from scripts.lib.settings.interpreter import problem, succeeds
from scripts.lib.settings.kept_settings import Found
from scripts.lib.sync import checkout, hub
from scripts.lib.sync.manifest import Item, cache_file, read_items
from scripts.lib.sync.model_copy import COPY_OPTIONS, FAST_CIPHER, Job, serve
from scripts.lib.sync.node_model import partial_of
from scripts.lib.sync.parallel import Failure, Voice, alone, cannot, report, serve_all, size_text
from scripts.lib.sync.probe import token_file
from scripts.lib.sync.routes import read_hosts
from scripts.lib.sync.rsync import end_all, rsync_command
from scripts.lib.sync.several import Outcomes, by_host_and_model, serve_each
from scripts.lib.sync.targets import choose_targets, need_python, need_tools
from scripts.lib.verbs import shared
from scripts.lib.verbs.exit_codes import MISSING
from scripts.lib.verbs.header import help_of
from scripts.lib.verbs.parser import Parser
from scripts.lib.verbs.verb_settings import ROOT, read_settings, stop, texts
from server.protocol.model_list import is_model, look_below
from server.protocol.setting import SettingError

PROGRAM = "sync_model.sh"


def choose_sources(options: argparse.Namespace, voice: Voice) -> dict[str, Path]:
    """Folders of models here, by name. Raises Failure and NotGiven."""
    if not options.all:
        top = Path(os.path.abspath(options.model))
        below = () if not top.is_dir() or is_model(top) else look_below(top).models
        if not below:
            return {top.name: choose_source(options, voice)}
        if options.revision or options.to:
            options.parser.error(f"{options.model} is a folder: --revision and --to are for repos")
        options.listed = below
    found = {}
    for one in options.listed:
        if problems := folder_problems(one.folder):
            options.broken.append(one.name)
            voice.say(f"{one.name} is left out, not a whole model: {'; '.join(problems)}")
        else:
            found[one.name] = one.folder
    if not found:
        raise Failure("none of them is a whole model")
    return found


def choose_source(options: argparse.Namespace, voice: Voice) -> Path:
    """The model's folder here; downloads it if a repo was named. Raises Failure and NotGiven."""
    folder = Path(os.path.abspath(options.model))
    if folder.is_dir():
        if options.revision or options.to:
            options.parser.error(f"{options.model} is a folder: --revision and --to are for repos")
    elif not REPO.fullmatch(options.model):
        options.parser.error(
            f"MODEL is {options.model!r}: neither a folder that is there nor a Hugging Face repo "
            "(ORG/NAME)"
        )
    else:
        models = Path(os.path.abspath(options.to or options.root / "models"))
        folder = models / options.model.partition("/")[2]
        if options.dry_run:
            print(f"+ download {options.model} to {folder}")
            return folder
        if not (folder.exists() or partial_of(folder).exists()):
            refuse_unservable(options.model, options.revision)
        state = options.root / checkout.STATE
        folder = hub.fetch(options.model, options.revision, folder, state, voice)
    if folder.name.endswith(".partial"):
        raise Failure(f"{folder} is an unfinished copy: name the model itself")
    if problems := folder_problems(folder):
        raise Failure(f"not a whole model: {'; '.join(problems)}")
    return folder


def refuse_unservable(repo: str, revision: str | None) -> None:
    """Looks at its config.json, before hundreds of gigabytes are downloaded for nothing. Raises
    Failure. Where the hub does not answer the download says so, or does without."""
    from scripts.lib.model.hub_files import fetch_config
    from scripts.lib.model.look import look

    with tempfile.TemporaryDirectory(prefix="sync-model-") as scratch:
        try:
            fetch_config(repo, revision, Path(scratch))
            looked = look(Path(scratch), weights=False, metal=True)
        except (NotGiven, RuntimeError):
            return
        if looked.architecture is None and looked.config:
            raise Failure(f"{repo} cannot be served: {looked.reasons[-1]}")


def read_source(options: argparse.Namespace, folder: Path, voice: Voice) -> list[Item]:
    """The model's files with their hashes."""

    def tell(done: int, total: int) -> None:
        voice.progress(lambda: f"hashed {size_text(done)} of {size_text(total)}")

    items = read_items(folder, cache_file(options.root / checkout.STATE, folder), tell)
    total = sum(item.size for item in items)
    voice.say(f"{folder}: {len(items)} files, {size_text(total)}")
    return items


def show_commands(job: Job, hosts: list[str]) -> None:
    """What would be run, as it could be pasted into a shell."""
    print(f"+ cd {shlex.quote(str(job.folder))}")
    for host in hosts:
        if host != LOCAL_HOST:
            target = partial_of(job.folder)
            words = rsync_command(host, target, COPY_OPTIONS, job.timeout_s, FAST_CIPHER)
            print(f"+ {shlex.join(words)}")


def make_parser() -> Parser:
    made = Parser(PROGRAM, help_of(PROGRAM))
    shared.add(made, "--hostfile", "--dry-run")
    made.add_argument("--revision", type=shared.some)
    made.add_argument("--to", type=shared.some)
    made.add_argument("--all", action="store_true")
    made.add_argument("model", nargs="?", metavar="MODEL")
    made.add_argument("hosts", nargs="*", metavar="HOST")
    return made


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line and the settings; or the end of the program."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    options.broken = []
    if not options.model and not options.all:
        parser.error(
            "MODEL is missing: must be the folder of a model or of models, or a Hugging Face repo; "
            "or --all"
        )
    settings = read_settings(PROGRAM, options)
    if options.all:
        choose_all(parser, options, settings)
    options.root, options.timeout = ROOT, settings["SYNC_TIMEOUT"].value
    options.python = need_python(PROGRAM, os.environ | texts(settings))
    options.hosts, options.hostfile = choose_targets(
        PROGRAM, options.hosts, settings["HOSTFILE"].text, options.root, alone=True
    )
    if options.hosts:
        need_tools(PROGRAM)
    options.parser = parser
    if (
        not options.all
        and not os.path.isdir(options.model)
        and REPO.fullmatch(options.model)
        and not options.dry_run
    ):
        for name in ("HF_TOKEN", "HF_ENDPOINT"):  # which the hub's own package reads
            if settings[name].text:
                os.environ[name] = settings[name].text
        be_able_to_download(options.python)
    return options


def choose_all(parser: Parser, options: argparse.Namespace, settings: Mapping[str, Found]) -> None:
    """--all: those that the settings name; so there is no MODEL, and all words are hosts."""
    if options.revision or options.to:
        parser.error("--all is of folders that are here: --revision and --to are for repos")
    options.hosts = [options.model, *options.hosts] if options.model else options.hosts
    listed = [settings[name].text if name in settings else "" for name in SETTINGS]
    if not any(listed):
        parser.error("--all: none of MODEL_DIR, MODELS and MODELS_DIR is set")
    try:
        options.listed = read_list(listed)
    except SettingError as error:
        stop(PROGRAM, str(error))


def be_able_to_download(python: str) -> None:
    """huggingface-hub downloads it, which the ranks' interpreter has: goes on with that one."""
    if importlib.util.find_spec("huggingface_hub"):
        return
    if why := problem(python):
        stop(PROGRAM, why, MISSING)
    if succeeds(python, "import huggingface_hub"):
        module = [str(ROOT / "scripts/lib/module.py"), "lib.sync.sync_model"]
        os.execv(python, [python, *module, *sys.argv[1:]])


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    hosts = options.hosts
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    state = options.root / checkout.STATE
    voice = Voice(PROGRAM, "")
    with contextlib.ExitStack() as stack:
        try:
            if not options.dry_run:
                stack.enter_context(alone(state, PROGRAM))
            folders = choose_sources(options, voice)
            items = {
                name: [] if options.dry_run else read_source(options, folder, voice)
                for name, folder in folders.items()
            }
            places = {name: place_for_token(folder, state) for name, folder in folders.items()}
            tokens = {place: stack.enter_context(token_file(place)) for place in {*places.values()}}
        except Failure as failure:
            voice.say(str(failure))
            return 1
        except NotGiven as error:
            voice.say(str(error))
            return MISSING
        except OSError as error:
            voice.say(cannot(error))
            return MISSING
        except KeyboardInterrupt:
            voice.say("interrupted; run it again to go on")
            return 1
        if not hosts:
            return report_alone(options, folders, voice)
        cables = read_hosts(options.hostfile)
        jobs = {
            name: Job(
                folder, items[name], options.python, options.timeout, tokens[places[name]], cables
            )
            for name, folder in folders.items()
        }
        if options.dry_run:
            for job in jobs.values():
                show_commands(job, hosts)
            return 0
        try:
            return max(report(PROGRAM, serve_hosts(jobs, hosts)), report_broken(options, voice))
        except KeyboardInterrupt:
            end_all()
            voice.say("interrupted; run it again to go on")
            return 1


def serve_hosts(jobs: Mapping[str, Job], hosts: list[str]) -> Outcomes:
    """All at once; each its models one after the other."""
    if len(jobs) == 1:
        (job,) = jobs.values()
        return serve_all(hosts, lambda host: serve(job, host, Voice(PROGRAM, host)))
    each: dict[str, Outcomes] = {}

    def serve_host(host: str) -> str:
        each[host] = serve_each(jobs, host, Voice(PROGRAM, host))
        return ""

    return by_host_and_model(serve_all(hosts, serve_host), each)


def report_broken(options: argparse.Namespace, voice: Voice) -> int:
    if options.broken:
        voice.say(f"left out: {', '.join(options.broken)}")
    return 1 if options.broken else 0


def report_alone(options: argparse.Namespace, folders: Mapping[str, Path], voice: Voice) -> int:
    """No host and no hostfile: the models are here, and that is all."""
    if not options.dry_run:
        voice.say("no hostfile and no HOST: it is for this machine alone")
        for folder in folders.values():
            print(f"ok {LOCAL_HOST} {folder}")
    return report_broken(options, voice)


def place_for_token(folder: Path, state: Path) -> Path:
    """Beside the model, which may be on a disk of its own; else in the checkout."""
    return folder.parent if os.access(folder.parent, os.W_OK) else state


if __name__ == "__main__":
    sys.exit(main())
