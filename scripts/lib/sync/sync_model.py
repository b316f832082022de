#!/usr/bin/env python3
"""Put a model on other hosts, at the same path, and see that every byte arrived.

usage: sync_model.py --root DIR --python PROGRAM [--timeout SECONDS] [--hostfile FILE]
                     [--revision REVISION] [--to DIR] [--dry-run] MODEL HOST...

Called by scripts/sync_model.sh, which explains it; needs the standard library alone, and
huggingface-hub for a download. All hosts at once, each by itself: one that fails stops no other.
A copy lies in NAME.partial until all its files have the right size and sha256, and is then
renamed; so a folder with the model's name is a whole model, or was one before this began. Exit
codes: 0 every host has it, 1 one has not, 2 usage, 3 this machine lacks something.
"""

import argparse
import contextlib
import os
import re
import shlex
import signal
import sys
from pathlib import Path

from scripts.lib.hosts.on_hosts import LOCAL_HOST
from scripts.lib.model.model_folder import folder_problems
from scripts.lib.sync import checkout, hub
from scripts.lib.sync.manifest import Item, cache_file, read_items
from scripts.lib.sync.model_copy import COPY_OPTIONS, FAST_CIPHER, Job, serve
from scripts.lib.sync.node_model import partial_of
from scripts.lib.sync.parallel import Failure, Voice, alone, report, serve_all, size_text
from scripts.lib.sync.probe import token_file
from scripts.lib.sync.routes import read_hosts
from scripts.lib.sync.rsync import end_all, rsync_command

PROGRAM = "sync_model.sh"
REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


def choose_source(options: argparse.Namespace, voice: Voice) -> Path:
    """The model's folder here; downloads it if a repo was named. Raises Failure."""
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
        state = options.root / checkout.STATE
        folder = hub.fetch(options.model, options.revision, folder, state, voice)
    if folder.name.endswith(".partial"):
        raise Failure(f"{folder} is an unfinished copy: name the model itself")
    if problems := folder_problems(folder):
        raise Failure(f"not a whole model: {'; '.join(problems)}")
    return folder


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


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=PROGRAM, usage="see --help")
    parser.format_help = lambda: __doc__
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--python", required=True)
    parser.add_argument("--timeout", type=float, default=120.0)
    parser.add_argument("--hostfile", type=Path)
    parser.add_argument("--revision")
    parser.add_argument("--to")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("model")
    parser.add_argument("hosts", nargs="+", metavar="HOST")
    options = parser.parse_args(arguments)
    options.parser = parser
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    hosts = list(dict.fromkeys(options.hosts))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    state = options.root / checkout.STATE
    voice = Voice(PROGRAM, "")
    with contextlib.ExitStack() as stack:
        try:
            if not options.dry_run:
                stack.enter_context(alone(state, PROGRAM))
            folder = choose_source(options, voice)
            items = [] if options.dry_run else read_source(options, folder, voice)
            token = stack.enter_context(token_file(place_for_token(folder, state)))
        except Failure as failure:
            voice.say(str(failure))
            return 1
        except KeyboardInterrupt:
            voice.say("interrupted; run it again to go on")
            return 1
        job = Job(
            folder, items, options.python, options.timeout, token, read_hosts(options.hostfile)
        )
        if options.dry_run:
            show_commands(job, hosts)
            return 0
        try:
            return report(
                PROGRAM, serve_all(hosts, lambda host: serve(job, host, Voice(PROGRAM, host)))
            )
        except KeyboardInterrupt:
            end_all()
            voice.say("interrupted; run it again to go on")
            return 1


def place_for_token(folder: Path, state: Path) -> Path:
    """Beside the model, which may be on a disk of its own; else in the checkout."""
    return folder.parent if os.access(folder.parent, os.W_OK) else state


if __name__ == "__main__":
    sys.exit(main())
