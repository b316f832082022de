"""Two Macs of two people, as far as one Linux machine can be: other user names, homes and files.

Each has a real sshd in a mount namespace of its own, and a real account with zsh, the shell of
macOS. /Users (here FOLDER/Users) is another folder on each: mac0 has anna's home, mac1 bjorn's, and
both have Users/Shared, where everybody may put something. Neither user may read what belongs to the
one who runs the tests, so Python and its packages are mounted at FOLDER/python and FOLDER/packages.
pids and ports are shared.

    with two_users() as macs:
        macs.names                  ("anna…@mac0", "bjorn…@mac1"): what anna types after ssh
        macs.shared                 Users/Shared, the same path on both
        macs.view(1, path)          where mac1's own file of a path in Users lies
        macs.run("scripts/x --y", cwd)   anna runs it at mac0; the CompletedProcess, with text

Only root can make accounts; others skip the test, with the reason.
"""

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support import ring_waits
from tests.support.launch_helpers import wait_until
from tests.support.nodes import no_views
from tests.support.ports import free_port

ADDRESS = "127.0.0.1"
PEOPLE = ("anna", "bjorn")
TOOLS = ("sshd", "ssh", "ssh-keygen", "rsync", "zsh", "useradd", "userdel", "usermod")


class TwoUsers:
    """See the module's docstring. hosts: mac0 and mac1, each of the user of the same place."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.users = tuple(f"{name}{os.getpid()}" for name in PEOPLE)
        self.hosts = ("mac0", "mac1")
        self.names = tuple(f"{u}@{h}" for u, h in zip(self.users, self.hosts, strict=True))
        self.people = folder / "Users"
        self.shared = self.people / "Shared"
        self.packages, self.base = folder / "packages", folder / "python"
        self._ports = [free_port() for _ in self.hosts]
        self._sshds: list[subprocess.Popen] = []

    @property
    def python(self) -> Path:
        """The interpreter that a virtual environment can be made with on both."""
        return self.base / "bin" / f"python3.{sys.version_info.minor}"

    def view(self, place: int, path: Path) -> Path:
        """Where a path below Users lies for whoever looks from outside."""
        return self.folder / self.hosts[place] / path.relative_to(self.people)

    def give(self, place: int, path: Path) -> None:
        """The user of this Mac owns what lies there."""
        subprocess.run(["chown", "-R", self.users[place], self.view(place, path)], check=True)

    def begin(self) -> None:
        """Accounts, keys and sshds."""
        self.folder.chmod(0o755)
        for mounted in (self.people, self.packages, self.base):
            mounted.mkdir()
        for place, user in enumerate(self.users):
            home = self.people / user
            (shared := self.view(place, self.shared)).mkdir(parents=True)
            shared.chmod(0o1777)
            _run("useradd", "--no-create-home", "-d", str(home), "-s", _found("zsh"), user)
            _run("usermod", "-p", "*", user)  # no password; without one sshd takes it for locked
            (ssh := self.view(place, home) / ".ssh").mkdir(parents=True)
            self.view(place, home).chmod(0o750)
            (ssh.parent / ".zshrc").write_text("")  # or zsh asks a newcomer what he likes
            ssh.chmod(0o700)
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self._key))
        for place, host in enumerate(self.hosts):
            self._write_sshd(place, host)
            ssh = self.view(place, self.people / self.users[place] / ".ssh")
            shutil.copy(f"{self._key}.pub", ssh / "authorized_keys")
            self.give(place, self.people / self.users[place])
        ssh = self.view(0, self.people / self.users[0] / ".ssh")
        shutil.copy(self._key, ssh / "id_ed25519")
        (ssh / "config").write_text(
            "".join(
                f"Host {host}\n  HostName {ADDRESS}\n  Port {port}\n"
                f"  HostKeyAlias {host}\n  StrictHostKeyChecking accept-new\n"
                for host, port in zip(self.hosts, self._ports, strict=True)
            )
        )
        self.give(0, self.people / self.users[0])
        for host in self.hosts:
            self._sshds.append(self._start(host))
        wait_until(lambda: self._ask(0, "true").returncode == 0, "mac0")
        wait_until(lambda: self._ask(1, "true").returncode == 0, "mac1")

    @property
    def _key(self) -> Path:
        return self.folder / "client_key"

    def _write_sshd(self, place: int, host: str) -> None:
        key = self.folder / f"{host}.key"
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
        (self.folder / f"{host}.conf").write_text(
            f"Port {self._ports[place]}\nListenAddress {ADDRESS}\nHostKey {key}\n"
            "PidFile none\nUsePAM no\nPrintMotd no\nUseDNS no\nMaxStartups 100\n"
            f"StrictModes no\nAllowUsers {self.users[place]}\n"
            # Where it is a library it has been linked by a path that they may not read.
            f"SetEnv LD_LIBRARY_PATH={self.base / 'lib'} LD_PRELOAD={ring_waits.library()}\n"
        )

    def _start(self, host: str) -> subprocess.Popen:
        mounts = (
            (self.folder / host, self.people),
            (Path(sysconfig.get_path("platlib")), self.packages),
            (Path(sys.base_prefix), self.base),
        )
        lines = [shlex.join(["mount", "--bind", str(a), str(b)]) for a, b in mounts]
        config, log = self.folder / f"{host}.conf", self.folder / f"{host}.log"
        last = shlex.join(["exec", _found("sshd"), "-D", "-f", str(config), "-E", str(log)])
        return subprocess.Popen(["unshare", "--mount", "sh", "-ec", "\n".join([*lines, last])])

    def _ask(self, place: int, command: str, within_s: float = 60) -> subprocess.CompletedProcess:
        options = [f"-oPort={self._ports[place]}", f"-oIdentityFile={self._key}", "-n"]
        options += ["-oUserKnownHostsFile=/dev/null", "-oStrictHostKeyChecking=no"]
        options += ["-F", "/dev/null", "-oBatchMode=yes", "-oLogLevel=ERROR"]
        words = ["ssh", *options, f"{self.users[place]}@{ADDRESS}", command]
        return subprocess.run(words, capture_output=True, text=True, timeout=within_s)

    def run(
        self, command: str, cwd: Path, place: int = 0, *, env: Mapping[str, object] | None = None
    ) -> subprocess.CompletedProcess:
        """A line of shell, run by the user of that Mac, there."""
        exports = [f"export {shlex.quote(f'{k}={v}')}" for k, v in (env or {}).items()]
        line = " && ".join([f"cd {shlex.quote(str(cwd))}", *exports, command])
        return self._ask(place, line, within_s=900)  # a guard alone

    def end(self) -> None:
        """Ends the sshds and all that was started there, and removes the accounts."""
        for sshd in self._sshds:
            sshd.terminate()
            sshd.wait()
        for user in self.users:
            # Every process of an account that is ours alone.
            while subprocess.run(["pgrep", "-u", user], capture_output=True).returncode == 0:
                subprocess.run(["pkill", "-KILL", "-u", user], check=False)
            subprocess.run(["userdel", user], capture_output=True, check=False)


def _found(tool: str) -> str:
    return shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or ""


def _run(*words: str) -> None:
    subprocess.run([_found(words[0]), *words[1:]], check=True)


@contextlib.contextmanager
def two_users() -> Iterator[TwoUsers]:
    """Both Macs, for as long as the block runs; or a skip."""
    if os.getuid() != 0:
        pytest.skip("only root can make accounts for other users")
    if missing := [tool for tool in TOOLS if not _found(tool)]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if reason := no_views():
        pytest.skip(f"nodes cannot have files of their own here: {reason}")
    Path("/run/sshd").mkdir(exist_ok=True)
    # Not pytest's own folder, which nobody else may look into.
    with tempfile.TemporaryDirectory(prefix="two-users-", dir="/tmp") as folder:
        macs = TwoUsers(Path(folder))
        try:
            macs.begin()
            yield macs
        finally:
            macs.end()
