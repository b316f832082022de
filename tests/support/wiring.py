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
from pathlib import Path

IBV_HEADER = "    device          \t   node GUID\n    ------          \t----------------\n"

TOOLS = "system_profiler|networksetup|ibv_devices|rdma_ctl|ifconfig|ipconfig"

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
sed -E "s#(/usr)?/s?bin/(TOOLS)#$MACS/$host/\\2#g" | bash -c "$*"
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
        self.addresses = {name: {"en0": f"192.0.2.{i}"} for i, name in enumerate(names, 11)}
        self.bridged: dict[str, list[str]] = {}

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
            "networksetup": "\n".join(self._hardware_ports()),
            "ibv_devices": IBV_HEADER + "".join(self._devices(name)),
            "rdma_ctl": "disabled\n" if name in self.rdma_off else "enabled\n",
            "ifconfig": self._bridge(name),
        }

    def address_ports(self) -> "Wiring":
        """An address of its own for each port with a cable."""
        for name in self.names:
            for end in self.plugged:
                if end.startswith(f"{name}:"):
                    interface = self.interfaces[end.partition(":")[2]]
                    self.addresses[name][interface] = f"10.77.0.{len(self.addresses[name])}"
        return self

    def install(self, folder: Path) -> dict[str, str]:
        """Writes programs that print the texts, and an ssh. Returns the environment to use it."""
        (folder / "bin").mkdir(parents=True)
        _program(folder / "bin" / "ssh", SSH)
        for name in self.names:
            (folder / name).mkdir()
            _program(folder / name / "uname", "#!/bin/sh\necho Darwin\n")
            getifaddr = "\n".join(
                f'[ "$2" != {interface} ] || {{ echo {address}; exit 0; }}'
                for interface, address in self.addresses[name].items()
            )
            _program(folder / name / "ipconfig", f"#!/bin/sh\n{getifaddr}\nexit 1\n")
            for tool, text in self.texts(name).items():
                (folder / name / f"{tool}.txt").write_text(text)
                show = f'cat "$MACS/{name}/{tool}.txt"'
                if tool == "ifconfig" and not text:
                    show = 'echo "ifconfig: interface $1 does not exist" >&2; exit 1'
                _program(folder / name / tool, f"#!/bin/sh\n{show}\n")
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

    def _hardware_ports(self) -> list[str]:
        ports = [("Ethernet", "en0"), ("Wi-Fi", "en1"), ("Thunderbolt Bridge", "bridge0")]
        ports += [(f"Thunderbolt {n}", self.interfaces[n]) for n in self.receptacles]
        return [
            f"\nHardware Port: {name}\nDevice: {device}\nEthernet Address: 36:aa:00:00:00:{i:02x}"
            for i, (name, device) in enumerate(ports)
        ] + ["\nVLAN Configurations\n===================\n"]

    def _devices(self, name: str) -> list[str]:
        if name in self.rdma_off:
            return []
        names = [self.interfaces[n] for n in self.receptacles]
        return [f"    rdma_{device:<12}\t8096a9d9edba{i:04x}\n" for i, device in enumerate(names)]

    def _bridge(self, name: str) -> str:
        members = self.bridged.get(name)
        if members is None:
            return ""
        lines = ["bridge0: flags=8863<UP,RUNNING> mtu 1500", "\tether 36:aa:00:00:00:ff"]
        lines += [f"\tmember: {member} flags=3<LEARNING,DISCOVER>" for member in members]
        return "\n".join([*lines, "\tstatus: inactive", ""])


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
