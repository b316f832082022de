#!/usr/bin/env python3
"""Put the checkout and its environment on other hosts, at the same path, and see them import.

It is sync_nodes.sh, whose header is the help; needs the standard library alone. All hosts at once,
each by itself: one that fails stops no other. On a host nothing is removed but files that an
earlier run has put into the checkout there, and what is in the copied environment and not in this
one.
"""

import argparse
import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.lib.hosts.on_hosts import LOCAL_HOST
from scripts.lib.settings.interpreter import VENV_PYTHON, problem
from scripts.lib.status.servers import find_servers, supervisor_pid
from scripts.lib.sync import checkout, environment
from scripts.lib.sync.environment import Environment
from scripts.lib.sync.parallel import Failure, Voice, alone, cannot, report, serve_all, size_text
from scripts.lib.sync.probe import (
    Facts,
    Place,
    after_mark,
    ask,
    local_system,
    may_not_write,
    probe,
    token_file,
)
from scripts.lib.sync.rsync import copy, end_all, rsync_command
from scripts.lib.sync.targets import choose_targets, need_python, need_tools
from scripts.lib.sync.versions import ask_versions, compare, show
from scripts.lib.verbs import shared
from scripts.lib.verbs.exit_codes import MISSING
from scripts.lib.verbs.header import help_of
from scripts.lib.verbs.parser import Parser
from scripts.lib.verbs.verb_settings import ROOT, read_settings, stop, texts

PROGRAM = "sync_nodes.sh"
SPARE_BYTES = 256_000_000  # left free on a host whatever is copied
FORGET_WITHIN_S = 60.0
OWN = "have a Python of its own copied with it: scripts/setup_cluster.sh --from python"


@dataclass(frozen=True)
class Job:
    """What every host is to get. env is None with --checkout-only; here is what we import."""

    root: Path
    python: str
    timeout_s: float
    files: list[str]
    listing: Path  # the same, NUL between, for rsync
    token: Path
    env: Environment | None
    env_sizes: Mapping[str, int]
    own_sizes: Mapping[str, int]
    here: Mapping

    @property
    def checkout_options(self) -> list[str]:
        # By content: an edit on the host with the same size and time must not stay.
        return ["-lptc", "-0", f"--files-from={self.listing}"]


def serve(job: Job, host: str) -> str:
    """Bring one host into step; what was done, in words. Raises Failure."""
    voice = Voice(PROGRAM, host)
    if host == LOCAL_HOST:
        return f"this machine; {show(job.here)}" if job.here else "this machine"
    places, more = [(job.root, checkout.SIGNS)], checkout.remembered_program(job.root)
    if job.env:
        places.append((job.env.prefix, environment.SIGNS))
        more = environment.base_program(job.env) + more
    facts = probe(host, job.token, places, more)
    done = "this machine, or shares its disk" if facts.shared else copy_all(job, host, facts, voice)
    if job.env is None:
        return done
    with voice.doing("importing"):
        there = ask_versions(host, job.python, job.root)
    if differences := compare(job.here, there):
        raise Failure("; ".join(differences))
    return f"{done}; {show(there)}"


def copy_all(job: Job, host: str, facts: Facts, voice: Voice) -> str:
    """Both parts, as far as the host can take them."""
    if not facts.rsync:
        raise Failure("it has no rsync (Debian: apt-get install rsync)")
    if facts.places[0].state == "other":
        raise Failure(
            f"{job.root} is there and is no checkout: nothing was changed; move it out of the way"
        )
    if facts.places[0].denied:
        raise Failure(may_not_write(facts.user, facts.places[0].denied, job.root))
    sent, gone = copy_checkout(job, host, facts)
    done = f"checkout: {sent or 'no'} files copied"
    if gone:
        done += f", {gone} removed"
    if job.env is not None:
        voice.say(done)
        done += f"; {job.env.prefix.name}: {copy_environment(job, host, facts, voice)}"
    return done


def copy_checkout(job: Job, host: str, facts: Facts) -> tuple[int, int]:
    """How many files were sent, and how many removed."""
    sizes = {name: (job.root / name).lstat().st_size for name in job.files}
    sent = copy(host, job.root, job.root, job.checkout_options, sizes=sizes, stall_s=job.timeout_s)
    _, _, printed = facts.more.rpartition(environment.BASE)
    if job.env and job.env.base:
        _, _, printed = printed.partition("\n")
    stale, news = checkout.what_changes(printed, job.files)
    if news:
        words = ["sh", "-c", checkout.FORGET_PROGRAM, "sh", str(job.root)]
        answer = ask(
            host,
            [*words, checkout.file_list(job.files)],
            stdin="\0".join([*stale, ""]).encode("utf-8", "surrogateescape"),
            within_s=FORGET_WITHIN_S,
        )
        after_mark(answer)
    return len(sent), len(stale)


def copy_environment(job: Job, host: str, facts: Facts, voice: Voice) -> str:
    """How many files of how many bytes were sent."""
    check_environment(job, facts)
    if job.env.own:
        copy_folder(job, host, job.env.own, job.own_sizes, voice)
    return copy_folder(job, host, job.env.prefix, job.env_sizes, voice)


