"""The README's first command in a root without ps, ssh, lsof and the like, as in slim containers.

The root is put together of this machine's own files, with processes of its own, so what is hidden
is only those tools. Needs mount namespaces.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.nodes import no_views
from tests.support.paths import ROOT
from tests.support.ports import free_port
from tests.support.tiny_models import tiny_llama

pytestmark = pytest.mark.ranks
GUARD_S = 280
# Of /usr/bin, what Debian's essential packages have and is used here; curl is the README's.
TOOLS = (
    "awk", "basename", "bash", "cat", "chmod", "cp", "curl", "cut", "date", "df", "dirname", "env",
    "find", "getconf", "grep", "head", "id", "kill", "ln", "ls", "mawk", "mkdir", "mktemp", "mv",
    "readlink", "rm", "sed", "sh", "sha256sum", "sleep", "sort", "stat", "tail", "tee", "touch",
    "tr", "uname", "wc", "xargs",
)  # fmt: skip
# Of the machine, as they are. Not /sbin, where ldconfig would find the system's OpenBLAS.
SHARED = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc", "/dev", "/usr/share")

ENTER = """\
set -e
for path in {shared}; do
  [ -e "$path" ] || continue
  mkdir -p "$BARE$path"
  mount --rbind "$path" "$BARE$path"
