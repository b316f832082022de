"""One model to one host: look, copy what is missing, check every byte, give it its name.

Called by sync_model.py, on a thread for each host. What happens on the host itself is done by
node_model.py, which travels there with each request. Nothing there is replaced but a model's folder
of the same name, and the model's own unfinished copy.
"""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from scripts.lib.hosts.hostfile import Hostfile
from scripts.lib.hosts.on_hosts import LOCAL_HOST
from scripts.lib.sync import node_model
from scripts.lib.sync.manifest import Item
from scripts.lib.sync.node_model import partial_of
from scripts.lib.sync.parallel import Failure, Voice, size_text
from scripts.lib.sync.probe import MARK, after_mark, ask, may_not_write
from scripts.lib.sync.routes import Route, find_route
from scripts.lib.sync.rsync import copy

SPARE_BYTES = 256_000_000  # left free on a host
SLOWEST_HASH_BYTES_S = 50_000_000  # a host that hashes slower than this has a broken disk
ATTEMPTS = 2  # a file that arrives damaged twice will a third time

# By name, and where Homebrew puts them, as a shell that ssh opens has a short PATH. Not plain
# python3: on a Mac without developer tools that opens a window.
FIND_PYTHON = """
for python in "$0" python3.11 python3.12 python3.13 python3.14 \
  /opt/homebrew/bin/python3 /usr/local/bin/python3; do
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null && exec "$python" "$@"
done
exit 127
"""
RUN = (
    "import json, sys; JOB = json.load(sys.stdin); "
    "exec(compile(JOB['program'], 'node_model.py', 'exec'), {'JOB': JOB, '__name__': 'node_model'})"
)
# -L: a snapshot of the hub's cache is made of links. -t: by size and time a second run knows what
# is there. Not -p: a file that only this user may read would be so there, too.
COPY_OPTIONS = ("-rtL", "--inplace", "--delete", "--exclude=.*")
# Encryption that the processor does itself: a Thunderbolt cable is faster than the usual one.
FAST_CIPHER = (
    "-o",
    "Ciphers=aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes128-ctr",
)


@dataclass(frozen=True)
class Job:
    """What every host is to get."""

    folder: Path
    items: list[Item]
    python: str
    timeout_s: float
    token: Path
    hosts: Hostfile | None

    @property
    def total(self) -> int:
        return sum(item.size for item in self.items)


def tell_node(job: Job, host: str, do: str, within_s: float = 60.0, **more) -> dict:
    """Have node_model.py do one thing there; its answer. Raises Failure."""
    order = {
        "program": Path(node_model.__file__).read_text("utf-8"),
        "do": do,
        "mark": MARK,
        "folder": str(job.folder),
        "token": str(job.token),
        "items": [astuple(item) for item in job.items],
        **more,
    }
    words = ["sh", "-c", FIND_PYTHON, job.python, "-c", RUN]
    answer = ask(host, words, stdin=json.dumps(order).encode(), within_s=within_s)
    if answer.code == 127:
        raise Failure(
            f"it has no {job.python} and no other Python: run scripts/sync_nodes.sh first"
        )
    told = json.loads(after_mark(answer))
    if "error" in told:
        raise Failure(told["error"])
    return told


def serve(job: Job, host: str, voice: Voice) -> str:
    """Bring the model to one host; what was done, in words. Raises Failure."""
    if host == LOCAL_HOST:
        return "this machine"
    there = tell_node(job, host, "look")
    if there["shared"]:
        return "this machine, or shares its disk"
    bad: dict[str, str] = {}
    if there["state"] == "other":
        raise Failure(f"{job.folder} is there and is no model: not touched; move it out of the way")
    if missing_bytes(job.items, there["final"]) == 0 and there["state"] == "model":
        with voice.doing(f"it has all files: checking {size_text(job.total)}"):
            checked = check(job, host, "final", job.items)
        bad = checked["bad"]
        if not bad and not checked["extra"]:
            return f"was there already: {size_text(job.total)}, every file has the right hash"
        for name, reason in bad.items():
            voice.say(f"{name}: {reason}: it will be copied again")
    return replicate(job, host, there, bad, voice)


