"""The Thunderbolt ports of one Mac, out of what macOS's own tools print there.

    /usr/sbin/system_profiler SPThunderboltDataType -json   buses, receptacles, what is plugged in
    /usr/sbin/networksetup -listallhardwareports            receptacle number to interface enN
    /usr/bin/ibv_devices                                    RDMA devices, rdma_enN

Runs where the judging is done, not on the Mac. A text that is not in its format is a FormatError,
which says what was expected; a key that is merely absent is a None.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

RDMA_PREFIX = "rdma_"  # MLX, too, names the device of enN rdma_enN
_SPEED = re.compile(r"(\d+(?:\.\d+)?)\s*Gb/s")
_RECEPTACLE = re.compile(r"receptacle_\d+_tag")


class FormatError(ValueError):
    """A tool printed something else than its format."""


@dataclass(frozen=True)
class Peer:
    """Another computer, as one port sees it. via: the names of devices between, mostly none."""

    domain: str
    name: str
    via: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bus:
    """One bus of system_profiler's list: a Thunderbolt controller with its receptacle."""

    domain: str
    computer: str
    receptacle: str | None
    connected: bool
    speed_gbps: float | None
    peers: tuple[Peer, ...]
    attached: tuple[str, ...]


@dataclass(frozen=True)
class Port:
    """One Thunderbolt receptacle of one Mac.

    domain is its UUID, which the computer at the other end of a cable reports as its peer.
    computer is the kind of Mac ("Mac Studio"). receptacle is the number that networksetup has in
    "Thunderbolt N". speed_gbps is the speed of what is plugged in, None with nothing. interface
    is enN, None where networksetup has no such port; device is rdma_enN, None where ibv_devices
    does not list it. peer is the computer at the other end, attached the names of everything
    else on the cable, such as displays.
    """

    domain: str
    computer: str
    receptacle: str | None
    speed_gbps: float | None
    interface: str | None
    device: str | None
    peer: Peer | None
    attached: tuple[str, ...] = ()

    @property
    def plugged(self) -> bool:
        """Something is at the other end, be it a computer or not."""
        return self.peer is not None or bool(self.attached)

    @property
    def label(self) -> str:
        """How to find it: `Thunderbolt 2 (en3)`."""
        name = f"Thunderbolt {self.receptacle}" if self.receptacle else f"port {self.domain}"
        return f"{name} ({self.interface})" if self.interface else name


def parse_thunderbolt(text: str) -> tuple[Bus, ...]:
    """The buses in the JSON of `system_profiler SPThunderboltDataType -json`, in its order.

    A bus without a domain UUID is not a port that another computer can be on, so it is left out.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise FormatError(f"system_profiler did not print JSON: {error}") from None
    buses = data.get("SPThunderboltDataType") if isinstance(data, dict) else None
    if not isinstance(buses, list):
        raise FormatError('system_profiler\'s JSON has no list "SPThunderboltDataType"')
    return tuple(_parse_bus(bus) for bus in buses if isinstance(bus, dict) and _domain(bus))


def _parse_bus(bus: Mapping) -> Bus:
    tags = [value for key, value in sorted(bus.items()) if _RECEPTACLE.fullmatch(key)]
    tag = next((tag for tag in tags if isinstance(tag, dict)), {})
    found = list(_walk(bus, ()))
    speed = _SPEED.search(str(tag.get("current_speed_key", "")))
    receptacle = tag.get("receptacle_id_key")
    return Bus(
        domain=_domain(bus),
        computer=str(bus.get("device_name_key", "")),
        receptacle=None if receptacle is None else str(receptacle),
        connected=bool(found) or tag.get("receptacle_status_key") == "receptacle_connected",
        speed_gbps=float(speed[1]) if speed else None,
        peers=tuple(item for item in found if isinstance(item, Peer)),
        attached=tuple(item for item in found if isinstance(item, str)),
    )


def _walk(item: Mapping, via: tuple[str, ...]) -> Iterator[Peer | str]:
    """Everything below an item: computers as Peers, the rest by name, nearest first."""
    below = item.get("_items")
    for child in below if isinstance(below, list) else ():
        if not isinstance(child, dict):
            continue
        name = str(child.get("_name") or child.get("device_name_key") or "a device without a name")
        if domain := _domain(child):
            yield Peer(domain, name, via)
        else:
            yield name
            # A computer may hang behind a display or a hub.
            yield from _walk(child, (*via, name))


def _domain(item: Mapping) -> str:
    value = item.get("domain_uuid_key")
    return value.strip().lower() if isinstance(value, str) else ""


def parse_hardware_ports(text: str) -> dict[str, str]:
    """`networksetup -listallhardwareports`: the name of each hardware port to its interface."""
    ports: dict[str, str] = {}
    name = None
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "Hardware Port":
            name = value.strip()
        elif key.strip() == "Device" and name is not None:
            ports[name] = value.strip()
            name = None
    if not ports:
        raise FormatError('networksetup listed no "Hardware Port: ..." with a "Device: ..."')
    return ports


def parse_ibv_devices(text: str) -> tuple[str, ...]:
    """`ibv_devices`: the names of the RDMA devices, in its order; none is an empty tuple."""
    rows = (line.split() for line in text.splitlines())
    return tuple(row[0] for row in rows if row and row[0].startswith(RDMA_PREFIX))


def join_ports(
    buses: Sequence[Bus], interfaces: Mapping[str, str], devices: Sequence[str]
) -> tuple[Port, ...]:
    """The three lists of one Mac put together: its ports, by receptacle number."""
    ports = []
    for bus in buses:
        interface = interfaces.get(f"Thunderbolt {bus.receptacle}")
        device = f"{RDMA_PREFIX}{interface}"
        ports.append(
            Port(
                domain=bus.domain,
                computer=bus.computer,
                receptacle=bus.receptacle,
                # An empty receptacle, too, has a speed in the list: the most that it could do.
                speed_gbps=bus.speed_gbps if bus.connected else None,
                interface=interface,
                device=device if device in devices else None,
                peer=bus.peers[0] if bus.peers else None,
                attached=bus.attached,
            )
        )
    return tuple(sorted(ports, key=lambda port: natural(port.receptacle or port.domain)))


def read_ports(profiler: str, hardware_ports: str, ibv_devices: str) -> tuple[Port, ...]:
    """The ports of one Mac from the texts of its tools. Raises FormatError.

    ibv_devices may be empty: a Mac with RDMA off still tells where its cables go.
    """
    return join_ports(
        parse_thunderbolt(profiler),
        parse_hardware_ports(hardware_ports),
        parse_ibv_devices(ibv_devices),
    )


def natural(text: str) -> list[tuple[int, str]]:
    """A sort key that puts en2 before en10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]
