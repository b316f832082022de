"""The command line of the doctor, called by verify_cluster.sh with settings already checked.

Exit codes: 0 nothing failed, 1 something did, 2 usage, 3 a file is missing. The result goes to
stdout; on a terminal stderr tells meanwhile who has answered.
"""

import argparse
import dataclasses
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from scripts.lib.cabling.pings import PING, PINGS_WITHIN_S, ping_far_ends
from scripts.lib.doctor import checks, report
from scripts.lib.doctor.ask import REMOTE_COMMAND, ask_hosts, shown_commands
from scripts.lib.doctor.cluster import Cluster, interface_of
from scripts.lib.doctor.facts import read_facts
from scripts.lib.doctor.findings import FAIL, Finding
from scripts.lib.doctor.fix import ask_and_fix, offered
from scripts.lib.doctor.plan import Plan
from scripts.lib.doctor.probe import look_for_ranks
from scripts.lib.doctor.processes import living_processes
from scripts.lib.hosts.hostfile import (
    Hostfile,
    HostfileError,
    choose_backend,
    is_address,
    read_hostfile,
    ssh_name_problem,
)
from scripts.lib.hosts.on_hosts import LOCAL_HOST, Answer, command_for
from scripts.lib.model.list_models import SOME_MODEL, read_list
from server.protocol.domains import MOST
from server.protocol.fingerprint import code_fingerprint
from server.protocol.setting import SettingError

PROGRAM = "verify_cluster.sh"
PINGS_AT_LEAST_S = 8.0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=PROGRAM, add_help=False)
    parser.add_argument("--checkout", type=Path, required=True)
    parser.add_argument("--python", required=True)
    parser.add_argument("--http-port", type=int, required=True)
    parser.add_argument("--cluster-port", type=int, required=True)
    parser.add_argument("--backend", default="")
    parser.add_argument("--hostfile", type=Path)
    parser.add_argument("--local", type=int, default=0)
    parser.add_argument("--named", action="append", default=[])
    parser.add_argument("--model-dir", default="")
    for option in ("--model-id", "--models", "--models-dir", "--pinned"):
        parser.add_argument(option, default="")
    parser.add_argument("--models-gb", type=float)
    parser.add_argument("--draft-model-dir")
    parser.add_argument("--parallel", default="auto")
    parser.add_argument("--trust-remote-code", action="store_true")
    parser.add_argument("--kv-budget-gb", type=float)
    parser.add_argument("--kv-bits", default="off")
    parser.add_argument("--kv-bits-from", type=int, default=0)
    parser.add_argument("--context-max", type=int)
    parser.add_argument("--fast-synch", default="")
    parser.add_argument("--domains", type=int, default=MOST)
    parser.add_argument("--deadline", type=float, default=60.0)
    parser.add_argument("--host", action="append", default=[])
    parser.add_argument("--check", action="append", default=[])
    for flag in ("--json", "--list", "--fix", "--yes", "--dry-run"):
        parser.add_argument(flag, action="store_true")
    return parser.parse_args(arguments)


def make_plan(options: argparse.Namespace) -> Plan:
    """What would be launched. Ends the program for a host or check that there is not."""
    if options.local:
        hostfile, name = None, ""
        ranks: tuple[str, ...] = (LOCAL_HOST,) * options.local
        backend, addresses = "ring", ()
    elif options.named:
        hostfile, name = None, ""
        ranks = tuple(dict.fromkeys(options.named))
        for host in ranks:
            if problem := ssh_name_problem(host):
                stop(2, f"{host!r}: {problem}")
        # Nobody has said what they will talk over; Macs have come for RDMA.
        backend = options.backend or ("jaccl" if sys.platform == "darwin" else "ring")
        addresses = ()
    else:
        hostfile, name = hostfile_of(options.hostfile), str(options.hostfile)
        name = name.removeprefix(f"{options.checkout}/")
        ranks = tuple(host.ssh for host in hostfile.hosts)
        backend = options.backend or choose_backend(hostfile)
        # What a template leaves to be filled in is no address to try.
        addresses = tuple(tuple(ip for ip in host.ips if is_address(ip)) for host in hostfile.hosts)
    wanted = options.check or checks.NAMES
    for check in wanted:
        if check not in checks.NAMES:
            stop(2, f"--check {check}: must be one of {', '.join(checks.NAMES)}")
    for host in options.host:
        if host not in ranks:
            stop(2, f"--host {host}: must be one of {', '.join(dict.fromkeys(ranks))}")
    listed = options.model_dir, options.model_id, options.models, options.models_dir, options.pinned
    asked = [host for host in dict.fromkeys(ranks) if not options.host or host in options.host]
    return Plan(
        ranks=ranks,
        asked=() if any(map(ssh_name_problem, ranks)) else tuple(asked),
        checks=frozenset(wanted),
        backend=backend,
        local=bool(options.local),
        checkout=str(options.checkout),
        python=options.python,
        http_port=options.http_port,
        cluster_ports=cluster_ports(options.cluster_port, ranks, backend, addresses),
        addresses=addresses,
        hostfile=hostfile,
        hostfile_name=name,
        model_dir=first_model(listed),
        listed=listed,
        models_gb=options.models_gb,
        draft_model_dir=options.draft_model_dir,
        parallel=options.parallel,
        trust_remote_code=options.trust_remote_code,
        kv_budget_gb=options.kv_budget_gb,
        kv_bits=options.kv_bits,
        kv_bits_from=options.kv_bits_from,
        context_max=options.context_max,
        fast_synch=options.fast_synch or from_envs(hostfile, "MLX_METAL_FAST_SYNCH"),
        domains=options.domains,
        pins=read_pins(options.checkout / "requirements.txt"),
        code=own_code(options.checkout),
        deadline_s=options.deadline,
    )


