"""Is the same software everywhere, and does it work: Python, packages, checkout, MLX. Pure."""

import shlex
from collections.abc import Iterator
from dataclasses import replace

from scripts.lib.doctor.cluster import Cluster
from scripts.lib.doctor.facts import HostFacts
from scripts.lib.doctor.findings import FAIL, PASS, SKIP, WARN, Finding, Fix, listed, most_common
from scripts.lib.doctor.judge_guards import PRIVACY, let_in
from scripts.lib.doctor.mac_text import version_numbers
from scripts.lib.hosts.on_hosts import LOCAL_HOST

LEAST_PYTHON = (3, 11)


def sync(cluster: Cluster, host: str) -> Fix:
    """The checkout and its environment as rank 0 has them; on rank 0 itself, made anew."""
    plan = cluster.plan
    if host not in (plan.rank0, LOCAL_HOST):
        return Fix(
            "replicates the checkout and its environment from rank 0",
            command=f"scripts/sync_nodes.sh {host}",
            here=True,
        )
    install = pip_install(plan.python, plan.checkout)
    words = "rank 0 is the one that the others get theirs from, so mend it first"
    return Fix("" if len(plan.hosts) == 1 else words, command=install)


def pip_install(python: str, checkout: str, *options: str) -> str:
    """The command that installs what the checkout pins. To a Python of an older SDK macOS 26
    is 16.0, for which pip takes wheels without JACCL; the variable shows the true version."""
    words = (str(python), "-m", "pip", "install", *options, "-r", f"{checkout}/requirements.txt")
    return f"SYSTEM_VERSION_COMPAT=0 {shlex.join(words)}"


def _not_made_yet(cluster: Cluster) -> bool:
    """With --local the first start makes .venv."""
    plan = cluster.plan
    return plan.local and plan.python == f"{plan.checkout}/.venv/bin/python"


def python(cluster: Cluster) -> Iterator[Finding]:
    """The ranks' interpreter is there, is of a right kind, and has the packages."""
    for facts in cluster.reached:
        yield _judge_python(cluster, facts)


def _judge_python(cluster: Cluster, facts: HostFacts) -> Finding:
    path, host = cluster.plan.python, facts.host
    if "python" in facts.unread:
        return Finding("python", host, SKIP, "see folders")
    if facts.python is None:
        reason = facts.why("versions").replace("versions", path) or f"no answer from {path}"
        if not facts.why("versions") and not facts.tasks_ran:
            reason = f"there is no {path}, nor any other Python from 3.9 on"
        if "there is no" in reason and _not_made_yet(cluster):
            return Finding("python", host, SKIP, "no .venv yet: the first start makes it")
        # The Python that .venv is made with may be in such a folder.
        guarded = PRIVACY in reason
        return Finding(
            "python",
            host,
            FAIL,
            reason,
            'the rank ends with "No such file or directory", or does not start at all',
            let_in(facts, [path]) if guarded else _new_environment(cluster, facts),
        )
    words, symptom = _wrong_kind(facts)
    if words:
        fix = Fix(f"install an arm64 Python 3.12 on {host} and make {path} with it again")
        return Finding("python", host, FAIL, words, symptom, fix)
    if missing := [name for name, version in facts.packages.items() if version is None]:
        install = pip_install(path, cluster.plan.checkout)
        return Finding(
            "python",
            host,
            FAIL,
            f"it has no {listed(missing)}",
            f"ModuleNotFoundError: No module named '{missing[0].replace('-', '_')}'",
            Fix("", command=install),
        )
    return Finding("python", host, PASS, facts.python)


def _new_environment(cluster: Cluster, facts: HostFacts) -> Fix:
    fix = sync(cluster, facts.host)
    folder, found, _ = cluster.plan.python.rpartition("/bin/")
    if not fix.here and found:
        fix = replace(fix, command=f"python3.12 -m venv {shlex.quote(folder)} && {fix.command}")
    if facts.is_mac and facts.homebrew is False:
        # Nor Apple's developer tools, perhaps: its python3 and git then only open a window.
        words = (
            "first a Python of the same version as rank 0's: there is no Homebrew, whose installer "
            "brings Apple's Command Line Tools, too (docs/from-scratch.md, step 2); then "
            "/opt/homebrew/bin/brew install python@3.12"
        )
        fix = replace(fix, words="; ".join(filter(None, (fix.words, words))))
    return fix


def _wrong_kind(facts: HostFacts) -> tuple[str, str]:
    """Why no package would help this interpreter, and what it would show; ("", "") if one would."""
    if version_numbers(facts.python or "")[:2] < LEAST_PYTHON:
        return f"it is Python {facts.python}: must be 3.11 or later", "a SyntaxError"
    if facts.is_mac and facts.machine == "x86_64":
        return (
            "it is a Python for Intel, run by Rosetta: must be for arm64",
            'pip finds no mlx, or "bad CPU type in executable"',
        )
    return "", ""


