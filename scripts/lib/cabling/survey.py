"""What one host tells of its ports, addresses and RDMA, asked over a single ssh.

PROGRAM is the shell program that runs there, given to `/bin/sh -s` on its stdin, so that no
login shell has to parse it. It needs macOS's own tools by their absolute paths (ssh has no useful
PATH), ends each that hangs, and changes nothing. read_facts turns what it prints into Facts, here.
A host that is no Mac answers too: it has addresses and no ports.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from scripts.lib.cabling.network import ASKED, Network, read_network
from scripts.lib.cabling.ports import (
    FormatError,
    Port,
    join_ports,
    natural,
    parse_hardware_ports,
    parse_ibv_devices,
    parse_thunderbolt,
)

TOOL_WITHIN_S = 15  # system_profiler takes seconds; ibv_devices is known to hang
SURVEY_WITHIN_S = 60.0
COMMAND = ("/bin/sh", "-s")
_LINK_LOCAL = "169.254."

# Marks begin lines of their own, so nothing that a profile prints is taken for an answer.
_TEXT = """
mark='@@cabling'
ask() {
  name=$1
  shift
  printf '%s begin %s\\n' "$mark" "$name"
  "$@" </dev/null 2>&1 &
  tool=$!
  # In steps, so that at most a second of sleep outlives the tool.
  (
    left=WITHIN
    while [ "$left" -gt 0 ]; do
      sleep 1
      left=$((left - 1))
    done
    kill -9 "$tool"
  ) </dev/null >/dev/null 2>&1 &
  guard=$!
  wait "$tool" 2>/dev/null
  code=$?
  kill "$guard" 2>/dev/null
  printf '\\n%s end %s %s\\n' "$mark" "$name" "$code"
}
ask system uname -s
if [ "$(uname -s)" = Darwin ]; then
  ask profiler /usr/sbin/system_profiler SPThunderboltDataType -json
  ask hardware /usr/sbin/networksetup -listallhardwareports
NETWORK
  ask rdma /usr/bin/rdma_ctl status
  ask devices /usr/bin/ibv_devices
else
  ask names hostname -I
fi
"""
PROGRAM = (
    _TEXT.replace("WITHIN", str(TOOL_WITHIN_S))
    .replace(
        "NETWORK", "\n".join(f"  ask {name} {shlex.join(words)}" for name, words in ASKED.items())
    )
    .encode()
)

_SECTION = re.compile(r"^@@cabling begin (\w+)\n(.*?)\n?^@@cabling end \1 (\d+)$", re.M | re.S)
_BEGUN = re.compile(r"^@@cabling begin (\w+)$", re.M)
_TOOLS = {
    "profiler": "system_profiler",
    "hardware": "networksetup",
    "ifconfig": "ifconfig",
    "rdma": "rdma_ctl",
    "devices": "ibv_devices",
}


class SurveyError(ValueError):
    """The host answered, but not with what is needed; the message says what is missing."""


@dataclass(frozen=True)
class Facts:
    """One host, as it described itself.

    addresses: interface to its first IPv4 address, of those in the list of hardware ports. network:
    what ifconfig and others say. rdma: what rdma_ctl said ("enabled"), "" if it could not be asked.
    troubles: tools that did not answer, in words. told_address: what the user says its address is.
    """

    host: str
    system: str = "Darwin"
    ports: tuple[Port, ...] = ()
    addresses: Mapping[str, str] = field(default_factory=dict)
    network: Network = field(default_factory=Network)
    rdma: str = ""
    troubles: tuple[str, ...] = ()
    told_address: str = ""

    @property
    def is_mac(self) -> bool:
        return self.system == "Darwin"

    @property
    def bridged(self) -> tuple[str, ...]:
        """Thunderbolt ports that a bridge has."""
        return tuple(name for name in self.network.thunderbolt if self.network.bridge_of(name))

    @property
    def lan_address(self) -> str | None:
        """Where the others can reach it over the ordinary network: en0, else en1, else another.

        Addresses of Thunderbolt ports and self-assigned ones are none.
        """
        if self.told_address:
            return self.told_address
        thunderbolt = {port.interface for port in self.ports}
        for interface in sorted(self.addresses, key=natural):
            address = self.addresses[interface]
            # A bridge of nothing but Thunderbolt ports is no ordinary network.
            members = set(self.network.interfaces[interface].members) if self.is_mac else set()
            aside = interface.startswith("bridge") and not members - thunderbolt
            if interface not in thunderbolt and not aside and not address.startswith(_LINK_LOCAL):
                return address
        return None


def networks_of(facts: Mapping[str, Facts]) -> dict[str, Network]:
    """The hosts that told of their interfaces; of the others no port can be judged."""
    return {host: fact.network for host, fact in facts.items() if fact.network.interfaces}


def read_facts(host: str, output: str) -> Facts:
    """What PROGRAM printed on that host, understood. Raises SurveyError."""
    # A terminal on the way, or a tool, may end its lines the other way.
    output = output.replace("\r\n", "\n")
    sections = {name: (text, int(code)) for name, text, code in _SECTION.findall(output)}
    system = sections.get("system", ("", 1))[0].strip()
    if not system:
        raise SurveyError("its shell did not run the program that was sent")
    if system != "Darwin":
        names = sections.get("names", ("", 1))[0].split()
        found = {f"address{i}": name for i, name in enumerate(names) if "." in name}
        return Facts(host, system, addresses=found)
    troubles = list(_troubles(sections, output))
    for name in ("profiler", "hardware"):
        if name not in sections or sections[name][1] != 0:
            raise SurveyError("; ".join(troubles))
    try:
        ports = join_ports(
            parse_thunderbolt(sections["profiler"][0]),
            parse_hardware_ports(sections["hardware"][0]),
            parse_ibv_devices(sections.get("devices", ("", 0))[0]),
        )
    except FormatError as error:
        raise SurveyError(str(error)) from None
    # PlistBuddy's 1 says that the settings have no bridge, which is an answer, too.
    told = {
        n: sections[n][0] for n in ASKED if n in sections and sections[n][1] <= (n == "virtual")
    }
    network = read_network(told, ports)
    devices = parse_hardware_ports(sections["hardware"][0]).values()
    return Facts(
        host,
        system,
        ports,
        addresses={
            device: str(found[0].ip)
            for device in devices
            if (found := network.addresses_of(device))
        },
        network=network,
        rdma=sections["rdma"][0].strip() if sections.get("rdma", ("", 1))[1] == 0 else "",
        troubles=tuple(troubles),
    )


def _troubles(sections: Mapping[str, tuple[str, int]], output: str) -> Iterator[str]:
    """In words, which tools did not do their work; those that only add to advice left out."""
    begun = set(_BEGUN.findall(output))
    for name, tool in _TOOLS.items():
        text, code = sections.get(name, ("", -1))
        last = text.strip().splitlines()[-1:] or [""]
        if code == 128 + 9:
            yield f"{tool} did not answer within {TOOL_WITHIN_S} s"
        elif code == -1:
            yield f"{tool} did not answer" if name in begun else f"{tool} was not reached"
        elif code == 127:
            yield f"it has no {tool}"
        elif code != 0:
            yield f"{tool} failed with exit code {code}: {last[0]}"
