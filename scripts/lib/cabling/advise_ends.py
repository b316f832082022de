"""In words, for make_hostfile: what is wrong with the ends of the cables, and what mends it.

A finding for each Mac, with its commands in the order in which they are to be run: first out of the
bridge, then the addresses. Pure.
"""

from collections.abc import Iterator, Mapping, Sequence

from scripts.lib.cabling import bridge
from scripts.lib.cabling.addressing import Need, commands, find_needs
from scripts.lib.cabling.bridge import Captor, find_captors, find_returning
from scripts.lib.cabling.cabling import Cable
from scripts.lib.cabling.ends import BARE, BRIDGED, SELF_ASSIGNED, Fault, self_assigned, sides
from scripts.lib.cabling.finding import Finding
from scripts.lib.cabling.network import Network
from scripts.lib.cabling.pings import SILENT, Pings, find_silent, ping_words
from scripts.lib.cabling.plan import Plan
from scripts.lib.cabling.survey import Facts, networks_of

OWN_ADDRESS = "JACCL needs an address of its own on each port"


def advise_ends(
    facts: Mapping[str, Facts], plan: Plan, pings: Pings | None = None
) -> Iterator[Finding]:
    """A warning for each host with ends to change, and for each cable whose ends do not answer."""
    if plan.order is None:
        return
    networks = networks_of(facts)
    needs = find_needs(networks, plan.used, plan.order)
    again = f"then, here: scripts/make_hostfile.sh --force {' '.join(facts)} (it looks again)"
    for host in (host for host in plan.order if host in networks):
        mine = [need for need in needs if need.end.host == host]
        ends = [end for link in plan.used for end in (link.a, link.b)]
        wanted = [end.interface for end in ends if end.host == host]
        captors = find_captors(networks[host], wanted)
        later = find_returning(networks[host], wanted)
        if mine:
            parts = [_reasons(mine, captors, wanted), *(_returning(c, wanted) for c in later)]
            fix = [f"on {host}, once:"]
            fix += [line for captor in captors for line in bridge.advise_removal(captor)]
            fix += _unused(networks[host], mine, captors)
            fix += [line for captor in later for line in _for_good(captor)]
            fix += [line for need in mine for line in commands(networks[host], need)]
            yield Finding("warning", f"{host}: {'; '.join(parts)}", (*fix, again))
            continue
        for captor in later:
            text = f"{host}: {_returning(captor, wanted)}"
            severity = "warning" if bridge.inactive(captor) else "note"
            yield Finding(severity, text, (f"on {host}, once:", *_for_good(captor)))
    yield from _silent(networks, plan.used, pings)
    yield from _lent(networks, plan, {need.end for need in needs})


def _reasons(needs: Sequence[Need], captors: Sequence[Captor], wanted: Sequence) -> str:
    """What is wrong with these ends of one host. Alike ones are told together."""
    parts = []
    for captor in captors:
        names = [name for name in wanted if name in captor.ports]
        verb = "are" if len(names) > 1 else "is"
        address = f", which has their address ({captor.addresses[0]})" if captor.addresses else ""
        parts.append(f"{', '.join(names)} {verb} in {captor.words}{address}")
    bare = [need for need in needs if need.has(BARE)]
    plain = [need for need in bare if need.faults[0].text.endswith(", has no IPv4 address")]
    if plain:
        verb = "have" if len(plain) > 1 else "has"
        parts.append(f"{_names(plain)} {verb} no IPv4 address")
    told = [need for need in needs if not need.has(BRIDGED) and need not in plain]
    parts += [fault.text for need in told for fault in need.faults]
    if not parts:
        return f"{_names(needs)}: the far end needs an address, and this end one to match it"
    own = bool(captors or bare)
    return "; ".join(parts) + (f"; {OWN_ADDRESS}" if own else "")


def _names(needs: Sequence[Need]) -> str:
    return ", ".join(str(need.end.interface) for need in needs)


def _unused(network: Network, needs: Sequence[Need], captors: Sequence[Captor]) -> list[str]:
    """A bridge without our ports may have the address that one of them needs."""
    if not any(need.has(BARE) for need in needs):
        return []
    told = {captor.name for captor in captors}
    others = [name for name in network.bridges or () if name not in told]
    idle = [bridge.make_captor(network, name, ()) for name in others if network.addresses_of(name)]
    return [line for captor in idle for line in bridge.inactive(captor)]


def _returning(captor: Captor, wanted: Sequence) -> str:
    """A bridge that is gone for now; that it comes back is known while its service is active."""
    names = ", ".join(name for name in wanted if name in captor.ports)
    will = "takes" if bridge.inactive(captor) else "may take"
    return (
        f"{captor.name} {will} {names} back at the next start or when a cable is plugged in: it is "
        "in the network settings"
    )


def _for_good(captor: Captor) -> list[str]:
    words = bridge.by_hand(captor)
    return [*bridge.inactive(captor), *bridge.for_good(captor), *([words] if words else [])]


def _silent(
    networks: Mapping[str, Network], links: Sequence[Cable], pings: Pings | None
) -> Iterator[Finding]:
    if pings is None:
        return
    for fault in find_silent(networks, links, pings):
        fix = fix_silent(networks, links, fault)
        yield Finding("warning", f"{fault.end.host}: {fault.text}", fix)


def fix_silent(
    networks: Mapping[str, Network], links: Sequence[Cable], fault: Fault
) -> tuple[str, ...]:
    """What to try, and how to see whether it helped."""
    link = next(link for link in links if fault.end in (link.a, link.b))
    side, other = sorted(sides(networks, link), key=lambda side: side.end != fault.end)
    if fault.kind != SILENT:
        return (f"{ping_words(side, other)} fills it",)
    return (
        f"take the cable out at {link.a} and {link.b}, put it back, and wait 20 s",
        f"then: {ping_words(side, other)}",
        f"no answer still: restart {other.end.host}, then {side.end.host}",
    )


def _lent(networks: Mapping[str, Network], plan: Plan, changed: set) -> Iterator[Finding]:
    """Self-assigned addresses on both ends: they do, until macOS assigns others."""
    pairs = self_assigned(networks, plan.used)
    pairs = [pair for pair in pairs if not changed & {side.end for side in pair}]
    if not pairs:
        return
    names = "; ".join(f"{a.words} and {b.words}" for a, b in pairs)
    faults = [Fault(side.end, SELF_ASSIGNED, "") for pair in pairs for side in pair]
    fix = ["for lasting ones:"]
    for need in find_needs(networks, plan.used, plan.order or (), faults):
        there = commands(networks[need.end.host], need)
        fix += [f"on {need.end.host}: {command}" for command in there]
    yield Finding(
        "note",
        f"self-assigned at both ends: {names}. They work, and change whenever a cable is plugged "
        "in or a Mac starts, which takes up to minutes",
        tuple(fix),
    )
