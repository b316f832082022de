"""What stands between the cabling and a launch, in words, each with what to do about it.

Pure, like the plan that it judges: nothing is asked or printed here.
"""

from collections.abc import Iterator, Mapping

from scripts.lib.cabling.advise_ends import advise_ends
from scripts.lib.cabling.cabling import RDMA_GBPS, Cable, End, between, same_macs, strangers
from scripts.lib.cabling.finding import SEVERITIES, Finding
from scripts.lib.cabling.pings import Pings
from scripts.lib.cabling.plan import Plan, is_beside_ethernet, is_usable, pairs_of
from scripts.lib.cabling.ports import Port
from scripts.lib.cabling.survey import Facts
from scripts.lib.hosts.reach import MOST_RANKS


def advise(
    facts: Mapping[str, Facts],
    plan: Plan,
    wanted: str | None = None,
    pings: Pings | None = None,
) -> list[Finding]:
    """All findings, errors first.

    wanted: the topology that was asked for, if one was. pings: None when nobody was asked to.
    """
    found = [
        *_one_mac_twice(facts),
        *_missing(facts, plan, wanted),
        *_order(facts, plan),
        *_coordinator(facts, plan),
        *_rdma(facts),
        *_cables(facts, plan),
        *advise_ends(facts, plan, pings),
        *_elsewhere(facts, plan),
    ]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def advise_tcp(facts: Mapping[str, Facts]) -> list[Finding]:
    """The findings of a hostfile for the ring backend over the ordinary network."""
    return [_no_address(host) for host, fact in facts.items() if fact.lan_address is None]


def _one_mac_twice(facts: Mapping[str, Facts]) -> Iterator[Finding]:
    for a, b in same_macs({host: fact.ports for host, fact in facts.items()}):
        yield Finding("error", f"{a} and {b} are one and the same Mac", ("name each Mac once",))


def _missing(facts: Mapping[str, Facts], plan: Plan, wanted: str | None) -> Iterator[Finding]:
    """Why there is no mesh, and if no ring was found either, why not."""
    hosts = list(facts)
    macs = [host for host, fact in facts.items() if fact.is_mac]
    no_plan = plan.order is None
    for host, fact in facts.items():
        if not fact.is_mac:
            yield Finding(
                "error",
                f"{host} runs {fact.system}: it has no RDMA over Thunderbolt",
                ("for ranks over the ordinary network use --ring-tcp",),
            )
    if plan.topology == "mesh" and not no_plan:
        return
    if wanted != "ring" or len(hosts) == 2:
        severity = "error" if no_plan else "note"
        if len(hosts) > MOST_RANKS:
            text = f"{len(hosts)} hosts are too many for a mesh: JACCL takes {MOST_RANKS}"
            yield Finding(severity, text)
        elif not no_plan:
            yield Finding(severity, "a ring, since the cables make no mesh:")
        for a, b in pairs_of(macs):
            if not between(plan.usable, a, b):
                yield Finding(severity, *_why_not(facts, plan, a, b))
    if no_plan and wanted != "mesh" and len(macs) == len(hosts) > 2:
        yield from _no_ring(facts, plan)
        if wanted == "ring":
            for link in plan.links:
                if link.a.host != link.b.host and not is_usable(link):
                    yield Finding("error", *_unusable(link))


def _why_not(facts: Mapping[str, Facts], plan: Plan, a: str, b: str) -> tuple[str, tuple[str, ...]]:
    """What keeps a pair apart: text and fix."""
    if links := between(plan.links, a, b):
        return _unusable(links[0])
    free = [_free_ports(facts[host]) for host in (a, b)]
    return (
        f"no cable between {a} and {b}",
        (f"plug one in; free on {a}: {free[0]}; on {b}: {free[1]}",),
    )


def _unusable(link: Cable) -> tuple[str, tuple[str, ...]]:
    """Why a cable is of no use to a matrix: text and fix."""
    if not link.fast_enough:
        return (
            f"the cable from {link} runs at {link.speed_gbps:g} Gb/s: RDMA needs {RDMA_GBPS:g}",
            ("use a Thunderbolt 5 cable, between Thunderbolt 5 ports",),
        )
    end = next(end for end in (link.a, link.b) if not end.interface)
    return (
        f"{end}: networksetup on {end.host} lists no interface for this port",
        (f"on {end.host}: sudo /usr/sbin/networksetup -detectnewhardware, then try again",),
    )


def _free_ports(fact: Facts) -> str:
    names = [port.label for port in fact.ports if not port.plugged and not _is_bad(fact, port)]
    return ", ".join(names) or "none"


def _is_bad(fact: Facts, port: Port) -> bool:
    return is_beside_ethernet(End(fact.host, port))