def versions(cluster: Cluster) -> Iterator[Finding]:
    """Python and the packages are the same everywhere, and those that were tested together."""
    known = [f for f in cluster.reached if f.packages and not _wrong_kind(f)[0]]
    tables = {
        facts.host: {"python": facts.python, **{k: v for k, v in facts.packages.items() if v}}
        for facts in known
    }
    names = list(dict.fromkeys(name for table in tables.values() for name in table))
    usual = {name: most_common(t[name] for t in tables.values() if name in t) for name in names}
    pins = cluster.plan.pins
    for host, table in tables.items():
        odd = [name for name in table if table[name] != usual[name]]
        unpinned = [name for name in table if pins.get(name, table[name]) != table[name]]
        if odd:
            yield Finding(
                "versions",
                host,
                FAIL,
                listed(f"{name} {table[name]}, the others {usual[name]}" for name in odd),
                'exit code 78 with "the ranks differ:"; with another server, hangs or garbage',
                sync(cluster, host),
            )
        elif unpinned:
            yield Finding(
                "versions",
                host,
                WARN,
                listed(f"{n} {table[n]}, requirements.txt has {pins[n]}" for n in unpinned),
                "the engine builds on internals of these packages: exceptions, or wrong answers",
                Fix(command=pip_install(cluster.plan.python, cluster.plan.checkout)),
            )
        else:
            words = f"mlx {table.get('mlx')}, mlx-lm {table.get('mlx-lm')}"
            yield Finding("versions", host, PASS, words)
    yield from _unknown("versions", cluster, known)


def _unknown(check: str, cluster: Cluster, known: list[HostFacts]) -> Iterator[Finding]:
    for facts in cluster.reached:
        if facts not in known:
            yield Finding(check, facts.host, SKIP, "see python")


def checkout(cluster: Cluster) -> Iterator[Finding]:
    """The same code at the same place."""
    plan = cluster.plan
    codes = [facts.code for facts in cluster.reached if facts.code]
    # The code here is what sync_nodes.sh would bring there.
    usual = plan.code or most_common(codes)
    whose = "this machine's" if plan.code else "the other hosts'"
    for facts in cluster.reached:
        if "checkout" in facts.unread:
            yield Finding("checkout", facts.host, SKIP, "see folders")
        elif facts.code_exists is None:
            yield Finding("checkout", facts.host, SKIP, "it could not be looked at without Python")
        elif not facts.code_exists:
            yield Finding(
                "checkout",
                facts.host,
                FAIL,
                f"there is no {plan.checkout}",
                'the rank says "Failed to change directory"',
                sync(cluster, facts.host),
            )
        elif facts.code != usual:
            yield Finding(
                "checkout",
                facts.host,
                FAIL,
                f"the code in {plan.checkout} differs from {whose}",
                'exit code 78 with "the ranks differ: ... server code"',
                _sync_code(cluster, facts.host),
            )


def _sync_code(cluster: Cluster, host: str) -> Fix:
    if host == cluster.plan.rank0:
        return Fix(f"bring {cluster.plan.checkout} on {host} to the commit of the checkout here")
    return sync(cluster, host)


def wheel(cluster: Cluster) -> Iterator[Finding]:
    """MLX was built with JACCL."""
    for facts in cluster.reached:
        if facts.jaccl is None:
            yield Finding("wheel", facts.host, SKIP, "see python and compute")
        elif not facts.jaccl:
            yield Finding(
                "wheel",
                facts.host,
                FAIL,
                'mx.distributed.is_available("jaccl") is False',
                '"Cannot initialize jaccl distributed backend", or every rank in a world of 1',
                Fix(
                    "JACCL is in the mlx-metal wheel for macOS 26 alone; a Python that was built "
                    "with an older SDK takes macOS 26 for 16.0, unless it is told not to",
                    command=pip_install(
                        cluster.plan.python,
                        cluster.plan.checkout,
                        "--force-reinstall",
                        "--no-cache-dir",
                    ),
                ),
            )


def compute(cluster: Cluster) -> Iterator[Finding]:
    """MLX can add two numbers there, in time."""
    for facts in cluster.reached:
        if facts.evaluated:
            continue
        no_mlx = facts.packages is None or facts.packages.get("mlx") is None
        reason = facts.why("mlx").replace("mlx", "MLX", 1)
        if no_mlx or not reason:
            yield Finding("compute", facts.host, SKIP, "see python")
        elif facts.hangs("mlx"):
            yield Finding(
                "compute",
                facts.host,
                FAIL,
                "adding two small arrays with MLX does not end",
                "everything hangs, even one rank alone; the GPU is wedged",
                Fix("restart that host; leave MLX_METAL_FAST_SYNCH unset"),
            )
        else:
            yield Finding(
                "compute",
                facts.host,
                FAIL,
                reason,
                "the rank ends while importing MLX or at its first step",
                sync(cluster, facts.host),
            )
