#!/usr/bin/env python3
"""Asks all hosts how they are cabled and writes the hostfile that follows.

It is make_hostfile.sh, whose header is the help, on the machine that launches; it needs the
standard library alone, so that it works before there is a venv. Two ssh a host, one that asks and
one that pings, all hosts at once, each with a deadline; a host is only asked, never changed.

stdout: the file's name once it is written; with --dry-run its content, with --dot the cabling for
Graphviz. stderr: the cabling drawn, and what is missing.

Why not mlx.distributed_config, which writes the same file from the same three tools:
- It asks the hosts one after the other, without deadline, and ends in a traceback at a host whose
  tools are missing or print something else.
- It looks at neither the speed of a link nor the port beside Ethernet, nor whether the ports are
  out of the bridge, nor into what network its addresses fall, and where a cable is missing it names
  one pair, not all.
- It wants mlx here, and sudo there: for its hostfile it also takes the bridge down and gives the
  ports addresses, which are gone after a restart, or waits for Enter at each host.
The last is what it does well, so for addresses that need not last the runbook points to it. The
tests hold our matrix against the one that it makes of the same cabling.
"""

import argparse
import dataclasses
import ipaddress
import json
import os
import shlex
import shutil
import sys
from pathlib import Path

from scripts.lib.cabling.advice import advise, advise_tcp
from scripts.lib.cabling.cabling import cables
from scripts.lib.cabling.draw import draw_dot, draw_text
from scripts.lib.cabling.pings import Pings, ping_far_ends, to_ping
from scripts.lib.cabling.plan import TOPOLOGIES, Plan, make_plan, ring_hostfile
from scripts.lib.cabling.survey import (
    COMMAND,
    PROGRAM,
    SURVEY_WITHIN_S,
    Facts,
    SurveyError,
    networks_of,
    read_facts,
)
from scripts.lib.hosts.hostfile import (
    HostfileError,
    find_problems,
    parse_hostfile,
    read_hostfile,
    ssh_name_problem,
)
from scripts.lib.hosts.on_hosts import Answer, run_on_hosts
from scripts.lib.verbs import shared
from scripts.lib.verbs.exit_codes import MISSING
from scripts.lib.verbs.file_kind import no_file, write_whole
from scripts.lib.verbs.header import help_of
from scripts.lib.verbs.parser import Parser
from scripts.lib.verbs.verb_settings import ROOT, read_settings
from server.protocol.settings_table import DEFAULT_HOSTFILE

VERB = "make_hostfile.sh"
RING_HOSTFILE = "hostfiles/ring.local.json"  # of --ring-tcp


def main(arguments: list[str]) -> int:
    """The command line; see the module's docstring."""
    options = parse_arguments(arguments)
    read_settings(VERB, options)
    if shutil.which("ssh") is None:
        say("ssh is not installed: it is part of every macOS and Debian")
        return MISSING
    writes = not (options.dry_run or options.dot)
    if writes and options.output.exists() and not options.force:
        say(f"{options.output} exists: look at it, then overwrite it with --force")
        return 1
    facts = survey(options.host)
    if facts is None:
        return 1
    if options.address:
        first = options.host[0]
        facts[first] = dataclasses.replace(facts[first], told_address=options.address)
    if options.ring_tcp:
        plan = Plan("ring", None, tuple(cables({h: fact.ports for h, fact in facts.items()})))
        findings = advise_tcp(facts)
    else:
        plan = make_plan(facts, options.topology)
        pings = None if options.dot else ping(facts, plan)
        findings = advise(facts, plan, options.topology, pings)
    if options.dot:
        print(draw_dot(facts, plan), end="")
    elif not options.ring_tcp:
        print(draw_text(facts, plan), file=sys.stderr)
    for finding in findings:
        print(finding, file=sys.stderr)
    if options.dot:
        return 0
    if any(finding.severity == "error" for finding in findings):
        say("no hostfile: see the errors above")
        return 1
    envs = kept_envs(options.output)
    if options.ring_tcp:
        content = ring_hostfile(options.host, facts, envs)
    else:
        content = plan.hostfile(facts, envs)
    return put(layout(content), options)


