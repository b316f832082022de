#!/usr/bin/env python3
"""Reads a hostfile as mlx.launch does, and says what is wrong with it before anything starts.

The shell scripts call it (`hostfile.py COMMAND FILE`), on the machine that launches; tests call
its functions. It needs the standard library alone, never connects to a host and never changes
the file. What it prints goes to the shell: one plain value, or one line for each host.

    hosts    ssh name of each rank, in rank order
    backend  the file's own "backend", else jaccl with an rdma matrix and ring without
    rank0    the address at which rank 0's HTTP port can be reached
    rows     ssh name, a tab, the rdma devices of that rank (commas between), for each rank
    envs     each NAME=VALUE of the file's "envs"
    check    nothing when the file can be launched, else one line on stderr for each problem

Exit codes: 0 fine, 1 the file is wrong, 2 usage, 3 no such file.
"""

import argparse
import difflib
import ipaddress
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.lib.hosts.reach import MOST_RANKS
from scripts.lib.verbs.file_kind import no_file

BACKENDS = ("jaccl", "jaccl-ring", "ring")

# ssh takes a name that begins with a dash as an option, and the scripts read names line by line.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@%-]*")
KEYS = ("hosts", "backend", "envs")
HOST_KEYS = ("ssh", "ips", "rdma")
LIKE = 0.6  # how alike a key that we don't know is to one that was meant
ENV_ENTRY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=[^\n]*")
PLACEHOLDER = re.compile(r"<[^<>]*>")  # how the templates mark what must be filled in


class HostfileError(ValueError):
    """The file cannot be understood at all. The message names the host and the value."""


@dataclass(frozen=True)
class Host:
    """One rank. ssh: NAME or USER@NAME. `rdma[j]`: the devices that lead to rank j; None is the
    file's null."""

    ssh: str
    ips: tuple[str, ...]
    rdma: tuple[tuple[str, ...] | None, ...]


@dataclass(frozen=True)
class Hostfile:
    """The whole file; a host's place in the list is its rank."""

    hosts: tuple[Host, ...]
    backend: str
    envs: tuple[str, ...]


def read_hostfile(path: Path) -> Hostfile:
    """Parses a file. Raises OSError where it cannot be read, and HostfileError."""
    if problem := no_file(path):
        raise HostfileError(problem)
    try:
        return parse_hostfile(path.read_text("utf-8"))
    except UnicodeDecodeError as error:
        raise HostfileError(str(error)) from None


def parse_hostfile(text: str) -> Hostfile:
    """Parses mlx's format: a list of hosts, or an object with hosts, backend and envs.

    Raises HostfileError where mlx.launch could not read the file, or would read it as
    something else than was meant.
    """
    try:
        data = json.loads(text, object_pairs_hook=_no_key_twice)
    except HostfileError:
        raise
    except ValueError as error:
        raise HostfileError(f"is not JSON: {error}") from None
    except RecursionError:
        raise HostfileError("is nested too deeply") from None
    try:
        return _parse(data)
    except RecursionError:  # of what is shown
        raise HostfileError("has a value that is nested too deeply") from None


def _no_key_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Of two with one name JSON keeps the last, and nobody sees that the first is gone."""
    for key, times in Counter(key for key, _ in pairs).items():
        if times > 1:
            raise HostfileError(f'"{key}" stands {times} times in one object')
    return dict(pairs)


def _check_keys(name: str, data: dict[str, object], known: Sequence[str]) -> None:
    """What mlx.launch does not read is the writer's affair, but for what was meant to be read."""
    for key in data:
        if key not in known and (meant := difflib.get_close_matches(key.lower(), known, 1, LIKE)):
            raise HostfileError(f'{name}"{key}" is not read: "{meant[0]}" is meant')


def _parse(data: object) -> Hostfile:
    if isinstance(data, list):
        data = {"hosts": data}
    if not isinstance(data, dict) or not isinstance(data.get("hosts"), list):
        raise HostfileError('must be a list of hosts, or an object with a list "hosts"')
    _check_keys("", data, KEYS)
    if not data["hosts"]:
        raise HostfileError("lists no hosts")
    backend = data.get("backend", "")
    if not isinstance(backend, str):
        raise HostfileError(f'"backend" is {backend!r}: must be a text')
    return Hostfile(
        hosts=tuple(_parse_host(rank, host) for rank, host in enumerate(data["hosts"])),
        backend=backend,
        envs=_texts('"envs"', data.get("envs", [])),
    )


