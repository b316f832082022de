"""One ssh to every host at once: sends find_python.sh and probe.py, takes back what they saw.

The answer stands between marks that no profile prints by chance, so one that greets people is
noticed and the rest of its answer still counts. Every host has its deadline; one that is down or
hangs holds nobody up. Runs where the doctor was started and asks, never changes.
"""

import json
import random
import secrets
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.lib.doctor.commands import PYTHON_NAMES, commands_for
from scripts.lib.doctor.plan import Plan
from scripts.lib.hosts.on_hosts import Answer, run_on_hosts

HERE = Path(__file__).resolve().parent
# What the probe shares with the ranks, and itself.
PROGRAM = (HERE.parents[2] / "server" / "protocol" / "fingerprint.py", HERE / "probe.py")
REMOTE_COMMAND = ("/bin/sh", "-s")
ANSWER_SHARE = 0.8  # of the deadline; the rest is for ssh and for a slow start of Python
PATH_S = 8.0
# Below the ports that systems hand out, and away from those that our servers use by default.
TRIAL_PORTS = range(29000, 31900)


@dataclass(frozen=True)
class Raw:
    """What one host answered. trouble: why there is no answer, empty when there is one.

    noise: what its shell printed by itself, by stream. commands and tasks are as in probe.py.
    """

    host: str
    trouble: str = ""
    noise: str = ""
    errors: str = ""
    system: str = ""
    python: str = ""
    commands: dict[str, dict[str, Any]] = field(default_factory=dict)
    tasks: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """The same bytes for every host; a host finds its own part by its place in plan.asked."""

    stdin: bytes
    begin: str
    end: str


def ask_hosts(plan: Plan, needed: set[str], on_answer: Callable[[Answer], None]) -> list[Raw]:
    """Ask every host of the plan for what is needed. Takes at most about plan.deadline_s."""
    question = make_question(plan, needed)
    places = {host: str(place) for place, host in enumerate(plan.asked)}
    answers = run_on_hosts(
        plan.asked,
        lambda host: [*REMOTE_COMMAND, places[host]],
        within_s=plan.deadline_s,
        stdin=question.stdin,
        on_answer=on_answer,
    )
    return [read_answer(answer, question) for answer in answers]


def make_question(plan: Plan, needed: set[str], root: str = "", system: str = "") -> Question:
    """root and system are for tests: a directory that holds an invented machine."""
    token = secrets.token_hex(8)
    begin, end = f"<<<doctor {token}", f"doctor {token}>>>"
    job = make_job(plan, needed) | {"root": root, "system": system, "begin": begin, "end": end}
    program = "\n".join(path.read_text("utf-8") for path in PROGRAM)
    call = f"main(json.loads({json.dumps(job)!r}), int(sys.argv[1]))"
    text = "\n".join(
        [
            (HERE / "find_python.sh").read_text("utf-8"),
            f"WANTED={shlex.quote(plan.python)}",
            f"BEGIN={shlex.quote(begin)}",
            f"END={shlex.quote(end)}",
            f"WITHIN_S={max(1, int(job['within_s']))}",
            f'probe() {{\n  "$python" - "$1" <<\'{token}\'\n{program}\n{call}\n{token}\n}}',
            _commands_function(job),
            'if find_python; then probe "$1"; else answer_without_python "$1"; fi',
            "",
        ]
    )
    return Question(text.encode(), begin, end)


def make_job(plan: Plan, needed: set[str]) -> dict[str, Any]:
    """What probe.py is told; see there."""
    tasks = ["code", "ranks", "listeners", "addresses", "disk", "files", "environment"]
    tasks += ["listen", "connect"]
    if plan.model_dir is not None:
        tasks.append("model")
    within_s = plan.deadline_s * ANSWER_SHARE
    connections = expected_connections(plan)
    trial = random.choice(TRIAL_PORTS)
    ports = {host: trial + place for place, host in enumerate(plan.hosts)}
    return {
        "within_s": within_s,
        "path_s": min(PATH_S, within_s / 2),
        "checkout": plan.checkout,
        "model_dir": plan.model_dir,
        "nonce": secrets.token_hex(16),
        "tasks": [name for name in tasks if name in needed],
        "hosts": [
            {
                "host": host,
                "commands": commands_for(plan, host, needed),
                "ports": plan.ports_on(host),
                "bind": own_addresses(plan, host),
                "listen": {
                    "port": ports[host],
                    "expected": len({a for a, b, _ in connections if b == host}),
                },
                "connect": [
                    {"to": b, "address": address, "port": ports[b]}
                    for a, b, address in connections
                    if a == host
                ],
            }
            for host in plan.asked
        ],
    }


