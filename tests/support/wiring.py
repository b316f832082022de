"""Invented Macs and cables, in the texts that macOS's tools would print on each Mac.

    wiring = Wiring(["studio-1", "studio-2"])
    wiring.plug("studio-1:2", "studio-2:3")          # receptacle numbers
    wiring.texts("studio-1")["system_profiler"]
    wiring.install(folder)                           # folder/bin/ssh answers for these Macs

As a program: wiring.py FOLDER mesh|ring NAME... makes such a folder.

Receptacle N is interface en(N+1), as on an M3 Ultra, unless interfaces says otherwise. All
identifiers are invented.
"""

import json
import sys
from collections.abc import Sequence
from ipaddress import ip_interface
from pathlib import Path

IBV_HEADER = "    device          \t   node GUID\n    ------          \t----------------\n"

TOOLS = "system_profiler|networksetup|ibv_devices|rdma_ctl|ifconfig|arp|ping|PlistBuddy"

# ssh to a Mac of the folder, where the tools are found at their absolute paths. Every call is
# recorded, and HOST/down and HOST/profile do what they say.
SSH = r"""#!/usr/bin/env bash
echo "ssh $*" >>"$MACS/calls"
while :; do
  case $1 in
    -o) shift 2 ;;
    -*) shift ;;
    *) break ;;
  esac
done
host=$1
shift
if [ ! -d "$MACS/$host" ] || [ -e "$MACS/$host/down" ]; then
  echo "ssh: connect to host $host port 22: Connection refused" >&2
  exit 255
fi
cat "$MACS/$host/profile" 2>/dev/null
PATH=$MACS/$host:$PATH
sed -E "s#(/usr)?/(s?bin|libexec)/(TOOLS)#$MACS/$host/\\3#g" | bash -c "$*"
""".replace("TOOLS", TOOLS)


def mesh(names: Sequence[str], **options: object) -> "Wiring":
    """Every Mac cabled to every other, from receptacle 2 on, the first free one of each."""
    wiring = Wiring(names, **options)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            wiring.plug(wiring.next_free(a), wiring.next_free(b))
    return wiring


def ring(names: Sequence[str], **options: object) -> "Wiring":
    """Each Mac cabled to the next, the last one to the first."""
    wiring = Wiring(names, **options)
    for i, a in enumerate(names):
        wiring.plug(wiring.next_free(a), wiring.next_free(names[(i + 1) % len(names)]))
    return wiring


