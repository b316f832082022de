"""Several real sshd's on loopback that stand for the nodes of a cluster.

The fixture `nodes` (tests/conftest.py) gives `Nodes`: node-1, node-2, ... (those of NODE_NAMES),
each with an sshd, a host key, a home and a PATH of its own. They are started once for the whole
run and put back into their first state after each test. `ssh node-2 ...` gets there for every
program that is run with `nodes.env`, whose PATH begins with an ssh that knows them; so do rsync,
mlx.launch and our scripts, and commands on the nodes themselves. `node-gone` refuses connections.

    nodes.env                      environment for subprocess: os.environ, and PATH
    nodes.names[:3]                their ssh names
    nodes.need_terminals()         before mlx.launch goes there: skips where that cannot be
    nodes["node-2"], nodes[1]      one Node, by name or by place (0 is node-1)
    nodes.write_hostfile(path, names)     a ring hostfile, everybody at 127.0.0.1
    nodes.shadow(path)             from now on every node but node-1 (which is rank 0, and shares
                                   this machine's files) has a directory of its own at this
                                   absolute path, empty at first; node.view(path) is where that
                                   directory can be looked at and changed from outside

    node.ssh("command")            run it there; the CompletedProcess, with text
    node.home, node.view(path)     directories, as this process sees them
    node.stub("df", "echo ...")    a program that comes first on that node's PATH
    node.setenv("NAME", "value")   in the environment of each of its commands
    node.profile("Welcome!\\n")     printed on stdout before each command, as a talkative profile
    node.hang("*rdma_ctl*")        commands that match this glob never return
    node.replace(path, data)       that one existing file has other content there (a wrong model
                                   file, say)
    node.pretend("mlx", "0.31.0")  its Python reports this version, by importlib.metadata and as
                                   mlx.core.__version__ (not under `python -I` or -E)
    node.down()                    as if the power had gone: refuses, and all that ran has ended
    node.freeze()                  accepts connections and never says a word
    node.up()                      back again
    node.commands()                what it was asked to run, oldest first
    node.addresses()               the addresses at which it was asked, in the same order
    node.processes()               pids of what runs there now

On Linux each node also listens on FAST_ADDRESS, another way to the same machine. A view of its
own needs mount namespaces: root has them, other users where the kernel allows user namespaces;
without them `shadow` and `replace` skip the test, with the reason. pids, ports and every path
that is not shadowed are shared by all nodes. No test but those that use the fixture pays for it.
"""

import contextlib
import functools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.launch_helpers import wait_until
from tests.support.ports import free_port

NODE_NAMES = ("node-1", "node-2", "node-3", "node-4")
ADDRESS = "127.0.0.1"
FAST_ADDRESS = "127.0.0.2" if sys.platform == "linux" else ADDRESS

# What sshd runs for every command on a node. $1 is the node's directory.
ENTER = r"""
unset SHLVL # with its own home's ~/.bashrc it is as with any sshd
node=$1
if [ -z "$NODE_DIRECTORY" ]; then
  export NODE_DIRECTORY=$node HOME=$node/home PATH=$node/bin:$node/../bin:$PATH
  set -- $SSH_CONNECTION
  printf '%s\0%s\0' "$3" "$SSH_ORIGINAL_COMMAND" >>"$node/calls"
  [ ! -s "$node/profile" ] || cat "$node/profile"
  . "$node/environment"
  if [ -s "$node/mounts" ]; then
    [ "$(id -u)" = 0 ] && user= || user=--map-root-user
    exec unshare --mount $user bash "$0" "$node"
  fi
else
  while IFS= read -r source && IFS= read -r target; do
    mount --bind "$source" "$target" || exit 1
  done <"$node/mounts"
fi
cd "$HOME" || exit 1
if [ -s "$node/hang" ]; then
  pattern=$(cat "$node/hang")
  case $SSH_ORIGINAL_COMMAND in
    $pattern) exec sleep 100000 ;;
  esac
fi
exec bash ${SSH_ORIGINAL_COMMAND:+-c "$SSH_ORIGINAL_COMMAND"}
"""

# Put before a node's site-packages: mlx.core tells its version by itself.
PRETEND_CORE = """
import importlib.util, os, sys
class Pretend:
    def find_spec(self, name, path=None, target=None):
        if name != "mlx.core":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        def exec_module(module):
            execute(module)
            module.__version__ = os.environ["PRETEND_MLX"]
        spec.loader.exec_module = exec_module
        return spec
if "PRETEND_MLX" in os.environ:
    sys.meta_path.insert(0, Pretend())
"""


@functools.cache
def no_views() -> str:
    """Why a node cannot have a view of its own here; empty when it can."""
    if not shutil.which("unshare"):
        return "no unshare(1): mount namespaces are Linux's"
    user = [] if os.getuid() == 0 else ["--map-root-user"]
    probe = ["unshare", "--mount", *user, "mount", "--bind", "/tmp", "/tmp"]
    done = subprocess.run(probe, capture_output=True, text=True)
    return done.stderr.strip() if done.returncode else ""


