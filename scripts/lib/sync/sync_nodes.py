#!/usr/bin/env python3
"""Put the checkout and its environment on other hosts, at the same path, and see them import.

usage: sync_nodes.py --root DIR --python PROGRAM [--timeout SECONDS] [--checkout-only]
                     [--dry-run] HOST...

Called by scripts/sync_nodes.sh, which explains it; needs the standard library alone. All hosts at
once, each by itself: one that fails stops no other. On a host nothing is removed but files that an
earlier run has put into the checkout there, and what is in the copied environment and not in this
one. Exit codes: 0 all hosts are in step, 1 some are not, 2 usage, 3 this machine lacks something.
"""

import argparse
import contextlib
import shlex
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.lib.hosts.on_hosts import LOCAL_HOST
from scripts.lib.sync import checkout, environment
from scripts.lib.sync.environment import Environment
from scripts.lib.sync.parallel import Failure, Voice, alone, report, serve_all, size_text
from scripts.lib.sync.probe import Facts, Place, after_mark, ask, local_system, probe, token_file
from scripts.lib.sync.rsync import copy, end_all, rsync_command
from scripts.lib.sync.versions import ask_versions, compare, show

PROGRAM = "sync_nodes.sh"
SPARE_BYTES = 256_000_000  # left free on a host whatever is copied
FORGET_WITHIN_S = 60.0


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
    env, total = job.env, sum(job.env_sizes.values())
    check_environment(job, facts)
    voice.say(f"{env.prefix.name}: comparing {size_text(total)}")
    sent = copy(
        host,
        env.prefix,
        env.prefix,
        environment.COPY_OPTIONS,
        sizes=job.env_sizes,
        stall_s=job.timeout_s,
        on_progress=lambda done: voice.progress(
            lambda: f"{env.prefix.name}: {size_text(done)} copied, at most {size_text(total)}"
        ),
    )
    amount = sum(job.env_sizes[name] for name in sent)
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
    check_space(env.prefix, place, sum(job.env_sizes.values()))
    if env.base is None:
        return
    version = facts.more.partition(environment.BASE)[2].partition("\n")[0]
    if not version:
        raise Failure(
            f"{env.prefix} is made with {env.base}, which is not there: install Python "
            f"{env.version} there in the same way as here, and run this again; or {make}"
        )
    if version != env.version:
        raise Failure(
            f"{env.base} is Python {version} there and {env.version} here: bring both to the same "
            "version, and run this again"
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
        if job.env is not None:
            print(f"+ cd {shlex.quote(str(job.env.prefix))}")
            options = environment.COPY_OPTIONS
            words = rsync_command(host, job.env.prefix, options, job.timeout_s, ())
            print(f"+ {shlex.join(words)}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="sync_nodes.py")
    parser.format_help = lambda: __doc__
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--python", required=True)
    parser.add_argument("--timeout", type=float, default=120.0)
    parser.add_argument("--checkout-only", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("hosts", nargs="+", metavar="HOST")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    hosts = list(dict.fromkeys(options.hosts))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    state = options.root / checkout.STATE
    voice = Voice(PROGRAM, "")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(alone(state, PROGRAM))
        except Failure as failure:
            voice.say(str(failure))
            return 1
        token = stack.enter_context(token_file(state))
        files = checkout.list_files(options.root)
        listing = state / "checkout.list"
        listing.write_bytes("\0".join(files).encode("utf-8", "surrogateescape"))
        env, sizes, here = None, {}, {}
        try:
            if not options.checkout_only:
                env = environment.describe(options.python)
                sizes = environment.list_sizes(env.prefix)
                if not options.dry_run:
                    here = ask_versions(LOCAL_HOST, options.python, options.root)
        except Failure as failure:
            voice.say(f"this machine: {failure}")
            return 3
        job = Job(
            options.root, options.python, options.timeout, files, listing, token, env, sizes, here
        )
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