class Wiring:
    """What is plugged in where."""

    def __init__(
        self,
        names: Sequence[str],
        *,
        receptacles: int = 6,
        computer: str = "Mac Studio",
        interfaces: dict[str, str] | None = None,
    ) -> None:
        self.names = list(names)
        self.computer = computer
        self.receptacles = [str(number) for number in range(1, receptacles + 1)]
        self.interfaces = interfaces or {n: f"en{int(n) + 1}" for n in self.receptacles}
        self.plugged: dict[str, tuple[list[dict], str]] = {}  # "mac:receptacle" to items, speed
        self.rdma_off: set[str] = set()
        # Interface to address, or several, such as "10.77.1.1/30"; without a prefix it has /24.
        self.addresses = {name: {"en0": f"192.0.2.{i}"} for i, name in enumerate(names, 11)}
        self.bridged: dict[str, list[str]] = {}  # what the bridge has now
        self.bridge_names: dict[str, str] = {}  # its device, if it is not bridge0
        self.bridge_down: set[str] = set()  # Macs whose bridge is switched off, members and all
        self.configured: dict[str, dict[str, list[str]]] = {}  # bridges of the settings
        self.services: dict[str, list[tuple[str, str, bool]]] = {}  # name, device, enabled
        self.down: set[str] = set()  # "mac:interface", as in the following
        self.no_link: set[str] = set()
        self.deaf: set[str] = set()  # answers nothing
        self.stealthy: set[str] = set()  # answers no ping

    def plug(self, a: str, b: str, speed: str = "80 Gb/s", behind: str | None = None) -> "Wiring":
        """A cable from "mac:receptacle" to another. behind: the name of a device between."""
        for here, there in ((a, b), (b, a)):
            self.see(here, there, speed, behind)
        return self

    def see(self, here: str, there: str, speed: str = "80 Gb/s", behind: str | None = None) -> None:
        """One end alone: `here` reports `there`."""
        item = {"_name": self.computer, "domain_uuid_key": domain(there)}
        if behind:
            item = {"_name": behind, "_items": [item]}
        self.plugged[here] = ([item], speed)

    def attach(self, here: str, device: str) -> "Wiring":
        """A display or disk: it has no domain UUID."""
        self.plugged[here] = ([{"_name": device, "device_name_key": device}], "40 Gb/s")
        return self

    def unplug(self, here: str) -> "Wiring":
        """The cable at this end, out at both ends."""
        other = [end for end, (items, _) in self.plugged.items() if here_is_in(items, here)]
        for end in (here, *other):
            self.plugged.pop(end, None)
        return self

    def next_free(self, name: str) -> str:
        """The first unused receptacle after the one beside Ethernet."""
        for receptacle in self.receptacles[1:]:
            if f"{name}:{receptacle}" not in self.plugged:
                return f"{name}:{receptacle}"
        raise ValueError(f"{name} has no free receptacle")

    def texts(self, name: str) -> dict[str, str]:
        """What each tool prints on that Mac, by the tool's name."""
        return {
            "system_profiler": json.dumps(
                {"SPThunderboltDataType": [self._bus(name, n) for n in self.receptacles]}
            ),
            "networksetup": "\n".join(self._hardware_ports(name)),
            "ibv_devices": IBV_HEADER + "".join(self._devices(name)),
            "rdma_ctl": "disabled\n" if name in self.rdma_off else "enabled\n",
            "ifconfig": self._interfaces(name),
            "services": self._service_order(name),
            "virtual": self._virtual(name),
            "arp": self._arp(name),
        }

    def address_ports(self) -> "Wiring":
        """A subnet of its own for each cable."""
        for number, pair in enumerate(self._cables(), 1):
            for side, end in enumerate(pair, 1):
                name, _, receptacle = end.partition(":")
                address = f"10.77.{number}.{side}/30"
                self.addresses[name][self.interfaces[receptacle]] = address
        return self

    def bridge(
        self,
        name: str,
        members: list[str],
        service: str = "Thunderbolt Bridge",
        device: str = "bridge0",
    ) -> None:
        """As macOS has it by itself: a bridge with these members, in the settings and now."""
        self.bridged[name] = members
        self.bridge_names[name] = device
        self.configured[name] = {device: members}
        self.services.setdefault(name, []).append((service, device, True))

    def make_inactive(self, name: str) -> None:
        self.services[name] = [
            (service, device, False) for service, device, _ in self.services[name]
        ]

    def _cables(self) -> list[tuple[str, str]]:
        """Both ends of each, in the order in which they were plugged."""
        known = [f"{name}:{n}" for name in self.names for n in self.receptacles]
        far = {
            here: next((there for there in known if here_is_in(items, there)), "")
            for here, (items, _) in self.plugged.items()
        }
        return list({tuple(sorted((a, b), key=known.index)): 0 for a, b in far.items() if b})

    def install(self, folder: Path) -> dict[str, str]:
        """Writes programs that print the texts, and an ssh. Returns the environment to use it."""
        (folder / "bin").mkdir(parents=True)
        _program(folder / "bin" / "ssh", SSH)
        for name in self.names:
            (folder / name).mkdir()
            _program(folder / name / "uname", "#!/bin/sh\necho Darwin\n")
            for tool, text in self.texts(name).items():
                (folder / name / f"{tool}.txt").write_text(text)
                _program(folder / name / tool, f'#!/bin/sh\ncat "$MACS/{name}/{tool}.txt"\n')
            _program(
                folder / name / "networksetup",
                "#!/bin/sh\nt=networksetup\n[ $1 = -listallhardwareports ] || t=services\n"
                f'cat "$MACS/{name}/$t.txt"\n',
            )
            code = int("Does Not Exist" in self.texts(name)["virtual"])
            _program(
                folder / name / "PlistBuddy",
                f'#!/bin/sh\ncat "$MACS/{name}/virtual.txt"\nexit {code}\n',
            )
            _program(folder / name / "ping", self._ping_program(name))
        return {"MACS": str(folder)}

    def _bus(self, name: str, receptacle: str) -> dict:
        bus = {
            "_name": f"thunderboltusb4_bus_{int(receptacle) - 1}",
            "device_name_key": self.computer,
            "domain_uuid_key": domain(f"{name}:{receptacle}"),
            "receptacle_1_tag": {
                "current_speed_key": "Up to 120 Gb/s",
                "receptacle_id_key": receptacle,
                "receptacle_status_key": "receptacle_no_devices_connected",
            },
        }
        if f"{name}:{receptacle}" in self.plugged:
            items, speed = self.plugged[f"{name}:{receptacle}"]
            bus["_items"] = items
            bus["receptacle_1_tag"] |= {
                "current_speed_key": speed,
                "receptacle_status_key": "receptacle_connected",
            }
        return bus

    def _hardware_ports(self, name: str) -> list[str]:
        ports = [("Ethernet", "en0"), ("Wi-Fi", "en1"), ("Thunderbolt Bridge", "bridge0")]
        ports += [(f"Thunderbolt {n}", self.interfaces[n]) for n in self.receptacles]
        known = {device for _, device in ports}
        ports += [("USB LAN", device) for device in self.addresses[name] if device not in known]
        return [
            f"\nHardware Port: {name}\nDevice: {device}\nEthernet Address: 36:aa:00:00:00:{i:02x}"
            for i, (name, device) in enumerate(ports)
        ] + ["\nVLAN Configurations\n===================\n"]

    def _devices(self, name: str) -> list[str]:
        if name in self.rdma_off:
            return []
        names = [self.interfaces[n] for n in self.receptacles]
        return [f"    rdma_{device:<12}\t8096a9d9edba{i:04x}\n" for i, device in enumerate(names)]

    def _interfaces(self, name: str) -> str:
        """`ifconfig -a`. What a bridge has is promiscuous and without an address of its own."""
        members = [] if name in self.bridge_down else self.bridged.get(name, [])
        lines = [
            "lo0: flags=8049<UP,LOOPBACK,RUNNING,MULTICAST> mtu 16384",
            "\tinet 127.0.0.1 netmask 0xff000000",
            "\tinet6 ::1 prefixlen 128",
        ]
        plugged = {self.interfaces[end.partition(":")[2]] for end in self.plugged
                   if end.startswith(f"{name}:")}  # fmt: skip
        usual = ["en0", "en1", *self.interfaces.values()]
        for device in dict.fromkeys([*usual, *self.addresses[name]]):
            if device.startswith("bridge"):
                continue
            at = f"{name}:{device}"
            flags = "SMART,RUNNING" + ",PROMISC" * (device in members) + ",SIMPLEX,MULTICAST"
            up = "BROADCAST," if at in self.down else "UP,BROADCAST,"
            lines.append(f"{device}: flags=8863<{up}{flags}> mtu 1500")
            lines += ["\toptions=460<TSO4,TSO6,CHANNEL_IO>", f"\tether {hardware(at)}"]
            if device not in members:
                lines += [f"\tinet6 fe80::1%{device} prefixlen 64 secured scopeid 0x9"]
                lines += self._inets(name, device)
            linked = device in (plugged | {"en0"}) and not {at} & (self.no_link | self.down)
            lines += ["\tmedia: autoselect <full-duplex>"]
            lines += [f"\tstatus: {'active' if linked else 'inactive'}"]
        if name in self.bridged:
            bridge = self.bridge_names.get(name, "bridge0")
            up = "" if name in self.bridge_down else "UP,"
            lines += [f"{bridge}: flags=8863<{up}BROADCAST,SMART,RUNNING> mtu 1500"]
            lines += ["\tether 36:aa:00:00:00:ff", *self._inets(name, bridge)]
            members = self.bridged[name]
            lines += [f"\tmember: {member} flags=3<LEARNING,DISCOVER>" for member in members]
            lines += ["\t        ifmaxaddr 0 port 6 priority 0 path cost 0"] * bool(members)
            lines += ["\tstatus: active"]
        lines += ["utun0: flags=8051<UP,POINTOPOINT,RUNNING,MULTICAST> mtu 1380"]
        lines += ["\tinet 10.64.0.2 --> 10.64.0.1 netmask 0xff000000"]
        return "\n".join([*lines, ""])

    def _inets(self, name: str, device: str) -> list[str]:
        found = [ip_interface(text) for text in self._texts_of(name, device)]
        return [
            f"\tinet {a.ip} netmask {int(a.netmask):#010x} broadcast {a.network.broadcast_address}"
            for a in found
        ]

    def _texts_of(self, name: str, device: str) -> list[str]:
        given = self.addresses[name].get(device, [])
        texts = [given] if isinstance(given, str) else given
        return [text if "/" in text else f"{text}/24" for text in texts]

    def _service_order(self, name: str) -> str:
        """`networksetup -listnetworkserviceorder`: a star in place of an inactive one's number."""
        services = [("Ethernet", "en0", True), *self.services.get(name, [])]
        lines = ["An asterisk (*) denotes that a network service is disabled."]
        for number, (service, device, enabled) in enumerate(services, 1):
            lines.append(f"({number if enabled else '*'}) {service}")
            lines.append(f"(Hardware Port: {service}, Device: {device})\n")
        return "\n".join([*lines, "(9) A VPN", "(Hardware Port: com.example.vpn, Device: )\n"])

    def _virtual(self, name: str) -> str:
        """PlistBuddy's print of the settings' bridges."""
        bridges = self.configured.get(name)
        if not bridges:
            return 'Print: Entry, ":VirtualNetworkInterfaces:Bridge", Does Not Exist\n'
        lines = ["Dict {"]
        for bridge, members in bridges.items():
            lines += [f"    {bridge} = Dict {{", "        Interfaces = Array {"]
            lines += [f"            {member}" for member in members]
            lines += ["        }", "        Options = Dict {", "            __AUTO__ = thunderbolt"]
            lines += ["        }", "        UserDefinedName = Thunderbolt Bridge", "    }"]
        return "\n".join([*lines, "}", ""])

    def _far_ends(self, name: str) -> list[tuple[str, str, str]]:
        """(interface here, "mac:interface" there, its address), of the cables."""
        found = []
        for pair in self._cables():
            for here, there in (pair, pair[::-1]):
                if here.startswith(f"{name}:"):
                    other, _, receptacle = there.partition(":")
                    device = self.interfaces[receptacle]
                    inets = [text.partition("/")[0] for text in self._texts_of(other, device)]
                    near = self.interfaces[here.partition(":")[2]]
                    found += [(near, f"{other}:{device}", ip) for ip in inets]
        return found

    def _hears(self, name: str, near: str, far: str) -> bool:
        broken = self.down | self.no_link | self.deaf
        taken = {mac: found for mac, found in self.bridged.items() if mac not in self.bridge_down}
        members = [f"{mac}:{member}" for mac, found in taken.items() for member in found]
        return not {f"{name}:{near}", far} & {*broken, *members}

    def _arp(self, name: str) -> str:
        """`arp -an`, after everybody was asked."""
        entries = ["? (192.0.2.1) at 0:1c:42:0:0:18 on en0 ifscope [ethernet]"]
        for near, far, ip in self._far_ends(name):
            at = hardware(far) if self._hears(name, near, far) else "(incomplete)"
            entries.append(f"? ({ip}) at {at} on {near} ifscope [ethernet]")
        return "\n".join([*entries, ""])

    def pings(self, name: str) -> list[tuple[str, str, bool]]:
        """(port, address at the other end of its cable, whether that answers)."""
        return [
            (near, ip, self._hears(name, near, far) and far not in self.stealthy)
            for near, far, ip in self._far_ends(name)
        ]

    def _ping_program(self, name: str) -> str:
        """Nobody answers but at the other end of the cable in the port that it is bound to."""
        found = [(near, ip) for near, ip, answers in self.pings(name) if answers]
        answer = [f"  *' -b {near} {ip}') exit 0 ;;" for near, ip in found]
        return "\n".join(["#!/bin/sh", 'case "$*" in', *answer, "esac", "exit 2", ""])


def hardware(at: str) -> str:
    """An invented hardware address, written as arp and ifconfig do."""
    number = sum(ord(letter) * 31**place for place, letter in enumerate(at)) % 256
    return f"36:1:a0:1d:{number:x}:4"


def domain(end: str) -> str:
    """The domain UUID of "mac:receptacle"."""
    name, _, receptacle = end.partition(":")
    number = sum(ord(letter) * 31**place for place, letter in enumerate(name)) % 16**8
    return f"{number:08X}-0000-4000-8000-{int(receptacle):012d}"


def here_is_in(items: list[dict], here: str) -> bool:
    """Whether a port's items hold that end, however deep."""
    return any(
        item.get("domain_uuid_key") == domain(here) or here_is_in(item.get("_items", []), here)
        for item in items
    )


def _program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


if __name__ == "__main__":
    {"mesh": mesh, "ring": ring}[sys.argv[2]](sys.argv[3:]).address_ports().install(
        Path(sys.argv[1])
    )