class Node:
    """One sshd and what belongs to it; see the module's docstring."""

    def __init__(self, name: str, directory: Path, client_key: Path, env: dict[str, str]):
        self.name = name
        self.directory = directory
        self.home = directory / "home"
        self.port = free_port()
        self._env = env
        self._sshd: subprocess.Popen | None = None
        directory.mkdir()
        _make_key(directory / "host_key")
        enter = f"exec bash {shlex.quote(str(directory.parent / 'enter.sh'))}"
        listen = dict.fromkeys((ADDRESS, FAST_ADDRESS))
        (directory / "sshd_config").write_text(
            f"Port {self.port}\n"
            + "".join(f"ListenAddress {address}\n" for address in listen)
            + f"HostKey {directory}/host_key\nAuthorizedKeysFile {client_key}.pub\n"
            "PidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nPrintMotd no\n"
            "MaxStartups 100\nMaxSessions 100\nUseDNS no\nKexAlgorithms curve25519-sha256\n"
            # Or bash would read the ~/.bashrc of whoever runs the tests, and be slow or talkative.
            "SetEnv SHLVL=9\n"
            f"ForceCommand {enter} {shlex.quote(str(directory))}\n"
        )
        self.reset()

    # Its state.

    def reset(self) -> bool:
        """Into the first state: up, nothing running, no knob set, home and views empty.

        True if it was down, so that it may take a moment to answer.
        """
        self._end_processes()
        for name in ("home", "bin", "views", "site", "replaced"):
            shutil.rmtree(self.directory / name, ignore_errors=True)
            (self.directory / name).mkdir()
        for name in ("calls", "profile", "environment", "mounts", "hang"):
            (self.directory / name).write_text("")
        return self.up()

    def up(self) -> bool:
        """Run sshd, or let it go on; True if it is a new one, see wait_up."""
        if self._sshd is not None and self._sshd.poll() is None:
            self._sshd.send_signal(signal.SIGCONT)
            return False
        sshd = shutil.which("sshd") or "/usr/sbin/sshd"
        files = ["-f", str(self.directory / "sshd_config"), "-E", str(self.directory / "log")]
        self._sshd = subprocess.Popen([sshd, "-D", *files])
        return True

    def wait_up(self) -> None:
        """Until it answers; skips the test if sshd does not start here."""
        sshd = self._sshd
        wait_until(lambda: sshd.poll() is not None or self.ssh("true").returncode == 0, self.name)
        if sshd.poll() is not None:
            pytest.skip(f"sshd does not start here: {(self.directory / 'log').read_text()}")
        (self.directory / "calls").write_text("")

    def down(self) -> None:
        """Stop sshd, its connections and all that was started through it."""
        if self._sshd is not None:
            connections = _descendants(self._sshd.pid)
            self._sshd.kill()
            self._sshd.wait()
            _kill(connections)
        self._end_processes()

    def freeze(self) -> None:
        """Connections are accepted by the kernel, and nobody answers them."""
        self._sshd.send_signal(signal.SIGSTOP)

    # Its knobs.

    def stub(self, program: str, body: str) -> None:
        """A bash script that comes first on its PATH."""
        path = self.directory / "bin" / program
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)

    def setenv(self, name: str, value: str) -> None:
        """One more variable for each of its commands."""
        with (self.directory / "environment").open("a") as file:
            file.write(f"export {name}={shlex.quote(value)}\n")

    def profile(self, text: str) -> None:
        """What it prints before each command."""
        (self.directory / "profile").write_text(text)

    def hang(self, pattern: str = "*") -> None:
        """Commands that match never return; an empty pattern ends that."""
        (self.directory / "hang").write_text(pattern)

    def pretend(self, package: str, version: str) -> None:
        """Its Python reports another version of an installed package."""
        site = self.directory / "site"
        info = site / f"{package.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
        )
        if package == "mlx":
            (site / "sitecustomize.py").write_text(PRETEND_CORE)
            self.setenv("PRETEND_MLX", version)
        self.setenv("PYTHONPATH", str(site))

    def view(self, path: Path | str) -> Path:
        """Where this node's own directory for a shadowed path lies."""
        return self.directory / "views" / str(path).strip("/").replace("/", "!")

    def shadow(self, path: Path | str) -> Path:
        """This node alone has its own directory at `path`; return where it lies."""
        Path(path).mkdir(parents=True, exist_ok=True)
        self.view(path).mkdir(exist_ok=True)
        self._mount(self.view(path), path)
        return self.view(path)

    def replace(self, path: Path | str, data: bytes) -> None:
        """The existing file at `path` has this content here."""
        place = self.directory / "replaced"
        other = place / str(len(list(place.iterdir())))
        other.write_bytes(data)
        other.chmod(Path(path).stat().st_mode & 0o777)
        self._mount(other, path)

    def _mount(self, source: Path, target: Path | str) -> None:
        if reason := no_views():
            pytest.skip(f"nodes cannot have files of their own here: {reason}")
        with (self.directory / "mounts").open("a") as file:
            file.write(f"{source}\n{target}\n")

    # Asking it.

    def ssh(self, command: str, **how) -> subprocess.CompletedProcess:
        """Run a line of shell there."""
        words = ["ssh", "-n", "-o", "BatchMode=yes", self.name, command]
        how = {"capture_output": True, "text": True, "timeout": 60, "env": self._env} | how
        return subprocess.run(words, **how)

    def _calls(self) -> list[str]:
        return (self.directory / "calls").read_text().split("\0")[:-1]

    def commands(self) -> list[str]:
        """Every command that it was asked to run since the test began."""
        return self._calls()[1::2]

    def addresses(self) -> list[str]:
        """Its own address in each of these connections."""
        return self._calls()[::2]

    def processes(self) -> list[int]:
        """What runs in it, by the environment of each process (Linux)."""
        mark = f"NODE_DIRECTORY={self.directory}".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if mark in entry.read_bytes().split(b"\0"):
                    found.append(int(entry.parent.name))
        return found

    def _end_processes(self) -> None:
        while running := self.processes():  # One may fork while it is being looked for.
            _kill(running)
            time.sleep(0.01)