done
[ -z "$WITH_PROC" ] || mount -t proc proc "$BARE/proc"
exec chroot "$BARE" /usr/bin/bash -c 'cd "$CHECKOUT"; '"$1"
"""
# A server that is asked twice, looked at, and stopped; then one whose supervisor is killed.
LIFE = """\
start() { scripts/run_openai_cluster_server.sh --local 2 --detach; echo "START $?"; }
start
tr '\\0' '\\n' <"/proc/$(sed -n 1p run/$HTTP_PORT/rank-1.pid)/environ" | grep ^LD_PRELOAD=
start
scripts/status.sh --json >status.json; echo "STATUS $?"
scripts/stop_openai_cluster_server.sh; echo "STOP $?"
start
kill -KILL "$(sed -n 1p run/$HTTP_PORT/supervisor.pid)"
DRAIN_TIMEOUT=0 scripts/stop_openai_cluster_server.sh; echo "STOP $?"
left() { cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -c -e "[-]-run-dir $PWD/run"; }
# Ranks without a supervisor leave by themselves, and their launcher a moment after them.
tries=0
while [ "$(left)" != 0 ] && [ "$tries" -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
echo "LEFT $(left)"
"""


class Bare:
    """A root of few tools, and a checkout with an environment of its own in it."""

    def __init__(self, directory: Path):
        self.root = directory / "root"
        self.checkout = directory / "checkout"
        for folder in ("usr/bin", "proc", "tmp", "dev", "etc", "root"):
            (self.root / folder).mkdir(parents=True)
        (self.root / "bin").symlink_to("usr/bin")
        for tool in TOOLS:
            found = Path(shutil.which(tool) or "")
            if found.is_file():
                shutil.copy(found.resolve(), self.root / "usr/bin" / tool)
        python = Path(sys.executable).resolve()
        (self.root / "usr/bin/python3").symlink_to(python)
        self.model = tiny_llama(directory / "model" / "tiny")
        self._make_checkout(python)
        # What does not lie below these is not there.
        packages = (ROOT / ".venv").resolve()
        self.shared = [*SHARED, sys.base_prefix, str(packages), str(directory / "model")]
        self.shared.append(str(self.checkout))

    def _make_checkout(self, python: Path) -> None:
        self.checkout.mkdir()
        for name in ("scripts", "server"):
            shutil.copytree(ROOT / name, self.checkout / name)
        for path in ROOT.glob("requirements*.txt"):
            shutil.copy(path, self.checkout)
        venv = self.checkout / ".venv"
        subprocess.run([python, "-m", "venv", "--without-pip", venv], check=True)
        (packages,) = venv.glob("lib/python*/site-packages")
        (theirs,) = (ROOT / ".venv").glob("lib/python*/site-packages")
        (packages / "shared.pth").write_text(f"{theirs.resolve()}\n")
        code = '. "$1/scripts/lib/common.sh"; . "$1/scripts/lib/venv.sh"; shift; for file; do'
        code += ' sha256 "$file" >"$(stamp_of "$file")"; done'
        stamped = self.checkout / "requirements.txt"
        subprocess.run(["bash", "-c", code, "-", self.checkout, stamped], check=True)

    def run(self, script: str, proc: bool = True) -> subprocess.CompletedProcess:
        keep = ("PIP_", "SSL_", "OPENBLAS_", "REQUESTS_")
        env = {name: value for name, value in os.environ.items() if name.startswith(keep)}
        env |= {
            "PATH": "/usr/bin:/bin:/usr/sbin",  # of which the last is not in the root
            "HOME": "/root",
            "HTTP_PORT": str(free_port()),
            "MODEL_DIR": str(self.model),
            "BARE": str(self.root),
            "CHECKOUT": str(self.checkout),
            "WITH_PROC": "1" if proc else "",
        }
        user = [] if os.getuid() == 0 else ["--map-root-user"]
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", *user]
        enter = ENTER.format(shared=" ".join(self.shared))
        return subprocess.run(
            [*unshare, shutil.which("bash"), "-c", enter, "enter", script],
            env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=GUARD_S,
        )  # fmt: skip


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    if reason := no_views():
        pytest.skip(reason)
    if not Path("/lib").is_symlink():
        pytest.skip("not a merged /usr")
    return Bare(tmp_path_factory.mktemp("bare"))


@pytest.mark.thorough
def test_without_ps_a_server_is_started_once_seen_and_ended(bare):
    """stop said "nothing is running", deleted the records, and nothing could end it any more."""
    done = bare.run(LIFE)
    words = ("START", "STATUS", "STOP", "LEFT")
    told = [line for line in done.stdout.splitlines() if line.startswith(words)]
    text = f"{done.stdout}\n{done.stderr}"
    assert told == ["START 0", "START 1", "STATUS 0", "STOP 0", "START 0", "STOP 0", "LEFT 0"], text
    assert "already running" in done.stderr
    assert "the server on port" in done.stderr
    own = bare.checkout / ".venv/openblas/libopenblas.so"
    assert (f"LD_PRELOAD={own}" in done.stdout) == own.exists()
    assert own.exists() or "there is no OpenBLAS" in done.stderr


def test_without_ps_a_rank_that_is_left_is_ended(bare):
    script = """\
mkdir -p run/18999
bash -c 'while :; do sleep 0.1; done' rank --run-id left-1 &
printf '%s\\nleft-1\\n' "$!" >run/18999/rank-0.pid
DRAIN_TIMEOUT=0 scripts/stop_openai_cluster_server.sh --port 18999; echo "STOP $?"
kill -0 "$!" || echo ENDED
"""
    done = bare.run(script)
    assert done.stdout.splitlines() == ["STOP 0", "ENDED"], done.stderr
    assert "127.0.0.1: rank 0 (pid " in done.stderr
    assert "the server on port 18999 has stopped" in done.stderr


def test_where_not_even_proc_is_there_nothing_is_started_and_no_record_deleted(bare):
    record = bare.checkout / "run" / "8080" / "supervisor.pid"
    record.parent.mkdir(parents=True)
    record.write_text("1\nrun-1\n")
    script = """\
scripts/run_openai_cluster_server.sh --local 2 --detach; echo "START $?"
scripts/stop_openai_cluster_server.sh --port 8080; echo "STOP $?"
"""
    done = bare.run(script, proc=False)
    assert done.stdout.splitlines() == ["START 3", "STOP 3"], done.stderr
    assert done.stderr.count("no process can be seen") == 2
    assert "apt-get install procps" in done.stderr
    assert record.exists()


@pytest.mark.parametrize(
    "command",
    [
        "scripts/run_openai_cluster_server.sh",
        "scripts/bench.sh",
        "scripts/stop_openai_cluster_server.sh",
        "scripts/verify_cluster.sh",
        "scripts/sync_nodes.sh node-2",
    ],
)
def test_without_ssh_it_is_said_before_anything_is_done(bare, command):
    hosts = '{"backend": "ring", "hosts": [{"ssh": "node-1", "ips": ["192.0.2.1"]}, '
    hosts += '{"ssh": "node-2", "ips": ["192.0.2.2"]}]}'
    (bare.checkout / "two.json").write_text(hosts)
    done = bare.run(f'HOSTFILE="$PWD/two.json" {command}; echo "CODE $?"')
    assert done.stdout.splitlines()[-1] == "CODE 3", done.stderr
    assert "ssh is not installed: " in done.stderr
