"""The fastest address of a host: a Thunderbolt cable's where there is one.

The ssh name of a host leads over Ethernet or Wi-Fi as a rule, ten to a hundred times slower than
the cable between two Macs. The hostfile tells of the cable in two ways: host k's rdma matrix names
the device that leads to rank 0 (rdma_en3 sits on interface en3, whose address the host is asked
for), and "ips" may list addresses on the Thunderbolt network. Each candidate is tried with one
short ssh; the first that answers, with the host's own key, carries the copy. If none does, the
copy goes by the ssh name. Addresses of cables are often link-local, the same network on every
port, so this machine's end is bound to its own interface.
"""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.lib.hosts.hostfile import Hostfile, HostfileError, read_hostfile
from scripts.lib.hosts.on_hosts import LOCAL_HOST, command_for
from scripts.lib.sync.parallel import Failure
from scripts.lib.sync.probe import MARK, after_mark, ask

TRY_WITHIN_S = 8.0

# The IPv4 address of each interface that is named, by macOS's tool or by Linux's.
ADDRESSES = f"""
PATH=$PATH:/usr/sbin:/sbin
echo '{MARK}'
for interface in "$@"; do
  address=$(ipconfig getifaddr "$interface" 2>/dev/null) ||
    address=$(ip -4 -o addr show dev "$interface" 2>/dev/null | awk '{{ print $4; exit }}')
  echo "$interface ${{address%%/*}}"
done
"""


@dataclass(frozen=True)
class Route:
    """How to reach a host: more options for ssh, and words for the user."""

    options: tuple[str, ...]
    words: str


BY_NAME = Route((), "")


def read_hosts(path: Path | None) -> Hostfile | None:
    """The hostfile, if there is one that can be read. What is wrong with it is told elsewhere."""
    try:
        return read_hostfile(path) if path else None
    except (OSError, HostfileError):
        return None


def find_route(host: str, hosts: Hostfile | None) -> Route:
    """The fastest way to this host that works now."""
    rank = _rank_of(host, hosts)
    if rank in (None, 0):
        return BY_NAME
    identity = _identity(host)
    for address, interface, words in _candidates(host, rank, hosts):
        options = ["-o", f"HostName={address}", *identity]
        if interface:
            options += ["-o", f"BindInterface={interface}"]
        if _works(host, options):
            return Route(tuple(options), words)
    return BY_NAME


def _rank_of(host: str, hosts: Hostfile | None) -> int | None:
    names = [each.ssh for each in hosts.hosts] if hosts else []
    return names.index(host) if host in names else None


def _candidates(host: str, rank: int, hosts: Hostfile) -> Iterator[tuple[str, str, str]]:
    """Address, the interface here that leads to it (or empty), and words; the fastest first."""
    there, here = hosts.hosts[rank].rdma, hosts.hosts[0].rdma
    far = _interfaces(there[0]) if there else []
    near = _interfaces(here[rank]) if len(here) > rank else []
    if far:
        try:
            told = after_mark(ask(host, ["sh", "-c", ADDRESSES, "sh", *far]))
        except Failure:
            told = ""
        found = dict(line.partition(" ")[::2] for line in told.splitlines())
        for i, interface in enumerate(far):
            if address := found.get(interface):
                words = f"over Thunderbolt ({interface} there, {address})"
                yield address, near[i] if i < len(near) else "", words
    for address in hosts.hosts[rank].ips:
        yield address, "", f"over {address}"


def _interfaces(devices: tuple[str, ...] | None) -> list[str]:
    """The network interfaces of RDMA devices: rdma_en3 is a port of en3."""
    return [device.removeprefix("rdma_") for device in devices or ()]


def _identity(host: str) -> list[str]:
    """Options that make ssh expect the key of this host at any address."""
    told = subprocess.run(["ssh", "-G", host], capture_output=True, text=True, timeout=10).stdout
    settings = dict(line.partition(" ")[::2] for line in told.splitlines())
    if settings.get("hostkeyalias", "none") != "none":
        return []
    name, port = settings.get("hostname", host), settings.get("port", "22")
    return ["-o", f"HostKeyAlias={name if port == '22' else f'[{name}]:{port}'}"]


def _works(host: str, options: list[str]) -> bool:
    if host == LOCAL_HOST:
        return False
    words = command_for(host, ["true"], options)
    try:
        tried = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, timeout=TRY_WITHIN_S
        )
    except subprocess.TimeoutExpired:
        return False
    return tried.returncode == 0
