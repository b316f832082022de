"""The steps of the set-up, in order: what each is for, how it looks, and its commands.

Every command is one of the scripts, which can be run by itself, or one line of a tool of the
system. To add a step: its look, its commands, and its line in STEPS.
"""

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scripts.lib.doctor import checks
from scripts.lib.hosts.hostfile import host_name
from scripts.lib.hosts.reach import SSH_OPTIONS
from scripts.lib.setup import look_hosts, look_ranks
from scripts.lib.setup.command import Command
from scripts.lib.setup.look import Look, always
from scripts.lib.setup.site import Site

# What the doctor cannot say before the hostfile is there, and the copies.
LATER = (
    "hostfile", "python", "versions", "checkout", "compute", "wheel", "model", "heads", "formats",
    "models", "memory", "even", "ports", "gid", "bridge", "ends", "speed", "cabling", "queues",
    "address", "path", "firewall",
)  # fmt: skip
KEY = "~/.ssh/id_ed25519"


@dataclass(frozen=True)
class Step:
    """commands: for what was found; None with --dry-run, when nobody was asked. changes: ask first.
    again: look again when they have been run, as it must hold then."""

    name: str
    does: str
    look: Callable[[Site], Look]
    commands: Callable[[Site, Look | None], list[Command]] = lambda site, look: []
    changes: bool = True
    again: bool = True
    needs_model: bool = False


def script(name: str, *words: str, env: dict[str, str] | None = None) -> Command:
    return Command((f"scripts/{name}", *words), env or {})


def let_in(site: Site, look: Look | None) -> list[Command]:
    made, key = [], Path(KEY).expanduser()
    if look is None or not any(key.parent.glob("id_*.pub")):
        # Without a passphrase, which nobody could be asked for when a service starts at boot.
        made.append(Command(("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))))
    hosts = site.hosts if look is None else look.hosts
    return made + [
        Command(("ssh-copy-id", "-o", "ConnectTimeout=5", host), asks=True) for host in hosts
    ]


def as_root(site: Site, host: str, lines: list[str]) -> Command:
    """Lines of shell for a host's superuser, up to the first that fails. One password for all."""
    line = shlex.join(["sh", "-ec", "\n".join(lines)])
    if site.at_terminal:
        return Command(("ssh", "-t", host, f"sudo {line}"), asks=True)
    return Command(("ssh", *SSH_OPTIONS.split(), host, f"sudo -n {line}"))


def give_place(site: Site, look: Look | None) -> list[Command]:
    root = shlex.quote(str(site.root))
    line = f'mkdir -p {root} && chown "$SUDO_USER" {root}'
    return [as_root(site, host, [line]) for host in (look.hosts if look else site.hosts[1:])]


def early_doctor(site: Site, look: Look | None) -> list[Command]:
    wanted = [name for name in checks.NAMES if name not in LATER]
    words = [word for name in wanted for word in ("--check", name)]
    env = {"BACKEND": "ring"} if site.ring_tcp else {}
    return [script("verify_cluster.sh", *words, *site.hosts, env=env)]


def give_addresses(site: Site, look: Look | None) -> list[Command]:
    if look is None and site.ring_tcp:
        return []
    if look is None:  # it tells the commands, and changes nothing
        told = script("make_hostfile.sh", "--dry-run", *site.hosts)
        return [told, *(as_root(site, host, ["COMMANDS"]) for host in site.hosts)]
    return [as_root(site, host, list(lines)) for host, lines in look.hosts.items()]


def write_hostfile(site: Site, look: Look | None) -> list[Command]:
    options = ["--ring-tcp"] * site.ring_tcp + ["--force"] * site.hostfile.exists()
    return [
        script("make_hostfile.sh", *options, "--output", site.short(site.hostfile), *site.hosts)
    ]


def make_environment(site: Site, look: Look | None) -> list[Command]:
    lines = ". scripts/lib/common.sh; . scripts/lib/venv.sh; ensure_venv requirements.txt"
    return [Command(("bash", "-euo", "pipefail", "-c", lines, "setup_cluster.sh"))]


def own_python(site: Site, look: Look | None) -> list[Command]:
    return [Command((site.python, "scripts/lib/module.py", "lib.setup.own_python"))]


def sync(site: Site, look: Look | None) -> list[Command]:
    return [script("sync_nodes.sh", *site.hosts)]


def bring_model(site: Site, look: Look | None) -> list[Command]:
    there = site.model_dir and site.model_dir.is_dir()
    if site.several and there:
        return [script("sync_model.sh", "--all", *site.hosts, env=site.settings)]
    source = site.short(site.model_dir) if there else site.model or "MODEL"
    return [script("sync_model.sh", source, *site.hosts, env=site.hostfile_setting)]


def verify(site: Site, look: Look | None) -> list[Command]:
    # While a server runs the devices are its own.
    idle = look is None or look_ranks.server(site) is None
    return [script("verify_cluster.sh", *(["--link"] * idle), env=site.settings)]


def measure(site: Site, look: Look | None) -> list[Command]:
    return [script("bench.sh", env=site.settings)]


def serve(site: Site, look: Look | None) -> list[Command]:
    port = ("--port", str(site.port))
    env = {"HOSTFILE": site.short(site.hostfile)} | site.settings
    start = script("run_openai_cluster_server.sh", "--detach", *port, env=env)
    stop = script("stop_openai_cluster_server.sh", *port)
    return [stop, start] if look and "stop" in look.hosts else [start]


def complete(site: Site, look: Look | None) -> list[Command]:
    url = f"http://{host_name(site.hosts[0])}:{site.port}/v1/completions"
    json_type = ("-H", "Content-Type: application/json")
    return [Command(("curl", "-s", url, *json_type, "-d", json.dumps(look_ranks.BODY)))]


STEPS = (
    Step("ssh", "let rank 0 log in everywhere without a password", look_hosts.ssh, let_in),
    Step("place", "give each host a folder for the checkout", look_hosts.place, give_place),
    Step(
        "doctor",
        "look at every host, as far as it can be before anything is copied",
        always("changes nothing"),
        early_doctor,
        changes=False,
        again=False,
    ),
    Step(
        "addresses",
        "do with sudo what make_hostfile.sh prints for each Mac: bridge, addresses of ports",
        look_hosts.addresses,
        give_addresses,
    ),
    Step("hostfile", "write the hostfile", look_hosts.hostfile, write_hostfile),
    Step(
        "environment",
        "make .venv here, with the pinned packages",
        look_ranks.own_environment,
        make_environment,
    ),
    Step(
        "python",
        "give the checkout a Python of its own, as other hosts have another one",
        look_ranks.same_python,
        own_python,
    ),
    Step("sync", "copy checkout and environment to every host", look_ranks.copies, sync),
    Step(
        "model",
        "get the model, and copy it, and all others of the list, to every host",
        look_ranks.model,
        bring_model,
        needs_model=True,
    ),
    Step(
        "verify",
        "look at everything that a launch needs, and measure the links",
        always("changes nothing"),
        verify,
        changes=False,
        again=False,
        needs_model=True,
    ),
    Step(
        "benchmark",
        "measure tokens per second; changes nothing",
        look_ranks.benchmark,
        measure,
        again=False,
        needs_model=True,
    ),
    Step("serve", "start the server", look_ranks.serving, serve, needs_model=True),
    Step("answer", "ask the server something", look_ranks.answer, complete, changes=False),
)
NAMES = tuple(step.name for step in STEPS)
