"""Looks at the hosts themselves: ssh, the checkout's place, the cables' addresses, the hostfile."""

import re

from scripts.lib.cabling.advice import advise
from scripts.lib.cabling.make_hostfile import survey
from scripts.lib.cabling.plan import make_plan
from scripts.lib.hosts.hostfile import Hostfile, find_problems
from scripts.lib.hosts.on_hosts import forget_key, run_on_hosts
from scripts.lib.setup.look import HOLDS, NEEDED, NOT_HERE, STUCK, Look, failures, lines
from scripts.lib.setup.site import RING_HOSTFILE, Site
from scripts.lib.sync import checkout
from scripts.lib.sync.parallel import Failure
from scripts.lib.sync.probe import may_not_write, probe, token_file

ASK_WITHIN_S = 20.0


def ssh(site: Site) -> Look:
    """Every host lets us in without a question, and says nothing by itself. Learns site.systems."""
    answers = run_on_hosts(site.hosts, ["uname", "-s"], within_s=ASK_WITHIN_S)
    keyless: dict[str, tuple[str, ...]] = {}
    wrong, lost = [], False
    for answer in answers:
        host = answer.host
        if answer.key_changed:
            lost = True
            wrong.append(f"{host}: {answer.reason}; {forget_key(host)}")
        elif answer.unreachable and re.search("denied|host key", answer.errors, re.I):
            keyless[host] = ()
            wrong.append(f"{host}: {answer.reason}")
        elif answer.code != 0:
            lost = True
            name = "resolve" in answer.errors.lower()
            hint = "see names, docs/from-scratch.md, ssh" if name else "on a Mac: Remote Login on?"
            wrong.append(f"{host}: {answer.reason}; {hint}")
        elif len(answer.output.split()) != 1:
            lost = True
            wrong.append(
                f"{host}: its shell prints by itself ({answer.output.split()[0]} ...): silence it, "
                f"until `ssh {host} true` prints nothing"
            )
    if not wrong:
        site.systems = {answer.host: answer.output.strip() for answer in answers}
        return Look(HOLDS, ", ".join(f"{host} {name}" for host, name in site.systems.items()))
    if not lost and not site.at_terminal:
        lost = True
        wrong.append("ssh-copy-id asks for a password there, and here is no terminal to ask at")
    return Look(STUCK if lost else NEEDED, "\n".join(wrong), keyless)


def place(site: Site) -> Look:
    """The checkout is where the user of every host may write, and rank 0 is this machine."""
    denied: dict[str, tuple[str, ...]] = {}
    with token_file(site.root / checkout.STATE) as token:

        def look(host: str) -> str:
            facts = probe(host, token, [(site.root, checkout.SIGNS)])
            if host == site.hosts[0] and not facts.shared:
                raise Failure("it is not this machine: name first the one where this runs")
            if not facts.rsync:
                raise Failure("it has no rsync (Debian: apt-get install rsync)")
            (there,) = facts.places
            if there.state == "other":
                raise Failure(f"{site.root} is there and is no checkout: move it out of the way")
            if there.denied:
                denied[host] = ()
                raise Failure(may_not_write(facts.user, there.denied, site.root))
            return ""

        wrong = failures(site, look)
    if not wrong:
        return Look(HOLDS, f"{site.root} on every host")
    return Look(NEEDED if set(denied) == set(wrong) else STUCK, lines(wrong), denied)


def addresses(site: Site) -> Look:
    """Each Thunderbolt port of the mesh has an address of its own."""
    if site.ring_tcp:
        return Look(NOT_HERE, "the ranks use the ordinary network, not RDMA")
    facts = survey(list(site.hosts))
    if facts is None:
        return Look(STUCK, "not every host told how it is cabled")
    findings = advise(facts, make_plan(facts))
    if errors := [str(finding) for finding in findings if finding.severity == "error"]:
        return Look(STUCK, "\n".join(errors))
    needed: dict[str, tuple[str, ...]] = {}
    words = []
    for finding in findings:
        if finding.severity == "warning" and (found := sudo_lines(finding.fix)):
            words.append(finding.text)
            for host, more in found.items():
                needed[host] = (*needed.get(host, ()), *more)
    return Look(NEEDED, "\n".join(words), needed) if needed else Look(HOLDS)


def sudo_lines(fix: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """By host, the commands for the superuser in a fix: those below a line `on HOST, once:`, up to
    one that begins with `if`, as whether more is needed shows when they have been run."""
    found: dict[str, tuple[str, ...]] = {}
    host = ""
    for line in fix:
        if heading := re.fullmatch(r"on ([^\s,:]+).*:", line):
            host = heading[1]
        elif line.startswith("if "):
            host = ""
        elif host and line.startswith("sudo "):
            found[host] = (*found.get(host, ()), line.removeprefix("sudo "))
    return found


def hostfile(site: Site) -> Look:
    """There is one, for these hosts, that can be launched."""
    found, name = site.read_hostfile(), site.short(site.hostfile)
    if found is None:
        there = "is no hostfile" if site.hostfile.exists() else "is not there"
        return Look(NEEDED, f"{name} {there}")
    names = [host.ssh for host in found.hosts]
    if not is_for(found, site):
        return Look(NEEDED, f"{name} is for other hosts: {', '.join(names)}")
    if site.ring_tcp and found.backend != "ring":
        return Look(NEEDED, f"{name} is for {found.backend or 'RDMA'}")
    if problems := find_problems(found):
        return Look(NEEDED, f"{name}: {problems[0]}")
    return Look(HOLDS, f"{name}: {len(names)} hosts")


def is_for(found: Hostfile, site: Site) -> bool:
    """Whether its hosts are ours, with the same rank 0."""
    names = [host.ssh for host in found.hosts]
    return sorted(names) == sorted(site.hosts) and names[0] == site.hosts[0]


def other_hosts(site: Site) -> str:
    """That the hostfile which is there is for other hosts, or nothing. Asks no host; so where none
    was named, the ring's counts as well, which is taken where one of them is no Mac."""
    paths = [site.hostfile, *[site.root / RING_HOSTFILE] * (not site.named_hostfile)]
    found = {path: told for path in paths if (told := site.read_hostfile(path))}
    if not found or any(is_for(each, site) for each in found.values()):
        return ""
    path, first = next(iter(found.items()))
    return f"{site.short(path)} is for {', '.join(host.ssh for host in first.hosts)}"
