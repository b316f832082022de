"""The texts of macOS's tools as values. Thunderbolt's own are read by the package thunderbolt.

Formats as Apple's TN3205, MLX's source and users' reports show them. Pure functions; a text
without what is looked for gives None or nothing, since a tool that changed its words must not
end the run.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MIB = 1 << 20
_FIELD = re.compile(r"^\s*([\w.]+):\s*(.*?)\s*$", re.M)
_GID = re.compile(r"GID\[\s*(\d+)\]:\s*(\S+)")
_STATE = re.compile(r"^\s*state:\s*(\w+)", re.M)
_NODE = re.compile(r"\+-o (\S+)\s+<class (\w+)")
_CREATOR = re.compile(r'"IOUserClientCreator"\s*=\s*"pid (\d+), ([^"]*)"')


@dataclass(frozen=True)
class DevicePort:
    """One RDMA device as ibv_devinfo shows it: the port's state and its GIDs by index."""

    state: str
    gids: dict[int, str]

    @property
    def active(self) -> bool:
        return self.state == "PORT_ACTIVE"

    @property
    def mapped(self) -> list[int]:
        """The indices of the IPv4-mapped GIDs."""
        return [index for index, gid in self.gids.items() if gid.lower().startswith("::ffff:")]


@dataclass(frozen=True)
class DeviceUse:
    """Who has an RDMA device open, and how many queue pairs exist on it."""

    queue_pairs: int
    holders: tuple[tuple[int, str], ...]  # pid and name


@dataclass(frozen=True)
class Firewall:
    """macOS's application firewall. apps: programs, or the bundles they are in, and whether each
    may take connections; one that is not listed is asked for in a window when it listens."""

    on: bool
    blocks_all: bool = False
    apps: tuple[tuple[str, bool], ...] = ()

    def lets_in(self, program: str) -> bool | None:
        """None: it is not listed."""
        for path, allowed in self.apps:
            if program == path or program.startswith(f"{path.rstrip('/')}/"):
                return allowed
        return None


def parse_fields(text: str) -> dict[str, str]:
    """`key: value` lines, as sw_vers and sysctl print them."""
    return dict(_FIELD.findall(text))


def parse_sw_vers(text: str) -> tuple[str, str] | None:
    """(version, build), such as ("26.3", "25D125")."""
    fields = parse_fields(text)
    version, build = fields.get("ProductVersion"), fields.get("BuildVersion")
    return (version, build) if version and build else None


def parse_sysctl(text: str) -> tuple[int | None, int | None]:
    """Bytes of memory, and bytes that the GPU may wire (0: the system's default)."""
    fields = parse_fields(text)
    memory, limit = fields.get("hw.memsize", ""), fields.get("iogpu.wired_limit_mb", "")
    return (
        int(memory) if memory.isdigit() else None,
        int(limit) * MIB if limit.isdigit() else None,
    )


def parse_vm_stat(text: str) -> int | None:
    """Bytes that are wired down."""
    page = re.search(r"page size of (\d+) bytes", text)
    wired = re.search(r"Pages wired down:\s*(\d+)", text)
    return int(page[1]) * int(wired[1]) if page and wired else None


def parse_pmset(text: str, name: str = "sleep") -> int | None:
    """Minutes of idleness after which it sleeps, or its display with displaysleep; 0 is never."""
    found = re.search(rf"^\s*{name}\s+(\d+)", text, re.M)
    return int(found[1]) if found else None


def parse_switch(text: str, name: str) -> bool | None:
    """`FileVault is On.`"""
    found = re.search(rf"{name} (on|off|enabled|disabled)\b", text, re.I)
    return found[1].lower() in ("on", "enabled") if found else None


def count_displays(profile: Mapping[str, Any]) -> int | None:
    """Displays in `system_profiler SPDisplaysDataType -json`; a Mac without one shows its GPU."""
    cards = profile.get("SPDisplaysDataType")
    if not isinstance(cards, list):
        return None
    return sum(len(card.get("spdisplays_ndrvs") or ()) for card in cards if isinstance(card, dict))


def parse_firewall(state: str, block: str, apps: str) -> Firewall | None:
    """`socketfilterfw` with --getglobalstate, --getblockall and --listapps.

    An application's path and what it may do stand on one line or on two."""
    number = re.search(r"State = (\d)", state)
    on = int(number[1]) > 0 if number else parse_switch(state, "Firewall is")
    if on is None:
        return None
    lines = f"{state}\n{block}"
    blocks = re.search(r"State = 2|block(ing)? all (?!.*(disabled|off\b))", lines, re.I)
    found = re.findall(r"^\s*\d+\s*:\s*(/.*?)\s*\(\s*(Allow|Block)\b", apps, re.M | re.I)
    listed = tuple((path, verdict.lower() == "allow") for path, verdict in found)
    return Firewall(on, on and bool(blocks), listed)


def parse_ibv_devinfo(text: str) -> DevicePort | None:
    """One device's port; None for `No IB devices found` and the like."""
    state = _STATE.search(text)
    if not state:
        return None
    return DevicePort(state[1], {int(index): gid for index, gid in _GID.findall(text)})


def parse_lsof(text: str) -> list[tuple[int | None, str]]:
    """(pid, command) of each process in lsof's table."""
    rows = [line.split() for line in text.splitlines()]
    found = [(int(row[1]), row[0]) for row in rows if len(row) > 1 and row[1].isdigit()]
    return list(dict.fromkeys(found))


def parse_ioreg(text: str) -> dict[str, DeviceUse]:
    """Use of each RDMA device in `ioreg -r -c AppleThunderboltIPPort -l`.

    Below a device's own node stand its queue pairs and one client for each process that opened it.
    """
    pairs: dict[str, int] = {}
    holders: dict[str, dict[int, str]] = {}
    device = ""
    for line in text.splitlines():
        if node := _NODE.search(line):
            if node[2] == "AppleThunderboltRDMAInterface":
                device = node[1]
                pairs.setdefault(device, 0)
                holders.setdefault(device, {})
            elif node[2] == "AppleThunderboltIPPort":
                device = ""
            elif device and node[2] == "AppleThunderboltRDMAQueuePair":
                pairs[device] += 1
        elif device and (creator := _CREATOR.search(line)):
            holders[device][int(creator[1])] = creator[2]
    return {name: DeviceUse(pairs[name], tuple(holders[name].items())) for name in pairs}


def parse_meminfo(text: str) -> int | None:
    """Linux: bytes of memory."""
    found = re.search(r"^MemTotal:\s*(\d+) kB", text, re.M)
    return int(found[1]) * 1024 if found else None


def parse_os_release(text: str) -> str:
    """Linux: its name, such as "Debian GNU/Linux 12 (bookworm)"."""
    found = re.search(r'^PRETTY_NAME="?([^"\n]*)', text, re.M)
    return found[1] if found else "Linux"


def version_numbers(version: str) -> tuple[int, ...]:
    """ "26.3.1" as numbers that compare."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def last_line(texts: Iterable[str]) -> str:
    """The last line that says something, of the first text that has one."""
    for text in texts:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if lines:
            return lines[-1]
    return ""
