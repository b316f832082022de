"""Load a running server for as long as you like, and see whether it stays whole.

usage: python -m scripts.dev.soak [--url URL | --port P] [--minutes M] [--clients N]
                                  [--run-dir DIR] [--json] [--help]

  --url URL      http://host:port. Without it: the server of this checkout that runs.
  --port P       The server of this checkout on that port (HTTP_PORT).
  --minutes M    Of load (10).
  --clients N    At a time (8).
  --run-dir DIR  Where this machine's rank-N.pid are, such as run/8080 (that of --port).
  --json         One JSON line last.

N clients send a mixture of whole answers, streams, requests that they give up, and rubbish (see
scripts/dev/soak_load.py). Needs Python 3.11 and nothing else; the server may be anywhere, but the
memory of a rank is measured only on the machine where soak.py runs. If the server wants a key,
set API_KEY, in the environment or in cluster.env.

It prints one name=value a line:

  requests       asked in all, and then by kind
  busy           429 answers: the line was full, which is no error
  differing      greedy answers unlike the first one to the same question; rounding may do that
                 on a GPU, but on a CPU there should be none
  errors         answers that should not have come, resets, silence; and then by kind
  restarts       how often the supervisor has started the server again, before and now
  rss_mb         resident memory of each local rank (10^6 bytes): before, highest in the first
                 half, highest in the second half, at the end when all is idle
  left           requests running and waiting, and KV tokens in use, when all clients had gone
  verdict        ok, or what was wrong

Memory is level when no rank's highest in the second half is more than 10% and 64 MB above its
highest in the first half: whatever is kept for ever keeps growing. So do kept prefixes until they
have their part of the KV memory: start the server with a small KV_BUDGET_GB, such as 0.1 for a tiny
model, that they have it in the first half. A run of ten minutes says more than a run of
one. With --json the last line is one JSON object with the same names.

Exit codes: 0 the server stayed whole, 1 it did not, or does not answer, 2 usage (or no server or
several run, and none was named), 3 no server was started on that port.
"""

import os
import sys

from scripts.lib.right_python import ensure

if __name__ == "__main__":  # before what an older one cannot even read
    ensure(os.getcwd(), "scripts.dev.soak")

import argparse
import json
import random
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from scripts.dev.soak_load import Client, Tally
from scripts.lib.bench.processes import resident_mb
from scripts.lib.hosts.our_process import recorded_pid
from scripts.lib.verbs.parser import Parser
from scripts.lib.verbs.running_server import add_server, find_server
from scripts.lib.verbs.shared import add, decimal, whole

SAMPLE_S = 2.0  # between two looks at the ranks' memory
TELL_S = 10.0  # between two lines of progress where they cannot overwrite each other
HEALTH_DEADLINE_S = 30.0
END_DEADLINE_S = 330.0  # for the clients' last requests
IDLE_DEADLINE_S = 15.0  # for the ranks to drop what was given up
GROWTH_SHARE, GROWTH_MB = 0.10, 64.0


def main() -> int:
    """Runs the soak; returns the exit code."""
    arguments = parse_arguments()
    headers = {"Authorization": f"Bearer {arguments.key}"} if arguments.key else {}
    try:
        before = health(arguments.url)
    except OSError as error:
        print(f"soak: {arguments.url} does not answer: {error}", file=sys.stderr)
        return 1
    if before.get("status") != "ok":
        print(f"soak: the server is not ready: {before.get('status')}", file=sys.stderr)
        return 1
    memory = Memory(local_pids(before, arguments.run_dir))
    tally = Tally()
    alive = load(arguments, headers, tally, memory)
    after = wait_idle(arguments.url)
    summary = summarise(tally, memory, before, after)
    summary["verdict"] = "; ".join(judge(summary, before, after, alive)) or "ok"
    report(summary, tally, arguments.json)
    return 0 if summary["verdict"] == "ok" else 1


def load(arguments: argparse.Namespace, headers: dict, tally: Tally, memory: "Memory") -> int:
    """Lets the clients loose for the time asked; returns how many would not come to an end."""
    stop = threading.Event()
    expected: dict[int, str] = {}
    clients = [
        Client(arguments.url, headers, tally, expected, random.Random(number))
        for number in range(arguments.clients)
    ]
    threads = [threading.Thread(target=one.run, args=(stop,), daemon=True) for one in clients]
    for thread in threads:
        thread.start()
    start = told = time.monotonic()
    end = start + arguments.minutes * 60
    try:
        while (now := time.monotonic()) < end:
            memory.sample(second_half=now - start >= (end - start) / 2)
            if sys.stderr.isatty() or now - told >= TELL_S:
                told = now
                tell(tally, memory, now - start)
            time.sleep(min(SAMPLE_S, max(0.0, end - time.monotonic())))
    except KeyboardInterrupt:
        print("\nsoak: stopped early", file=sys.stderr)
    stop.set()
    deadline = time.monotonic() + END_DEADLINE_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return sum(thread.is_alive() for thread in threads)


def tell(tally: Tally, memory: "Memory", seconds: float) -> None:
    """The line of progress."""
    sizes = " ".join(f"{size:.0f}" for size in memory.latest.values()) or "-"
    line = (
        f"{seconds:6.0f} s  {tally.total} requests  {tally.busy} busy  "
        f"{sum(tally.errors.values())} errors  rss {sizes} MB"
    )
    print(f"\r{line}" if sys.stderr.isatty() else line, end="", file=sys.stderr)
    if not sys.stderr.isatty():
        print(file=sys.stderr, flush=True)