def _parse_host(rank: int, data: object) -> Host:
    if not isinstance(data, dict):
        raise HostfileError(f'rank {rank} is {data!r}: must be an object with "ssh"')
    ssh = data.get("ssh")
    if not isinstance(ssh, str) or not ssh:
        raise HostfileError(f'rank {rank}: "ssh" is {ssh!r}: must be the name to ssh to')
    name = f"rank {rank} ({ssh})"
    _check_keys(f"{name}: ", data, HOST_KEYS)
    row = data.get("rdma", [])
    if not isinstance(row, list):
        raise HostfileError(f'{name}: "rdma" is {row!r}: must be a list with an entry a rank')
    return Host(
        ssh=ssh,
        ips=_texts(f'{name}: "ips"', data.get("ips", [])),
        rdma=tuple(_parse_devices(f'{name}: "rdma" entry {j}', cell) for j, cell in enumerate(row)),
    )


def _parse_devices(name: str, cell: object) -> tuple[str, ...] | None:
    if cell is None:
        return None
    devices = _texts(name, [cell] if isinstance(cell, str) else cell)
    if not devices or not all(devices):
        raise HostfileError(f"{name} is {cell!r}: must be null, a device or a list of devices")
    return devices


def _texts(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise HostfileError(f"{name} is {value!r}: must be a list of texts")
    return tuple(value)


def choose_backend(hostfile: Hostfile) -> str:
    """The backend to launch with when the user named none."""
    if hostfile.backend:
        return hostfile.backend
    return "jaccl" if any(host.rdma for host in hostfile.hosts) else "ring"


def ssh_name_problem(name: str) -> str:
    """What is wrong with NAME or USER@NAME as what a host is reached by; "": nothing."""
    if not _NAME.fullmatch(name):
        return "not a name that ssh takes"
    host = name.rpartition("@")[2]
    if ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            return "a port has its place in ~/.ssh/config, not in the name"
    return ""


def is_address(text: str) -> bool:
    """Whether it may be an address, or a name in its place; a template's mark is none."""
    return _NAME.fullmatch(text) is not None


def host_name(ssh: str) -> str:
    """Which host an ssh name means, whoever is to log in there: user@Mac1 is mac1."""
    return ssh.rpartition("@")[2].lower()


def rank0_address(hostfile: Hostfile) -> str:
    """The address of rank 0 for HTTP: its first ip, else its ssh name without the user."""
    first = hostfile.hosts[0]
    return first.ips[0] if first.ips else host_name(first.ssh)


def find_problems(hostfile: Hostfile, backend: str = "") -> list[str]:
    """All that would make a launch with this backend (default: the file's) fail or hang.

    It knows the file alone: whether the matrix matches the cables, no file can tell.
    """
    backend = backend or choose_backend(hostfile)
    if backend not in BACKENDS:
        return [f'"backend" is {backend!r}: must be one of {", ".join(BACKENDS)}']
    problems = [*_check_names(hostfile), *_check_envs(hostfile)]
    if backend == "ring":
        problems += _check_ring_ips(hostfile)
    else:
        problems += _check_coordinator(hostfile)
        problems += _check_matrix(hostfile, neighbours_only=backend == "jaccl-ring")
    return problems


def _label(hostfile: Hostfile, rank: int) -> str:
    return f"rank {rank} ({hostfile.hosts[rank].ssh})"


def _check_names(hostfile: Hostfile) -> Iterator[str]:
    for rank, host in enumerate(hostfile.hosts):
        name = _label(hostfile, rank)
        if PLACEHOLDER.search(host.ssh):
            yield f'{name}: "ssh" is still the template\'s {host.ssh!r}: put in the ssh name'
        elif problem := ssh_name_problem(host.ssh):
            yield f'{name}: "ssh" is {host.ssh!r}: {problem}'
        for ip in host.ips:
            if PLACEHOLDER.search(ip):
                yield f'{name}: "ips" still has the template\'s {ip!r}: put in the address'
            elif not is_address(ip):
                yield f'{name}: "ips" has {ip!r}: not an address'
        for device in _devices(host):
            if PLACEHOLDER.search(device):
                yield f'{name}: "rdma" still has the template\'s {device!r}: put in the device'


def _check_envs(hostfile: Hostfile) -> Iterator[str]:
    for entry in hostfile.envs:
        if PLACEHOLDER.search(entry) or not ENV_ENTRY.fullmatch(entry):
            yield f'"envs" has {entry!r}: must be NAME=VALUE'


def _check_ring_ips(hostfile: Hostfile) -> Iterator[str]:
    for rank, host in enumerate(hostfile.hosts):
        if not host.ips:
            yield f'{_label(hostfile, rank)}: no "ips": the ring backend needs one for each rank'


def _check_coordinator(hostfile: Hostfile) -> Iterator[str]:
    first = hostfile.hosts[0]
    if not first.ips:
        yield f'{_label(hostfile, 0)}: no "ips": the other ranks must reach rank 0 at an address'
        return
    ip = first.ips[0]
    if PLACEHOLDER.search(ip):
        return
    # JACCL cuts the coordinator's address at its first colon and opens an IPv4 socket.
    try:
        address = ipaddress.IPv4Address(ip)
    except ValueError:
        yield f'{_label(hostfile, 0)}: "ips" begins with {ip!r}: must be an IPv4 address for JACCL'
        return
    if address.is_loopback or address.is_unspecified:
        yield f'{_label(hostfile, 0)}: "ips" begins with {ip!r}: the other ranks cannot reach it'


def _check_matrix(hostfile: Hostfile, neighbours_only: bool) -> Iterator[str]:
    hosts, count = hostfile.hosts, len(hostfile.hosts)
    if count < 2:
        yield "lists one host: JACCL needs at least two"
        return
    if count > MOST_RANKS and not neighbours_only:
        yield f"lists {count} hosts: a JACCL mesh has at most {MOST_RANKS}"
    yield from _check_twice([host.ssh for host in hosts if not PLACEHOLDER.search(host.ssh)])
    wrong_rows = False
    for rank, host in enumerate(hosts):
        name = _label(hostfile, rank)
        if len(host.rdma) != count:
            wrong_rows = True
            yield f'{name}: "rdma" has {len(host.rdma)} entries: must have {count}, one a rank'
        elif host.rdma[rank] is not None:
            yield f'{name}: "rdma" entry {rank} is its own place: must be null'
        for device, times in Counter(_devices(host)).items():
            # One device is one port, and a port has one cable.
            if times > 1:
                yield f'{name}: "rdma" has {device!r} {times} times: a device leads to one rank'
    if not wrong_rows:
        yield from _check_links(hostfile, neighbours_only)


def _check_twice(names: list[str]) -> Iterator[str]:
    for name, times in Counter(map(host_name, names)).items():
        spelt = [repr(each) for each in dict.fromkeys(names) if host_name(each) == name]
        if times > 1:
            what = " and ".join(spelt) + (" is" if len(spelt) == 1 else " are one host")
            yield f"{what} listed {times} times: JACCL runs one rank on a host"


def _check_links(hostfile: Hostfile, neighbours_only: bool) -> Iterator[str]:
    hosts, count = hostfile.hosts, len(hostfile.hosts)
    widths = set()
    for i in range(count):
        for j in range(i + 1, count):
            needed = not neighbours_only or j - i in (1, count - 1)
            there, back = hosts[i].rdma[j] or (), hosts[j].rdma[i] or ()
            pair = f"{_label(hostfile, i)} and {_label(hostfile, j)}"
            if needed and not there and not back:
                yield f'{pair}: no "rdma" device links them'
            elif len(there) != len(back) and (needed or there or back):
                yield (
                    f'{pair}: "rdma" has {_show(there)} one way and {_show(back)} the other: '
                    "a cable has two ends"
                )
            elif needed:
                widths.add(len(there))
    if len(widths) > 1:
        # A ring refuses it; what a mesh does with it nobody has tried.
        listed = " and ".join(map(str, sorted(widths)))
        yield (
            f'pairs have {listed} "rdma" devices: JACCL needs the same number everywhere, so list '
            f"{min(widths)} for each"
        )


def _devices(host: Host) -> list[str]:
    return [device for cell in host.rdma for device in cell or ()]


def _show(devices: tuple[str, ...]) -> str:
    return ", ".join(devices) or "none"


def main(arguments: list[str]) -> int:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="hostfile.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("command", choices=("hosts", "backend", "rank0", "rows", "envs", "check"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--backend", default="", help="check for this one")
    options = parser.parse_args(arguments)
    try:
        hostfile = read_hostfile(options.file)
    except FileNotFoundError:
        return _complain(options.file, ["no such file"], code=3)
    except OSError as error:
        return _complain(options.file, [error.strerror or str(error)], code=3)
    except HostfileError as error:
        return _complain(options.file, [str(error)], code=3 if no_file(options.file) else 1)
    if options.command == "check":
        return _complain(options.file, find_problems(hostfile, options.backend))
    # Names that would go wrong in a shell never reach one.
    if options.command in ("hosts", "rank0", "rows") and (bad := list(_check_names(hostfile))):
        return _complain(options.file, bad)
    if options.command == "hosts":
        lines = [host.ssh for host in hostfile.hosts]
    elif options.command == "rows":
        lines = [f"{host.ssh}\t{','.join(_devices(host))}" for host in hostfile.hosts]
    elif options.command == "envs":
        lines = list(hostfile.envs)
    else:
        choose = {"backend": choose_backend, "rank0": rank0_address}[options.command]
        lines = [choose(hostfile)]
    print("".join(f"{line}\n" for line in lines), end="")
    return 0


def _complain(file: Path, problems: list[str], code: int = 1) -> int:
    for problem in problems:
        print(f"{file}: {problem}", file=sys.stderr)
    return code if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