def survey(hosts: list[str]) -> dict[str, Facts] | None:
    """The facts of every host, or None when one could not be asked, after naming each such host."""
    say(f"asking {len(hosts)} hosts how they are cabled (up to {SURVEY_WITHIN_S:.0f} s)")
    facts: dict[str, Facts] = {}
    failed = []

    def take(answer: Answer) -> None:
        try:
            if answer.unreachable:
                raise SurveyError(
                    f"{answer.reason}; check: ssh -o BatchMode=yes {answer.host} true"
                )
            facts[answer.host] = fact = read_facts(answer.host, answer.output)
        except SurveyError as error:
            failed.append(answer.host)
            reason = answer.reason if answer.timed_out else str(error)
            print(f"error: {answer.host}: {reason}", file=sys.stderr)
        else:
            peers = sum(port.peer is not None for port in fact.ports)
            ports = f"{len(fact.ports)} Thunderbolt ports, {peers} lead to computers"
            say(f"{answer.host}: {ports if fact.is_mac else fact.system}")

    run_on_hosts(hosts, COMMAND, within_s=SURVEY_WITHIN_S, stdin=PROGRAM, on_answer=take)
    if failed:
        say(f"no hostfile: {len(failed)} of {len(hosts)} hosts did not tell their cabling")
        return None
    return {host: facts[host] for host in hosts}


def ping(facts: dict[str, Facts], plan: Plan) -> Pings:
    """The ends of the cables that fit together ping each other."""
    networks = networks_of(facts)
    if cables_to_ping := len(to_ping(networks, plan.used)) // 2:
        say(f"pinging over {cables_to_ping} cables, from both ends")
    return ping_far_ends(networks, plan.used)


def kept_envs(path: Path) -> tuple[str, ...]:
    """The "envs" of the file that will be overwritten: they are the user's, not the cabling's."""
    try:
        envs = read_hostfile(path).envs
    except (OSError, HostfileError):
        return ()
    if envs:
        say(f'the "envs" of the old {path.name} are kept: {", ".join(envs)}')
    return envs


def layout(content: dict) -> str:
    """The file's text: a line for each key of each host, so that a matrix reads as one."""
    hosts = ",\n".join(
        "    {\n"
        + ",\n".join(f"      {json.dumps(key)}: {json.dumps(value)}" for key, value in host.items())
        + "\n    }"
        for host in content["hosts"]
    )
    head = "".join(
        f"  {json.dumps(key)}: {json.dumps(content[key])},\n" for key in ("backend", "envs")
    )
    return f'{{\n{head}  "hosts": [\n{hosts}\n  ]\n}}\n'


def put(text: str, options: argparse.Namespace) -> int:
    """Checks the text as the start scripts will, then prints or writes it."""
    problems = find_problems(parse_hostfile(text))
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        return 1
    if options.dry_run:
        print(text, end="")
        return 0
    try:
        write_whole(options.output, text)
    except OSError as error:
        say(f"{options.output}: {error.strerror}")
        return 3
    print(options.output, flush=True)
    say(f"next: HOSTFILE={shlex.quote(str(options.output))} scripts/verify_cluster.sh")
    return 0


def say(text: str) -> None:
    print(f"{VERB}: {text}", file=sys.stderr, flush=True)


def parser() -> Parser:
    made = Parser(VERB, help_of(VERB))
    shared.add(made, "--dry-run")
    made.add_argument("--output", type=shared.some)
    made.add_argument("--topology", type=shared.one_of(*TOPOLOGIES))
    made.add_argument("--ring-tcp", action="store_true")
    made.add_argument("--address", type=reachable_ipv4)
    made.add_argument("--force", action="store_true")
    made.add_argument("--dot", action="store_true")
    made.add_argument("host", nargs="*")
    return made


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line, with what options say together."""
    reader = parser()
    options = reader.parse_args(arguments)
    usual = ROOT / (RING_HOSTFILE if options.ring_tcp else DEFAULT_HOSTFILE)
    options.output = Path(os.path.abspath(options.output or usual))
    hosts = options.host
    if len(hosts) < 2:
        reader.error("name two hosts or more, rank 0 first")
    for host in hosts:
        if problem := ssh_name_problem(host):
            reader.error(f"host {host!r}: {problem}")
        if hosts.count(host) > 1:
            reader.error(f"host {host!r} is named {hosts.count(host)} times: name each Mac once")
    if problem := no_file(options.output):
        reader.error(f"--output '{options.output}': {problem}; name another")
    if options.dry_run and options.dot:
        reader.error("--dry-run and --dot: choose one")
    if options.ring_tcp and options.topology == "mesh":
        reader.error("--ring-tcp --topology mesh: the ring backend has no mesh")
    return options


def reachable_ipv4(text: str) -> str:
    """For --address: what the other ranks can reach."""
    try:
        address = ipaddress.IPv4Address(text)
        wrong = address.is_loopback or address.is_unspecified or address.is_multicast
    except ValueError:
        wrong = True
    if wrong:
        raise shared.wrong(text, "an IPv4 address that the other ranks can reach")
    return text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