# What is looked at.


def health(url: str) -> dict:
    """The body of GET /health, also of one that says 503. Raises OSError without an answer."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=HEALTH_DEADLINE_S) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return json.load(error)
    except ValueError as error:
        raise OSError(f"no JSON: {error}") from None


def wait_idle(url: str) -> dict:
    """/health once nothing runs and nothing waits; as it is when that takes too long. Empty if
    the server does not answer any more."""
    deadline = time.monotonic() + IDLE_DEADLINE_S
    state: dict = {}
    while time.monotonic() < deadline:
        try:
            state = health(url)
        except OSError:
            state = {}
        if state.get("status") == "ok" and not state["running"] and not state["queued"]:
            return state
        time.sleep(0.2)
    return state


def local_pids(state: dict, run_dir: Path | None) -> dict[int, int]:
    """Pids of this machine's ranks, by rank: from the pid files, or what /health says."""
    if run_dir is not None:
        pids = {int(file.stem[5:]): recorded_pid(file) for file in run_dir.glob("rank-*.pid")}
        return {rank: pid for rank, pid in sorted(pids.items()) if pid is not None}
    here = socket.gethostname()
    return {one["rank"]: one["pid"] for one in state["ranks"] if one["host"] == here}


class Memory:
    """Resident memory of some processes, in MB."""

    def __init__(self, pids: dict[int, int]) -> None:
        self._pids = pids
        self.latest: dict[int, float] = {}
        self.highest: tuple[dict[int, float], dict[int, float]] = ({}, {})
        self.sample(second_half=False)
        self.before = dict(self.latest)

    def sample(self, second_half: bool) -> None:
        """Measures all of them now. A process that is gone counts as 0."""
        high = self.highest[second_half]
        self.latest = {rank: resident_now(pid) for rank, pid in self._pids.items()}
        for rank, size in self.latest.items():
            high[rank] = max(high.get(rank, 0.0), size)


def resident_now(pid: int) -> float:
    """Resident memory of one process in 10^6 bytes; 0 when it is gone."""
    try:
        return resident_mb(pid)
    except OSError:
        return 0.0


# What it comes to.


def summarise(tally: Tally, memory: Memory, before: dict, after: dict) -> dict:
    """The numbers, by the names that the module's docstring defines."""
    memory.sample(second_half=True)
    first, second = memory.highest
    return {
        "requests": tally.total,
        "requests_by_kind": dict(tally.requests),
        "busy": tally.busy,
        "differing": tally.differing,
        "errors": sum(tally.errors.values()),
        "errors_by_kind": dict(tally.errors),
        "restarts": [before["restarts"], after.get("restarts")],
        "rss_mb": {
            f"rank {rank}": [
                round(size)
                for size in (old, first[rank], second.get(rank, 0.0), memory.latest[rank])
            ]
            for rank, old in memory.before.items()
        },
        "left": {
            "running": after.get("running"),
            "queued": after.get("queued"),
            "kv_tokens": after.get("kv_tokens", {}).get("used"),
        },
    }


def judge(summary: dict, before: dict, after: dict, alive: int) -> list[str]:
    """What was wrong, in words; empty when nothing was."""
    wrong = []
    if not after:
        return ["the server does not answer any more"]
    if after["run_id"] != before["run_id"] or after["ranks"] != before["ranks"]:
        wrong.append(f"the server was started again: {after['last_failure'] or 'reason unknown'}")
    if summary["errors"]:
        wrong.append(f"{summary['errors']} errors")
    if alive:
        wrong.append(f"{alive} clients still wait for their answers")
    if any(summary["left"].values()):
        wrong.append("requests are left over")
    for rank, (_, first, second, now) in summary["rss_mb"].items():
        if not now:
            wrong.append(f"{rank} is gone")
        elif second - first > max(GROWTH_MB, GROWTH_SHARE * first):
            wrong.append(f"the memory of {rank} grew from {first} to {second} MB")
    return wrong


def report(summary: dict, tally: Tally, as_json: bool) -> None:
    """name=value lines for people, one JSON line last for programs."""
    for example in tally.examples:
        print(f"soak: {example}", file=sys.stderr)
    for name, value in summary.items():
        if isinstance(value, dict):
            text = ", ".join(f"{key}: {_plain(item)}" for key, item in value.items())
            print(f"{name}={text or 'none'}")
        else:
            print(f"{name}={_plain(value)}")
    if as_json:
        print(json.dumps(summary))


def _plain(value: object) -> str:
    return " -> ".join(map(str, value)) if isinstance(value, list) else str(value)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser("soak.py", __doc__)
    add_server(parser)
    parser.add_argument("--minutes", type=decimal(0.001, 1e6), default=10.0)
    parser.add_argument("--clients", type=whole(1, 1000), default=8)
    parser.add_argument("--run-dir", type=Path)
    add(parser, "--json")
    arguments = parser.parse_args()
    find_server(parser, arguments)
    arguments.url = arguments.url.rstrip("/").removesuffix("/v1")
    if not arguments.url.startswith(("http://", "https://")):
        parser.error(f"--url {arguments.url!r}: must begin with http:// or https://")
    if arguments.server is not None and arguments.run_dir is None:
        run_dir = arguments.server.run_dir
        arguments.run_dir = run_dir if any(run_dir.glob("rank-*.pid")) else None
    if arguments.run_dir and not any(arguments.run_dir.glob("rank-*.pid")):
        parser.error(f"--run-dir {str(arguments.run_dir)!r}: no rank-N.pid there")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