def copy_folder(job: Job, host: str, folder: Path, sizes: Mapping[str, int], voice: Voice) -> str:
    """The same, of one folder, which is then as it is here."""
    total = sum(sizes.values())
    voice.say(f"{folder.name}: comparing {size_text(total)}")
    sent = copy(
        host,
        folder,
        folder,
        environment.COPY_OPTIONS,
        sizes=sizes,
        stall_s=job.timeout_s,
        on_progress=lambda done: voice.progress(
            lambda: f"{folder.name}: {size_text(done)} copied, at most {size_text(total)}"
        ),
    )
    amount = sum(sizes[name] for name in sent)
    return f"{len(sent)} files copied ({size_text(amount)})" if sent else "no files copied"


def check_environment(job: Job, facts: Facts) -> None:
    """Refuse where a copy would be useless, harmful or too large."""
    env, place = job.env, facts.places[1]
    make = (
        "make one there (docs/from-scratch.md: the checkout and Python on every node), and then "
        f"use --checkout-only; the checkout itself is there: {job.root}"
    )
    if facts.system != local_system():
        raise Failure(
            f"it is {facts.system}, this machine {local_system()}: {env.prefix} cannot be copied; "
            + make
        )
    if place.state == "other":
        raise Failure(f"{env.prefix} is there and is no {env.kind} environment: not touched")
    if place.denied and not env.prefix.is_relative_to(job.root):
        raise Failure(may_not_write(facts.user, place.denied, env.prefix))
    check_space(env.prefix, place, sum(job.env_sizes.values()) + sum(job.own_sizes.values()))
    if env.base is None:
        return
    version = facts.more.partition(environment.BASE)[2].partition("\n")[0]
    if not version:
        raise Failure(
            f"{env.prefix} is made with {env.base}, which is not there: install Python "
            f"{env.version} there in the same way as here, and run this again; or {OWN}; or {make}"
        )
    if version != env.version:
        raise Failure(
            f"{env.base} is Python {version} there and {env.version} here: bring both to the same "
            f"version, and run this again; or {OWN}"
        )


def check_space(path: Path, place: Place, total: int) -> None:
    """Failure unless the host has room for what is not there yet."""
    needed = max(0, total - place.used) + SPARE_BYTES
    if place.free < needed:
        raise Failure(
            f"{size_text(place.free)} free for {path}, which needs {size_text(needed)}: free some "
            "space there"
        )


def show_commands(job: Job, hosts: list[str]) -> None:
    """What would be run, as it could be pasted into a shell."""
    for host in hosts:
        if host == LOCAL_HOST:
            continue
        print(f"+ cd {shlex.quote(str(job.root))}")
        words = rsync_command(host, job.root, job.checkout_options, job.timeout_s, ())
        print(f"+ {shlex.join(words)}")
        for folder in (job.env.own, job.env.prefix) if job.env else ():
            if folder is not None:
                print(f"+ cd {shlex.quote(str(folder))}")
                options = environment.COPY_OPTIONS
                words = rsync_command(host, folder, options, job.timeout_s, ())
                print(f"+ {shlex.join(words)}")


def parser() -> Parser:
    made = Parser(PROGRAM, help_of(PROGRAM))
    shared.add(made, "--hostfile", "--dry-run")
    made.add_argument("--checkout-only", action="store_true")
    made.add_argument("hosts", nargs="*", metavar="HOST")
    return made


def prepare(options: argparse.Namespace) -> None:
    """Adds the settings to the options: root, python, timeout and hosts; or ends the program."""
    settings = read_settings(PROGRAM, options)
    need_tools(PROGRAM)
    options.root, options.timeout = ROOT, settings["SYNC_TIMEOUT"].value
    options.python = need_python(PROGRAM, os.environ | texts(settings))
    options.hosts, _ = choose_targets(
        PROGRAM, options.hosts, settings["HOSTFILE"].text, options.root
    )
    unmade = options.dry_run and options.python == str(VENV_PYTHON)
    if not options.checkout_only and not unmade and (why := problem(options.python)):
        stop(PROGRAM, why, MISSING)


def warn_of_servers(root: Path, voice: Voice) -> None:
    """Those that run here use what is about to be replaced."""
    for server in find_servers(root):
        if pid := supervisor_pid(server):
            voice.say(
                f"warning: a server runs (pid {pid}): start it again to have it use what is copied"
            )


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    prepare(options)
    hosts = options.hosts
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    state = options.root / checkout.STATE
    voice = Voice(PROGRAM, "")
    if not options.dry_run:
        warn_of_servers(options.root, voice)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(alone(state, PROGRAM))
            token = stack.enter_context(token_file(state))
            files = checkout.list_files(options.root)
            listing = state / "checkout.list"
            listing.write_bytes("\0".join(files).encode("utf-8", "surrogateescape"))
        except Failure as failure:
            voice.say(str(failure))
            return 1
        except OSError as error:
            voice.say(cannot(error))
            return 3
        env, sizes, own_sizes, here = None, {}, {}, {}
        try:
            if not options.checkout_only:
                env = environment.describe(options.python)
                sizes = environment.list_sizes(env.prefix)
                own_sizes = environment.list_sizes(env.own) if env.own else {}
                if not options.dry_run:
                    here = ask_versions(LOCAL_HOST, options.python, options.root)
        except Failure as failure:
            voice.say(f"this machine: {failure}")
            return 3
        job = Job(
            options.root, options.python, options.timeout, files, listing, token, env, sizes,
            own_sizes, here,
        )  # fmt: skip
        if options.dry_run:
            show_commands(job, hosts)
            return 0
        try:
            return report(PROGRAM, serve_all(hosts, lambda host: serve(job, host)))
        except KeyboardInterrupt:
            end_all()
            voice.say("interrupted; run it again to go on")
            return 1


if __name__ == "__main__":
    sys.exit(main())