def _no_ring(facts: Mapping[str, Facts], plan: Plan) -> Iterator[Finding]:
    near = {
        host: sorted({end.host for link in plan.usable for end in (link.a, link.b)
                      if host in (link.a.host, link.b.host)} - {host})
        for host in facts
    }  # fmt: skip
    least = min(2, len(facts) - 1)
    lonely = [host for host in facts if len(near[host]) < least]
    for host in lonely:
        others = " and ".join(near[host])
        reached = f"is cabled to {others} alone" if others else "is cabled to none of the others"
        text = f"no ring: {host} {reached}, and a ring gives each host {least}"
        yield Finding("error", text + (" neighbours" if least > 1 else " neighbour"))
    if not lonely:
        yield Finding(
            "error", "no ring: no way along the cables passes every host once and returns"
        )


def _order(facts: Mapping[str, Facts], plan: Plan) -> Iterator[Finding]:
    if plan.order and plan.order != tuple(facts):
        yield Finding(
            "note", f"ranks follow the ring, not the order named: {', '.join(plan.order)}"
        )


def _coordinator(facts: Mapping[str, Facts], plan: Plan) -> Iterator[Finding]:
    first = (plan.order or tuple(facts))[0]
    if facts[first].lan_address is None:
        yield _no_address(first)


def _no_address(host: str) -> Finding:
    return Finding(
        "error",
        f"{host} has no IPv4 address on en0, en1 or another ordinary network",
        ("connect it (Ethernet recommended)",
         f"check: ssh {host} /usr/sbin/ipconfig getifaddr en0"),
    )  # fmt: skip


def _rdma(facts: Mapping[str, Facts]) -> Iterator[Finding]:
    for host, fact in facts.items():
        if not fact.is_mac:
            continue
        if fact.rdma and fact.rdma != "enabled":
            yield Finding(
                "warning",
                f"RDMA is {fact.rdma} on {host}",
                (f"start {host} in Recovery, open Terminal, run: rdma_ctl enable; then reboot",),
            )
        elif fact.rdma and fact.ports and not any(port.device for port in fact.ports):
            yield Finding(
                "warning",
                f"RDMA is enabled on {host}, but ibv_devices lists no device",
                (f"reboot {host}; without Thunderbolt 5 there are none",),
            )
        for trouble in fact.troubles:
            yield Finding("warning", f"{host}: {trouble}")


def _cables(facts: Mapping[str, Facts], plan: Plan) -> Iterator[Finding]:
    for link in plan.used:
        for end in (link.a, link.b):
            if is_beside_ethernet(end):
                yield Finding(
                    "warning",
                    f"{end} is the port beside Ethernet of a Mac Studio: RDMA is reported not to "
                    "work on it",
                    (f"move the cable to another port; free: {_free_ports(facts[end.host])}",),
                )
            if (
                not end.port.device
                and facts[end.host].rdma == "enabled"
                and _has_devices(facts, end)
            ):
                yield Finding(
                    "warning", f"{end}: ibv_devices on {end.host} does not list {end.device}",
                    (f"reboot {end.host}",),
                )  # fmt: skip
        if not link.both_ways:
            yield Finding(
                "warning", f"only one end of the cable from {link} sees the other",
                ("take the cable out at both ends and put it back",),
            )  # fmt: skip
        if link.via:
            yield Finding(
                "warning", f"{' and '.join(link.via)} is between {link.a} and {link.b}",
                ("connect the two Macs directly",),
            )  # fmt: skip
    if plan.order is None:
        return
    idle = [link for link in plan.links if link.a.host != link.b.host and link not in plan.used]
    for link in idle:
        if not is_usable(link):
            yield Finding("warning", *_unusable(link))
            continue
        yield Finding("note", f"the cable from {link} is not used")
    if plan.topology == "mesh" and plan.width > 1:
        text = (
            "a mesh (since MLX 0.32.4) uses all cables of each pair for messages of 512 KB and"
            " more, the first for shorter; with --topology ring the ranks use all for both"
        )
        yield Finding("note", text)


def _has_devices(facts: Mapping[str, Facts], end: End) -> bool:
    return any(port.device for port in facts[end.host].ports)


def _elsewhere(facts: Mapping[str, Facts], plan: Plan) -> Iterator[Finding]:
    hosts = {host: fact.ports for host, fact in facts.items()}
    for end in strangers(hosts):
        yield Finding(
            "note", f"{end} leads to a computer that was not named ({end.port.peer.name})"
        )
    for link in plan.links:
        if link.a.host == link.b.host:
            text = f"a cable leads from {link.a} back to the same Mac, {link.b.port.label}"
            yield Finding("note", text)
