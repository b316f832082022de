"""Host names: what a Host header or an Origin means, and the names of this machine.

Called by rank 0's HTTP threads. Asks the system for this machine's names, and nobody for others'.
"""

import ipaddress
import re
import socket
import subprocess
import sys
import threading

LOOKUP_S = 2.0  # what a request waits for a name server; it goes on asking
# By these a container calls the machine that it runs on.
FROM_CONTAINERS = ("host.docker.internal", "host.containers.internal")
AUTHORITY = re.compile(r"(\[[0-9a-f:.]+(?:%[\w.~-]+)?\]|[\w.~-]+)(?::(\d{0,5}))?", re.ASCII)
ORIGIN = re.compile(r"(https?)://([^/?#@\\\s]+)")
PORTS = {"http": "80", "https": "443"}


def split_authority(text: str) -> tuple[str, str] | None:
    """Name or address in lower case, and port ("": none) of "name:port"; None for anything else,
    as with a user's name in it. An IPv6 address is without its brackets."""
    found = AUTHORITY.fullmatch(text.strip().lower())
    if found is None:
        return None
    name = found[1].strip("[]") if found[1].startswith("[") else found[1].removesuffix(".")
    return (name, (found[2] or "").lstrip("0")) if name else None


def is_origin_of(origin: str, authority: tuple[str, str]) -> bool:
    """Whether a page of this origin came from a server that was asked for by this Host. Behind a
    proxy the server cannot know the scheme; only the port depends on it."""
    found = ORIGIN.fullmatch(origin.strip().lower())
    whence = split_authority(found[2]) if found else None
    if whence is None:
        return False
    port = PORTS[found[1]]
    return (whence[0], whence[1] or port) == (authority[0], authority[1] or port)


def is_address(name: str) -> bool:
    """Whether this is an IP address in some notation: no name server is asked for those."""
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        pass
    if not re.fullmatch(r"[0-9a-fx.]*\d[0-9a-fx.]*", name):
        return False
    try:
        socket.inet_aton(name)
        return True
    except OSError:
        return False


class HostNames:
    """What this machine may be called. listed: by the operator, too; "*" is everything."""

    def __init__(self, listed: tuple[str, ...] = ()) -> None:
        own = socket.gethostname().lower().removesuffix(".")
        self._label = own.partition(".")[0]
        self._names = {own, self._label, f"{self._label}.local", *FROM_CONTAINERS}
        self._names |= {name.lower().removesuffix(".") for name in listed}
        self._lookup = threading.Thread(target=self._look_up, name="host names", daemon=True)
        self._asked = threading.Lock()
        self._started = False

    def __contains__(self, name: str) -> bool:
        """name as split_authority has it."""
        if "*" in self._names or is_address(name):
            return True
        if name == "localhost" or name.endswith(".localhost"):
            return True
        if name not in self._names and (name.partition(".")[0] == self._label or _is_local(name)):
            self._wait_for_lookup()
        return name in self._names

    def _wait_for_lookup(self) -> None:
        """Once, and only when somebody uses a name that may be ours: to listen needs no names."""
        with self._asked:
            if not self._started:
                self._started = True
                self._lookup.start()
        self._lookup.join(LOOKUP_S)

    def _look_up(self) -> None:
        full = socket.getfqdn().lower().removesuffix(".")
        if full.partition(".")[0] == self._label:  # else a name server's, not this machine's
            self._names = {*self._names, full}
        if sys.platform == "darwin":
            # Of its own: the name that others see is not always made of the host name.
            command = ["scutil", "--get", "LocalHostName"]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=5)
            except (OSError, subprocess.SubprocessError):
                return
            if name := done.stdout.strip().lower():
                self._names = {*self._names, name, f"{name}.local"}


def _is_local(name: str) -> bool:
    return name.endswith(".local") or "." not in name
