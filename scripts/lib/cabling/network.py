"""The network of one Mac, out of what macOS's own tools print there.

    /sbin/ifconfig -a                              interfaces: addresses, netmasks, bridges' members
    /usr/sbin/networksetup -listnetworkserviceorder    the service of each device, by its own name
    /usr/libexec/PlistBuddy -c 'Print ...' FILE    the bridges of the network settings
    /usr/sbin/arp -an                              which neighbours have answered

Addresses come from ifconfig, not from `ipconfig getifaddr`, which does not know those that
ifconfig set. Names of services are the user's, in their language, with any letters; only devices
are matched. Pure; a line that is not in its format is left out.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Interface

from scripts.lib.cabling.ports import Port

PREFERENCES = "/Library/Preferences/SystemConfiguration/preferences.plist"
BRIDGES = ":VirtualNetworkInterfaces:Bridge"
# Each by the name that the two surveys know its text by.
ASKED = {
    "ifconfig": ("/sbin/ifconfig", "-a"),
    "services": ("/usr/sbin/networksetup", "-listnetworkserviceorder"),
    "virtual": ("/usr/libexec/PlistBuddy", "-c", f"Print {BRIDGES}", PREFERENCES),
    "arp": ("/usr/sbin/arp", "-an"),
}
NO_ENTRY = "Does Not Exist"  # PlistBuddy's words for a place without anything
_HEAD = re.compile(r"^([A-Za-z][\w.-]*): flags=\w+<([^>]*)>")
_INET = re.compile(r"^\s+inet ([\d.]+)( -->)?.*? netmask (\S+)")
_MEMBER = re.compile(r"^\s+member: (\S+)")
_STATUS = re.compile(r"^\s+status: (.*\S)")
_SERVICE = re.compile(r"^\((\d+|\*)\) (.*)$")
_DEVICE = re.compile(r"^\(.*, Device: ([^,()]*)\)$")
_NEIGHBOUR = re.compile(r"^\S+ \(([\d.]+)\) at (\S+) on (\S+)", re.M)


@dataclass(frozen=True)
class Interface:
    """active: what its status says, None where there is none. members: of a bridge."""

    name: str
    up: bool
    active: bool | None = None
    addresses: tuple[IPv4Interface, ...] = ()
    members: tuple[str, ...] = ()
    point_to_point: bool = False


@dataclass(frozen=True)
class Service:
    """A network service of the settings, and the device that it configures."""

    name: str
    device: str
    enabled: bool


@dataclass(frozen=True)
class Neighbour:
    """Whom an interface asked for, and whether it answered with its hardware address."""

    interface: str
    address: str
    complete: bool


@dataclass(frozen=True)
class Network:
    """One Mac's. None: it was not told. bridges: those of the settings, to their members there.

    thunderbolt: the interfaces of its Thunderbolt ports, used or not.
    """

    interfaces: Mapping[str, Interface] = field(default_factory=dict)
    thunderbolt: tuple[str, ...] = ()
    services: tuple[Service, ...] | None = None
    bridges: Mapping[str, tuple[str, ...]] | None = None
    neighbours: tuple[Neighbour, ...] | None = None

    def bridge_of(self, interface: str | None) -> str:
        """The bridge that has this interface to itself; "" for none.

        One that is down does no harm to a member with an address of its own: that is how
        mlx.distributed_config leaves them.
        """
        own = bool(self.addresses_of(interface))
        has = (i.name for i in self.interfaces.values() if interface in i.members)
        return next((name for name in has if self.interfaces[name].up or not own), "")

    def services_of(self, device: str | None) -> tuple[Service, ...]:
        return tuple(service for service in self.services or () if service.device == device)

    def addresses_of(self, interface: str | None) -> tuple[IPv4Interface, ...]:
        found = self.interfaces.get(interface or "")
        return found.addresses if found else ()


def read_network(texts: Mapping[str, str], ports: Sequence[Port] = ()) -> Network:
    """From the texts of the tools in ASKED; those that are missing there were not told."""
    return Network(
        parse_ifconfig(texts.get("ifconfig", "")),
        tuple(port.interface for port in ports if port.interface),
        parse_services(texts["services"]) if "services" in texts else None,
        parse_bridges(texts.get("virtual", "")),
        parse_neighbours(texts["arp"]) if "arp" in texts else None,
    )


def parse_ifconfig(text: str) -> dict[str, Interface]:
    """`ifconfig -a`, or of one interface."""
    blocks: list[tuple[str, str, list[str]]] = []
    for line in text.splitlines():
        if head := _HEAD.match(line):
            blocks.append((head[1], head[2], []))
        elif blocks and line[:1].isspace():
            blocks[-1][2].append(line)
    return {name: _interface(name, flags.split(","), lines) for name, flags, lines in blocks}


def _interface(name: str, flags: list[str], lines: list[str]) -> Interface:
    status = next((found[1] for line in lines if (found := _STATUS.match(line))), None)
    inets = [found for line in lines if (found := _INET.match(line))]
    addresses = (_address(found[1], found[3]) for found in inets)
    return Interface(
        name,
        up="UP" in flags,
        active=None if status is None else status == "active",
        addresses=tuple(address for address in addresses if address is not None),
        members=tuple(found[1] for line in lines if (found := _MEMBER.match(line))),
        point_to_point="POINTOPOINT" in flags or any(found[2] for found in inets),
    )


def _address(ip: str, mask: str) -> IPv4Interface | None:
    """macOS writes masks as 0xfffffffc, others 255.255.255.252."""
    try:
        bits = f"{int(mask, 16):032b}" if mask.startswith("0x") else ""
        if bits and "01" in bits:
            return None
        return IPv4Interface(f"{ip}/{bits.count('1') if bits else mask}")
    except ValueError:
        return None


def parse_services(text: str) -> tuple[Service, ...]:
    """`networksetup -listnetworkserviceorder`; a star marks those that are inactive."""
    found = []
    name, enabled = None, True
    for line in text.splitlines():
        if (device := _DEVICE.match(line.strip())) and name is not None:
            found.append(Service(name, device[1].strip(), enabled))
            name = None
        elif head := _SERVICE.match(line.rstrip("\r")):
            # In place of the number; some versions write it before the name, which cannot have one.
            name, enabled = head[2].removeprefix("*"), "*" not in (head[1], head[2][:1])
    return tuple(found)


def parse_bridges(text: str) -> dict[str, tuple[str, ...]] | None:
    """PlistBuddy's print of the settings' bridges: each to its members. None: it did not say."""
    if "Dict {" not in text and NO_ENTRY not in text:
        return None
    bridges: dict[str, tuple[str, ...]] = {}
    path: list[str] = []
    for line in map(str.strip, text.splitlines()):
        if line.endswith(("Dict {", "Array {")):
            path.append(line.partition(" = ")[0])
            if len(path) == 2:
                bridges[path[1]] = ()
        elif line == "}":
            path = path[:-1]
        elif len(path) == 3 and path[2] == "Interfaces" and line:
            bridges[path[1]] += (line,)
    return bridges


def parse_neighbours(text: str) -> tuple[Neighbour, ...]:
    """`arp -an`: an entry says (incomplete) while nobody has answered."""
    return tuple(
        Neighbour(interface, address, hardware != "(incomplete)")
        for address, hardware, interface in _NEIGHBOUR.findall(text)
    )
