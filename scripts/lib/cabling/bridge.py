"""A bridge that has Thunderbolt ports: whose it is, and what takes them out of it, step by step.

Apple's TN3205 has the service of the Thunderbolt Bridge made inactive. Owners measured that this
takes the bridge's address and leaves its members in it (on a Mac mini, Mac16,11), and exo, among
others, removes the members by ifconfig and the bridge from the network settings, out of which
configd makes it anew at each start and whenever a port comes (exo-explore/exo#1390 and
its set_rdma_network_config; configd's InterfaceNamer). So there are three steps: make it
inactive, take the ports out for now, take the bridge out of the settings for good. What was done
already is not advised again. Nothing is run here.
"""

import shlex
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from scripts.lib.cabling.network import BRIDGES, PREFERENCES, Network, Service

SHARING = 100  # Internet Sharing and virtual machines make bridge100 and following, as they run


@dataclass(frozen=True)
class Captor:
    """A bridge with ports that we want.

    ports: all its Thunderbolt ports. others: what else it has. service: of its device, if the
    settings have one. lasting: it is in the settings; None when they could not be read. addresses:
    its own, which JACCL does not use.
    """

    name: str
    ports: tuple[str, ...]
    others: tuple[str, ...]
    service: Service | None
    lasting: bool | None
    addresses: tuple[str, ...] = ()

    @property
    def shared(self) -> bool:
        """It is not of the network settings: Internet Sharing or a virtual machine made it."""
        number = self.name.removeprefix("bridge")
        return not self.lasting and number.isdigit() and int(number) >= SHARING

    @property
    def words(self) -> str:
        """`the Thunderbolt Bridge (bridge0)`, and what is known of its state."""
        if self.shared:
            return f"{self.name} (Internet Sharing or a virtual machine)"
        name = f"the Thunderbolt Bridge ({self.name})"
        if self.service is not None and not self.service.enabled:
            name += f", although its service {quoted(self.service.name)} is inactive"
        return name


def find_captors(network: Network, wanted: Collection[str]) -> list[Captor]:
    """The bridges that have any of the wanted ports now."""
    return [
        make_captor(network, interface.name, interface.members)
        for interface in network.interfaces.values()
        if any(network.bridge_of(port) == interface.name for port in wanted)
    ]


def find_returning(network: Network, wanted: Collection[str]) -> list[Captor]:
    """The bridges that have none of the wanted ports now, and will have: so the settings say."""
    return [
        make_captor(network, name, members)
        for name, members in (network.bridges or {}).items()
        if set(members) & set(wanted) and not any(map(network.bridge_of, wanted))
    ]


def make_captor(network: Network, name: str, members: Collection[str]) -> Captor:
    services = network.services_of(name)
    return Captor(
        name,
        ports=tuple(member for member in members if member in network.thunderbolt),
        others=tuple(member for member in members if member not in network.thunderbolt),
        service=next((s for s in services if s.enabled), services[0] if services else None),
        lasting=None if network.bridges is None else name in network.bridges,
        addresses=tuple(str(address.ip) for address in network.addresses_of(name)),
    )


def inactive(captor: Captor) -> list[str]:
    """TN3205's "Make Inactive"; nothing where it is done, or cannot be."""
    if captor.service is None or not captor.service.enabled:
        return []
    return [f"sudo networksetup -setnetworkserviceenabled {quoted(captor.service.name)} off"]


def for_good(captor: Captor) -> list[str]:
    """The bridge out of the network settings, with a copy of them as they were."""
    if captor.others or captor.shared or captor.lasting is False:
        return []  # A bridge that somebody made for more than these ports is not ours to delete.
    return [
        f"sudo cp -p {PREFERENCES} {saved(captor)}",
        f"sudo /usr/libexec/PlistBuddy -c 'Delete {BRIDGES}:{captor.name}' {PREFERENCES}",
    ]


def for_now(captor: Captor) -> list[str]:
    """The ports out of the bridge as it is; until the next start, if it is in the settings."""
    out = [f"sudo /sbin/ifconfig {captor.name} deletem {port}" for port in captor.ports]
    if captor.others or captor.shared:
        return out  # It goes on with what else it has.
    return [*out, f"sudo /sbin/ifconfig {captor.name} down"]


def undo(captor: Captor) -> list[str]:
    """What takes both back."""
    return [
        *([f"sudo cp -p {saved(captor)} {PREFERENCES}"] if for_good(captor) else []),
        *(f"sudo /sbin/ifconfig {captor.name} addm {port}" for port in captor.ports),
        f"sudo /sbin/ifconfig {captor.name} up",
    ]


def by_hand(captor: Captor) -> str:
    """What no command of ours does; "" when there is nothing."""
    if captor.shared:
        return (
            "to stay: System Settings, General, Sharing: Internet Sharing off, or stop the machine"
        )
    if captor.others:
        return (
            f"to stay: {captor.name} has {', '.join(captor.others)}, too: System Settings, "
            f"Network, ..., Manage Virtual Interfaces, take {', '.join(captor.ports)} out of it"
        )
    return ""


def advise_removal(captor: Captor) -> Iterator[str]:
    """Lines for a person on that Mac, in order; what is a command begins with sudo."""
    yield from inactive(captor)
    if inactive(captor):
        yield (
            f"if /sbin/ifconfig {captor.name} shows no member after that, it was enough; macOS is "
            "known to leave them in, then these, too:"
        )
    yield from for_good(captor)
    yield from for_now(captor)
    if words := by_hand(captor):
        yield words
    if for_good(captor):
        yield f"(to undo: sudo cp -p {saved(captor)} {PREFERENCES}, and restart)"


def saved(captor: Captor) -> str:
    """The copy of the settings. Made only while they have the bridge, so it always has it."""
    return f"{PREFERENCES}.with-{captor.name}"


def quoted(name: str) -> str:
    """A service's name for a shell; some letters mean something within double quotes."""
    return shlex.quote(name) if set(name) & set('"\\$`!') else f'"{name}"'