def missing_bytes(items: Iterable[Item], *found: dict[str, int]) -> int:
    """How much is not there, by size alone; what a break has left of a file counts as there."""
    return sum(
        max(0, item.size - min(item.size, max(sizes.get(item.name, 0) for sizes in found)))
        for item in items
    )


def replicate(job: Job, host: str, there: dict, bad: dict, voice: Voice) -> str:
    """Copy what is missing into NAME.partial, check all of it, and give it its name."""
    if not there["rsync"]:
        raise Failure("it has no rsync (Debian: apt-get install rsync)")
    if there["denied"]:
        raise Failure(may_not_write(there["user"], there["denied"], job.folder))
    found = (there["final"], there["partial"])
    missing = sum(
        item.size if item.name in bad else missing_bytes([item], *found) for item in job.items
    )
    whole = sum(
        item.size
        for item in job.items
        if item.name not in bad and item.size in (sizes.get(item.name) for sizes in found)
    )
    if there["free"] < 0:
        raise Failure(f"its df does not tell what is free for {job.folder}: see df -Pk there")
    if there["free"] < missing + SPARE_BYTES:
        raise Failure(
            f"{size_text(there['free'])} free for {job.folder}, which needs another "
            f"{size_text(missing + SPARE_BYTES)}: free some space there"
        )
    if there["state"] == "model":
        tell_node(job, host, "prepare", bad=list(bad))
    route = find_route(host, job.hosts)
    wrong: list[str] = []
    copied = missing
    for _ in range(ATTEMPTS):
        send(job, host, route, missing, whole, wrong, voice)
        again = [item for item in job.items if not wrong or item.name in wrong]
        with voice.doing(f"checking {size_text(sum(item.size for item in again))}"):
            reasons = check(job, host, "partial", again)["bad"]
        wrong = list(reasons)
        if not wrong:
            break
        voice.say("; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
        missing = sum(item.size for item in job.items if item.name in wrong)
        whole = job.total - missing
    else:
        raise Failure(
            f"{', '.join(wrong)} arrived damaged {ATTEMPTS} times: look at that host's disk and "
            f"memory, and whether {job.folder} changes here meanwhile"
        )
    way = f" {route.words}" if route.words else ""
    return (
        f"{size_text(copied)} of {size_text(job.total)} copied{way}, every file has the right hash"
    )


def send(
    job: Job,
    host: str,
    route: Route,
    missing: int,
    whole: int,
    again: Sequence[str],
    voice: Voice,
) -> None:
    """One rsync. whole: bytes of the files that are there; again: files to send in any case."""
    began = time.monotonic()
    voice.say(f"copying {size_text(missing)} {route.words}".rstrip())

    def tell(done: int) -> str:
        arrived = min(job.total, whole + done)
        rate = max(0, arrived - (job.total - missing)) / max(0.1, time.monotonic() - began)
        return f"{size_text(arrived)} of {size_text(job.total)} there, {size_text(rate)}/s"

    options = list(COPY_OPTIONS)
    if again:
        parents = {parent for name in again for parent in Path(name).parents if parent.name}
        options += ["-I", *(f"--include=/{each}/" for each in sorted(parents))]
        options += [*(f"--include=/{name}" for name in again), "--exclude=*"]
        options.remove("--delete")  # What the others are is known.
    copy(
        host,
        job.folder,
        partial_of(job.folder),
        options,
        sizes={item.name: item.size for item in job.items},
        stall_s=job.timeout_s,
        ssh_options=(*FAST_CIPHER, *route.options),
        on_progress=lambda done: voice.progress(lambda: tell(done)),
    )


def check(job: Job, host: str, place: str, items: list[Item]) -> dict:
    """What node_model.check finds among these items; a partial copy in order gets its name."""
    return tell_node(
        job,
        host,
        "check",
        within_s=60 + sum(item.size for item in items) / SLOWEST_HASH_BYTES_S,
        place=place,
        finish=place == "partial",
        items=[astuple(item) for item in items],
        known=[item.name for item in job.items],
    )