class Nodes:
    """All of them, with the ssh that reaches them; see the module's docstring."""

    def __init__(self, directory: Path, names: Sequence[str]):
        self.names = tuple(names)
        self.directory = directory
        stubs = directory / "bin"
        stubs.mkdir(parents=True)
        directory.chmod(0o700)
        self.env = {**os.environ, "PATH": f"{stubs}:{os.environ['PATH']}"}
        key = directory / "client_key"
        _make_key(key)
        (directory / "enter.sh").write_text(ENTER)
        self._nodes = {name: Node(name, directory / name, key, self.env) for name in names}
        ports = {name: node.port for name, node in self._nodes.items()}
        (directory / "ssh_config").write_text(
            "".join(
                f"Host {name}\n  HostName {ADDRESS}\n  Port {port}\n"
                for name, port in {**ports, "node-gone": free_port()}.items()
            )
            + f"Host *\n  IdentityFile {key}\n  IdentitiesOnly yes\n"
            f"  StrictHostKeyChecking accept-new\n  UserKnownHostsFile {directory}/known_hosts\n"
        )
        wrapper = stubs / "ssh"
        config = shlex.quote(str(directory / "ssh_config"))
        wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {config} "$@"\n')
        wrapper.chmod(0o755)

    def __getitem__(self, which: str | int) -> Node:
        return self._nodes[which if isinstance(which, str) else self.names[which]]

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def wait_up(self) -> None:
        """Until all answer."""
        for node in self:
            node.wait_up()

    def reset(self) -> None:
        """All into their first state."""
        new = [node for node in self if node.reset()]
        for node in new:
            node.wait_up()

    def close(self) -> None:
        """End everything."""
        for node in self:
            node.down()

    def shadow(self, path: Path | str) -> None:
        """Every node but the first has its own directory at `path`."""
        for name in self.names[1:]:
            self[name].shadow(path)

    def need_terminals(self) -> None:
        """Skip the test where sshd can give no terminal, which mlx.launch asks of it.

        sshd of a user other than root must find the terminal to belong to the right group.
        """
        words = ["ssh", "-tt", "-o", "BatchMode=yes", self.names[0], "true"]
        probe = {"stdin": subprocess.DEVNULL, "capture_output": True, "env": self.env}
        if os.getuid() != 0 and subprocess.run(words, **probe).returncode != 0:
            pytest.skip("sshd cannot give a terminal to this user")

    def write_hostfile(self, path: Path, names: Sequence[str]) -> Path:
        """A ring hostfile of these nodes, in this order."""
        hosts = [{"ssh": name, "ips": [ADDRESS]} for name in names]
        path.write_text(json.dumps({"backend": "ring", "hosts": hosts}))
        return path


@contextlib.contextmanager
def running_nodes(directory: Path, names: Sequence[str]) -> Iterator[Nodes]:
    """Nodes with these names, for as long as the block runs. Skips where there is no sshd."""
    sshd = shutil.which("sshd") or "/usr/sbin/sshd"
    if not os.path.exists(sshd) or not shutil.which("ssh") or not shutil.which("ssh-keygen"):
        pytest.skip("openssh server and client are not installed")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # Debian's sshd wants it when run as root.
    nodes = Nodes(directory, names)
    try:
        nodes.wait_up()
        yield nodes
    finally:
        nodes.close()


@contextlib.contextmanager
def loopback_sshd(directory: Path, banner: str = "") -> Iterator[dict[str, str]]:
    """One node, node-a; yield the environment in which `ssh node-a` gets there."""
    with running_nodes(directory, ["node-a"]) as nodes:
        nodes[0].profile(banner)
        yield nodes.env


def _make_key(path: Path) -> None:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
    subprocess.run(command, check=True)


def _descendants(ancestor: int) -> list[int]:
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True)
    parents = [tuple(map(int, line.split())) for line in listed.stdout.splitlines()]
    family = {ancestor}
    for _ in parents:
        more = {pid for pid, parent in parents if parent in family} - family
        if not more:
            break
        family |= more
    return list(family - {ancestor})


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