def first_model(listed: Sequence[str]) -> str | None:
    """The folder of the one that is loaded at the start; None where it cannot be told from here."""
    model_dir, _, models, models_dir, _ = listed
    if model_dir or not (models or models_dir):
        return model_dir or None
    try:
        first = read_list(listed, unseen=True)[0]
    except SettingError:
        return None  # which the hosts tell
    return None if first.name == SOME_MODEL else str(first.folder)


def hostfile_of(path: Path) -> Hostfile:
    try:
        return read_hostfile(path)
    except OSError as error:
        stop(3, f"{path}: {error.strerror}")
    except HostfileError as error:
        stop(1, f"{path}: {error}")


def cluster_ports(
    first: int, ranks: Sequence[str], backend: str, addresses: Sequence[Sequence[str]]
) -> tuple[tuple[int, ...], ...]:
    """The ports on which each rank listens, given out as mlx.launch does; 0: not known yet."""
    if not first:
        return ((),) * len(ranks)
    if backend.startswith("jaccl"):
        return ((first,), *((),) * (len(ranks) - 1))
    ports, following = [], first
    for rank in range(len(ranks)):
        count = max(1, len(addresses[rank])) if addresses else 1
        ports.append(tuple(range(following, following + count)))
        following += count
    return tuple(ports)


def from_envs(hostfile: Hostfile | None, name: str) -> str:
    """The value of a variable in the hostfile's "envs"; the last one counts."""
    entries = [entry.partition("=") for entry in (hostfile.envs if hostfile else ())]
    return next((value for key, _, value in reversed(entries) if key == name), "")


def read_pins(path: Path) -> dict[str, str]:
    try:
        found = re.findall(r"^([\w.-]+)(?:\[\w+\])?==([\w.]+)", path.read_text("utf-8"), re.M)
    except OSError:
        return {}
    return dict(found)


def own_code(checkout: Path) -> str | None:
    try:
        return code_fingerprint(checkout)
    except OSError:
        return None


def supervised_here(checkout: Path) -> frozenset[str]:
    """Run ids of our servers whose supervisor lives on this machine."""
    entries = look_for_ranks({"root": "", "checkout": str(checkout)}, None)
    living = living_processes(entries)
    return frozenset(process.run_id for process in living if process.kind == "supervisor")


def examine(plan: Plan) -> tuple[Cluster, list[Finding]]:
    """Ask all hosts and judge."""
    talk = sys.stderr.isatty()
    if talk and plan.asked:
        say(f"asking {len(plan.asked)} host(s), {plan.deadline_s:.0f} s at most")

    def tell(answer: Answer) -> None:
        if talk:
            lost = answer.timed_out or answer.unreachable
            words = answer.reason if lost else f"answered after {answer.seconds:.1f} s"
            say(f"{answer.host}: {words}")

    began = time.monotonic()
    raws = ask_hosts(plan, checks.needed(plan), tell) if plan.asked else []
    facts = {raw.host: read_facts(raw) for raw in raws}
    cluster = Cluster(plan, facts, supervised_here(Path(plan.checkout)))
    if "ends" in {check.name for check in checks.chosen(plan)}:
        # The addresses of the far ends are known only now, so it takes a second ssh; and a moment
        # more, should a host that hangs have used up the deadline.
        left_s = plan.deadline_s - (time.monotonic() - began)
        within_s = min(PINGS_WITHIN_S, max(left_s, PINGS_AT_LEAST_S))
        pings = ping_far_ends(cluster.networks, cluster.used, within_s=within_s)
        cluster = dataclasses.replace(cluster, pings=pings)
    # Without a host that can be asked there is the hostfile alone to judge.
    only = None if plan.asked else [c for c in checks.CHECKS if c.name == "hostfile"]
    return cluster, checks.judge(cluster, only)


def main(arguments: Sequence[str]) -> int:
    """The command line; see the module's docstring."""
    options = parse(arguments)
    if options.list:
        width = max(map(len, checks.NAMES))
        for check in checks.CHECKS:
            print(f"{check.name.ljust(width)}  {check.about}")
        return 0
    if options.fix and not options.yes and not sys.stdin.isatty():
        stop(2, "--fix asks before each change, and there is no terminal: add --yes")
    plan = make_plan(options)
    if options.dry_run:
        show(plan)
        return 0
    cluster, findings = examine(plan)
    if options.fix and not offered(findings):
        say("nothing here can be mended by --fix")
    elif options.fix:
        print(report.text(findings, plan.asked), end="", file=sys.stderr)
        if ask_and_fix(findings, options.checkout, yes=options.yes):
            say("looking again")
            cluster, findings = examine(plan)
    if options.json:
        print(report.as_json(findings, cluster))
    else:
        print(report.text(findings, plan.asked), end="")
    return int(any(finding.verdict == FAIL for finding in findings))


def show(plan: Plan) -> None:
    """--dry-run: the ssh commands, and what the probe would run at their far ends."""
    needed = checks.needed(plan)
    for place, host in enumerate(plan.asked):
        print(f"+ {shlex.join(command_for(host, [*REMOTE_COMMAND, str(place)]))}")
        for argv in shown_commands(plan, needed, host):
            # A program on the command line is shown by its name alone.
            words = ["..." if "\n" in word else word for word in argv]
            print(f"    {host} {shlex.join(words)}")
        if "ends" in {check.name for check in checks.chosen(plan)}:
            for device in plan.devices(host):
                print(f"    {host} {shlex.join([*PING, interface_of(device)])} FAR_END")


def say(words: str) -> None:
    print(f"{PROGRAM}: {words}", file=sys.stderr)


def stop(code: int, words: str) -> NoReturn:
    say(words)
    sys.exit(code)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