def own_addresses(plan: Plan, host: str) -> list[str]:
    """The addresses that ranks of this host will bind: all of a ring, JACCL's coordinator."""
    if plan.local or not plan.addresses:
        return []
    ranks = plan.ranks_on(host) if not plan.rdma else [0] * (host == plan.rank0)
    return list(dict.fromkeys(address for rank in ranks for address in plan.addresses[rank]))


def expected_connections(plan: Plan) -> list[tuple[str, str, str]]:
    """Who connects to whom at which address: (from, to, address), between hosts that are asked.

    With JACCL everybody meets at rank 0; in a ring each rank connects to the next one.
    """
    if plan.local or not plan.addresses:
        return []
    count = len(plan.ranks)
    if plan.rdma:
        pairs = [(rank, 0) for rank in range(1, count)]
    else:
        pairs = [(rank, (rank + 1) % count) for rank in range(count)]
    found = []
    for a, b in pairs:
        first, second = plan.ranks[a], plan.ranks[b]
        # JACCL uses the first address of rank 0 alone.
        for address in plan.addresses[b][: 1 if plan.rdma else None]:
            if first != second and {first, second} <= set(plan.asked):
                found.append((first, second, address))
    return list(dict.fromkeys(found))


def _commands_function(job: dict[str, Any]) -> str:
    """The shell function that asks a host's tools, python's own questions apart."""
    lines = ["commands() {", "  case $1-$2 in"]
    for place, host in enumerate(job["hosts"]):
        for system, table in host["commands"].items():
            lines.append(f"    {place}-{system})")
            for name, (argv, _) in table.items():
                if name not in PYTHON_NAMES:
                    lines.append(f"      ask {shlex.join([name, *argv])}")
            lines += ["      :", "      ;;"]
    return "\n".join([*lines, "  esac", "}"])


def read_answer(answer: Answer, question: Question) -> Raw:
    """What is between the marks, and what is around them."""
    before, begun, rest = answer.output.partition(question.begin)
    body, ended, after = rest.partition(question.end)
    if not begun or not ended:
        # The beginning of ours without its end is not noise of the profile.
        return Raw(answer.host, trouble=_why_nothing(answer), noise=before.strip())
    noise = "\n".join(part.strip() for part in (before, after) if part.strip())
    text = body.strip()
    if text.startswith("raw "):
        system, commands = _read_without_python(text)
        return Raw(answer.host, "", noise, answer.errors, system, "", commands)
    try:
        data = json.loads(text)
    except ValueError as error:
        return Raw(answer.host, trouble=f"its answer is garbled: {error}", noise=noise)
    return Raw(
        answer.host,
        "",
        noise,
        answer.errors,
        data["system"],
        data["python"],
        data["commands"],
        data["tasks"],
    )


def _why_nothing(answer: Answer) -> str:
    if answer.timed_out or answer.unreachable:
        return answer.reason
    return f"the probe ended without an answer: {answer.reason}"


def _read_without_python(text: str) -> tuple[str, dict[str, dict[str, Any]]]:
    system = text.split("\n")[0].removeprefix("raw ")
    commands: dict[str, dict[str, Any]] = {}
    for line in text.split("\n"):
        if line.startswith("@ "):
            _, name, code = line.split()
            done = code.isdigit()
            commands[name] = {"state": "done" if done else code, "out": "", "err": ""}
            commands[name]["code"] = int(code) if done else None
        elif line.startswith("| "):
            commands[name]["out"] += line[2:] + "\n"
        elif line.startswith("! "):
            commands[name]["err"] += line[2:] + "\n"
    return system, commands


def shown_commands(plan: Plan, needed: set[str], host: str) -> list[list[str]]:
    """For --dry-run: what the probe would run on that host, Mac or Linux, each once."""
    tables = commands_for(plan, host, needed)
    systems = ("Darwin",) if plan.rdma else tuple(tables)
    seen = [argv for system in systems for argv, _ in tables[system].values()]
    return [argv for place, argv in enumerate(seen) if argv not in seen[:place]]
