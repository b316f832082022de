"""Looks at what the ranks need and are: Python, the copies, the model, the server, its answer."""

import json
import os
import re
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

from scripts.lib.hosts.on_hosts import LOCAL_HOST
from scripts.lib.settings.interpreter import VENV_PYTHON, problem
from scripts.lib.setup.look import HOLDS, NEEDED, NOT_HERE, STUCK, Look, failures, lines
from scripts.lib.setup.site import Site
from scripts.lib.sync import checkout, environment
from scripts.lib.sync.parallel import Failure
from scripts.lib.sync.probe import probe, token_file
from scripts.lib.sync.versions import ask_versions, compare

SCRIPT_WITHIN_S = 180.0
ANSWER_WITHIN_S = 120.0
PROMPT = "The capital of France is"
BODY = {"prompt": PROMPT, "max_tokens": 16, "temperature": 0}
NOTHING_RUNS = 3  # of status.sh


def own_environment(site: Site) -> Look:
    """The ranks' Python is here and has what is pinned."""
    why = problem(site.python)
    if not why:
        try:
            told = ask_versions(LOCAL_HOST, site.python, site.root)
        except Failure as failure:
            why = str(failure)
        else:
            has, name = told["packages"], site.short(Path(site.python))
            wrong = {each: version for each, version in pins(site.root) if has[each] != version}
            if not wrong:
                return Look(HOLDS, f"{name}, Python {told['python']}")
            why = "; ".join(f"{name} has no {each} {version}" for each, version in wrong.items())
    if site.python != str(VENV_PYTHON):
        return Look(STUCK, f"{why}; PYTHON or ENV_NAME names it, so it is yours to mend")
    return Look(NEEDED, why)


def pins(root: Path) -> list[tuple[str, str]]:
    """Packages and their versions."""
    text = (root / "requirements.txt").read_text("utf-8")
    return re.findall(r"^([A-Za-z0-9_.-]+)(?:\[[^]]*\])?==([^;\s]+)", text, re.M)


def same_python(site: Site) -> Look:
    """Every host can run a copy of the environment: it has the same Python at the same path."""
    try:
        env = environment.describe(site.python)
    except Failure as failure:
        return Look(STUCK, str(failure))
    if env.base is None:
        return Look(HOLDS, f"{env.prefix} has a Python of its own, which is copied with it")
    with token_file(site.root / checkout.STATE) as token:

        def look(host: str) -> str:
            facts = probe(host, token, [], environment.base_program(env))
            there = facts.more.partition(environment.BASE)[2].partition("\n")[0]
            if there != env.version:
                raise Failure(f"{env.base} is {there or 'not there'}, here {env.version}")
            return ""

        wrong = failures(site, look)
    if wrong and site.python != str(VENV_PYTHON):
        return Look(STUCK, f"{lines(wrong)}; PYTHON names it, so bring all to the same yourself")
    return Look(NEEDED, lines(wrong)) if wrong else Look(HOLDS, f"{env.base}, {env.version}")


def copies(site: Site) -> Look:
    """Every host has this checkout and environment, and imports them."""
    try:
        here = ask_versions(LOCAL_HOST, site.python, site.root)
    except Failure as failure:
        return Look(STUCK, str(failure))

    def look(host: str) -> str:
        if differences := compare(here, ask_versions(host, site.python, site.root)):
            raise Failure("; ".join(differences[:3]))
        return ""

    wrong = failures(site, look)
    return Look(NEEDED, lines(wrong)) if wrong else Look(HOLDS, "the same code and packages")


def model(site: Site) -> Look:
    """It is whole, and the same on every host."""
    folder = site.model_dir
    if not folder.is_dir():
        return Look(NEEDED, f"{folder} is not there")
    more = ["--check", "models"] if site.several else []
    told = script(site, "verify_cluster.sh", "--check", "model", *more)
    if told.returncode == 0:
        return Look(HOLDS, f"{folder}{' and the others' * site.several} on every host")
    failed = [line for line in told.stdout.splitlines() if line.startswith("FAIL")]
    return Look(NEEDED, "\n".join(failed) or told.stderr.strip())


def benchmark(site: Site) -> Look:
    """It was run for these hosts and this model, or cannot be now."""
    if site.measured == site.what_is_measured:
        return Look(HOLDS, "it was run for these hosts and this model; again: scripts/bench.sh")
    if server(site) is not None:
        return Look(NOT_HERE, "a server runs, and the devices are its own")
    return Look(NEEDED)


def server(site: Site) -> dict | None:
    """What status.sh tells of the one on our port; None if none runs."""
    told = script(site, "status.sh", "--json", "--port", str(site.port))
    if told.returncode == NOTHING_RUNS:
        return None
    try:
        (found,) = json.loads(told.stdout.splitlines()[-1])["servers"]
    except (ValueError, KeyError, IndexError):
        raise Failure(f"status.sh: {told.stderr.strip() or told.stdout.strip()}") from None
    return found | {"well": told.returncode == 0}


def serving(site: Site) -> Look:
    """Every rank of a server on these hosts is well."""
    found = server(site)
    if found is None:
        return Look(NEEDED, f"no server runs on port {site.port}")
    hosts = [rank["host"] for rank in found["ranks"]]
    if sorted(hosts) != sorted(site.hosts):
        return Look(NEEDED, f"a server runs on other hosts: {', '.join(hosts)}", {"stop": ()})
    if found["model"] != (site.model_id or site.model_dir.name):
        return Look(NEEDED, f"a server runs with another model: {found['model']}", {"stop": ()})
    if not found["well"]:
        return Look(STUCK, f"a server runs on port {site.port} and is not well: scripts/status.sh")
    return Look(HOLDS, f"{found['model']} on {len(hosts)} ranks, {found['url']}")


def answer(site: Site) -> Look:
    """The server completes a sentence."""
    found = server(site)
    if found is None:
        return Look(STUCK, f"no server runs on port {site.port}")
    request = urllib.request.Request(f"{found['url']}/v1/completions", json.dumps(BODY).encode())
    request.add_header("Content-Type", "application/json")
    if site.key:
        request.add_header("Authorization", f"Bearer {site.key}")
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_WITHIN_S) as told:
            text = json.load(told)["choices"][0]["text"]
    except urllib.error.HTTPError as error:
        return Look(STUCK, f"{error}: {error.read(1000).decode('utf-8', 'replace')}")
    except (OSError, ValueError, LookupError) as error:
        return Look(STUCK, f"{found['url']}: {error}")
    return Look(HOLDS, f"{PROMPT!r} goes on: {text!r}")


def script(site: Site, name: str, *arguments: str) -> subprocess.CompletedProcess:
    """One of ours that only looks, its output kept."""
    return subprocess.run(
        [f"scripts/{name}", *arguments], cwd=site.root, env=os.environ | site.settings,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SCRIPT_WITHIN_S,
        start_new_session=True,
    )  # fmt: skip
