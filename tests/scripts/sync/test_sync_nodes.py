"""sync_nodes.sh over real ssh and rsync: what arrives, what stays, what is refused."""

import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.lib.sync import checkout, environment, sync_model
from scripts.lib.sync.parallel import Failure, size_text
from scripts.lib.sync.probe import Place, parse_facts
from scripts.lib.sync.rsync import _follow, explain, far_path
from scripts.lib.sync.versions import compare, pinned_packages
from tests.support.openrsync import carried, put_openrsync
from tests.support.paths import ROOT

REPO = ROOT
HARD_NAME = 'Jörg\'s "check" out (2)'
PINNED = dict(
    re.findall(r"^([a-z-]+)(?:\[cpu\])?==([^;\s]+)", (REPO / "requirements.txt").read_text(), re.M)
)
GENERATED = shutil.ignore_patterns("__pycache__", ".*")
MODULES = {"mlx": "mlx/core.py", "mlx-lm": "mlx_lm/__init__.py", "transformers": "transformers.py"}


def make_environment(prefix: Path) -> Path:
    """A real virtual environment; its packages are small ones of the pinned names and versions."""
    command = [sys.executable, "-m", "venv", "--without-pip", prefix]
    subprocess.run(command, check=True)
    (site,) = prefix.glob("lib/python*/site-packages")
    for name, version in PINNED.items():
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        module = site / MODULES.get(name, f"{name.replace('-', '_')}.py")
        module.parent.mkdir(exist_ok=True)
        module.write_text(f"__version__ = {version!r}\n")
    return site


class Checkout:
    """A small checkout of its own in a folder, with what its user keeps there."""

    def __init__(self, root: Path, nodes):
        self.root = root
        self.nodes = nodes
        self.openrsync = put_openrsync(root.parent / "openrsync")
        for name in ("scripts", "server"):
            shutil.copytree(REPO / name, root / name, ignore=GENERATED)
        shutil.copy(REPO / "requirements.txt", root)
        self.site = make_environment(root / ".venv")
        for name in (
            "models/m/model.safetensors",
            "logs/server.log",
            "run/8080/hosts",
            "notes.txt",
        ):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("rank 0's own")
        (root / "hostfiles").mkdir()
        self.hosts("node-1", "node-2", "node-3")
        nodes.shadow(root)

    def hosts(self, *names: str) -> None:
        self.nodes.write_hostfile(self.root / "hostfiles" / "test.local.json", names)

    def view(self, name: str) -> Path:
        return self.nodes[name].view(self.root)

    def sync(self, *arguments: str, **env: str) -> subprocess.CompletedProcess:
        plain = {k: v for k, v in self.nodes.env.items() if k not in ("PYTHON", "HOSTFILE")}
        plain["PATH"] = f"{self.openrsync}:{plain['PATH']}"
        return subprocess.run(
            [self.root / "scripts" / "sync_nodes.sh", *arguments],
            env={**plain, **env}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip


@pytest.fixture
def site(nodes, tmp_path):
    return Checkout(tmp_path / HARD_NAME, nodes)


# An rsync whose machine is lost after 3 MB of a copy with --delete.
CUT = f"""
case $* in
  *--delete*) exec {sys.executable} -c '
import os, subprocess, sys
rsync = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)
left = 3000000
while left > 0 and (data := os.read(0, 65536)):
    rsync.stdin.write(data)
    rsync.stdin.flush()
    left -= len(data)
os.killpg(0, 9)
' /usr/bin/rsync "$@" ;;
  *) exec /usr/bin/rsync "$@" ;;
esac
"""


def lines(done: subprocess.CompletedProcess) -> dict[str, str]:
    """The result by host, without the spaces that align it."""
    split = [line.split(None, 2) for line in done.stdout.splitlines()]
    return {host: f"{verdict} {text}" for verdict, host, text in split}


def files_of(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()}


def test_every_host_gets_the_checkout_and_an_environment_that_imports(site):
    """And later what has changed; what is the user's own there stays."""
    (site.root / "server" / "old_stage.py").write_text("x = 1\n")
    done = site.sync()
    assert done.returncode == 0, done.stderr
    said = lines(done)
    version = ".".join(map(str, sys.version_info[:3]))
    assert said["node-1"].startswith("ok this machine, or shares its disk; python")
    for name in ("node-2", "node-3"):
        assert f"python {version}, mlx {PINNED['mlx']}, mlx-lm {PINNED['mlx-lm']}" in said[name]
        view = site.view(name)
        assert {f for f in files_of(view) if f.startswith("server/")} == files_of_code(site.root)
        assert (view / "scripts/run_openai_cluster_server.sh").stat().st_mode & 0o111
        assert (view / ".venv/bin/python").is_symlink()
        # What is rank 0's own stays there.
        assert not {"models", "logs", "run/8080"} & {p.name for p in view.iterdir()}
        assert not list(view.glob("hostfiles/*.local.json"))

    # A second run has nothing to do, unless something has changed meanwhile.
    (site.root / "server" / "old_stage.py").unlink()
    view = site.view("node-2")
    for name in USERS_OWN:
        (view / name).parent.mkdir(parents=True, exist_ok=True)
        (view / name).write_text("node-2's own")
    (view / "server/protocol/settings.py").write_text("an edit of node-2's")
    (view / ".venv/stray.py").write_text("")
    (site.view("node-3") / "server/old_stage.py").unlink()
    done = site.sync("node-2", "node-3")
    assert done.returncode == 0, done.stdout
    assert "checkout: 1 files copied, 1 removed; .venv: no files copied" in lines(done)["node-2"]
    assert "checkout: no files copied" in lines(done)["node-3"]
    assert not (view / "server/old_stage.py").exists()
    assert not (view / ".venv/stray.py").exists()
    settings = (site.root / "server/protocol/settings.py").read_bytes()
    assert (view / "server/protocol/settings.py").read_bytes() == settings
    for name in USERS_OWN:
        assert (view / name).read_text() == "node-2's own"


USERS_OWN = ("run/8080/rank-1.pid", "models/m/config.json", "my_notes.txt", "logs/x.log")


def files_of_code(root: Path) -> set[str]:
    found = {f"server/{name}" for name in files_of(root / "server")}
    return {name for name in found if "__pycache__" not in name}


def test_what_is_wrong_with_one_host_is_told_and_the_others_are_served(site):
    site.hosts("node-1", "node-2", "node-3", "node-4", "node-gone")
    site.nodes["node-2"].profile("Welcome!\n")
    site.nodes["node-3"].stub("df", "echo Filesystem; echo x 9 9 1000 9% /")
    stray = site.view("node-4")
    (stray / "precious").write_text("somebody's")
    done = site.sync()
    said = lines(done)
    assert done.returncode == 1
    assert said["node-1"].startswith("ok ")
    assert said["node-2"].startswith("fail its shell prints by itself ('Welcome!')")
    assert re.search(r"fail 1.02 MB free for .*/.venv, which needs .* MB", said["node-3"])
    assert said["node-4"].startswith(f"fail {site.root} is there and is no checkout")
    assert files_of(stray) == {"precious"}
    assert said["node-gone"].startswith("fail cannot be reached: ssh: connect to host 127.0.0.1")
    assert done.stderr.splitlines()[-1].endswith("failed on node-2, node-3, node-4, node-gone")


def test_a_copy_that_breaks_off_is_gone_on_with(site):
    big = site.root / ".venv/lib/zz-big"
    big.write_bytes(bytes(range(256)) * 40_000)
    (site.root / ".venv/lib/aa-small").write_text("first")
    node = site.nodes["node-2"]
    node.stub("rsync", CUT)
    done = site.sync("node-2")
    assert done.returncode == 1
    assert "the connection broke off" in lines(done)["node-2"]
    (node.directory / "bin" / "rsync").unlink()
    done = site.sync("node-2")
    assert done.returncode == 0, done.stdout
    assert "checkout: no files copied" in lines(done)["node-2"]
    assert (site.view("node-2") / ".venv/lib/zz-big").stat().st_size == big.stat().st_size


def test_a_host_that_hangs_is_given_up(site):
    site.nodes["node-2"].hang("*rsync --server*")
    site.hosts("node-2", "node-3")
    done = site.sync("--checkout-only", SYNC_TIMEOUT="1")
    assert done.returncode == 1
    assert "the copy stood still for 1 s" in lines(done)["node-2"]
    assert lines(done)["node-3"].startswith("ok checkout: ")


def test_another_system_or_python_is_refused_with_what_to_do(site):
    site.nodes["node-2"].stub("uname", "case $1 in -s) echo Darwin ;; *) echo arm64 ;; esac")
    site.nodes["node-3"].replace(base_python(site.root), b"#!/bin/sh\necho 3.11.0\n")
    site.hosts("node-2", "node-3")
    done = site.sync()
    said = lines(done)
    assert "it is Darwin arm64, this machine Linux" in said["node-2"]
    assert "make one there" in said["node-2"] and "--checkout-only" in said["node-2"]
    assert (site.view("node-2") / "server" / "main.py").exists()
    assert not (site.view("node-2") / ".venv").exists()
    assert "is Python 3.11.0 there and" in said["node-3"]


def base_python(root: Path) -> str:
    return environment.describe(str(root / ".venv/bin/python")).base


def test_a_host_that_imports_something_else_is_not_in_step(site):
    site.nodes["node-2"].pretend("mlx", "0.1.2")
    (site.view("node-3") / "server").mkdir(parents=True)
    (site.view("node-3") / "server/leftover.py").write_text("")
    (site.view("node-3") / "run/sync").mkdir(parents=True)
    done = site.sync("node-2", "node-3")
    said = lines(done)
    assert said["node-2"] == f"fail mlx is 0.1.2, here {PINNED['mlx']}"
    assert said["node-3"].startswith("fail server/leftover.py is there and not here")

    (site.site / "mlx" / "core.py").write_text("raise ImportError('no Metal here')\n")
    done = site.sync("node-3")
    assert done.returncode == 3
    assert "cannot import mlx.core there: ImportError: no Metal here" in done.stderr


def test_a_python_of_the_system_is_no_environment_to_copy(site):
    done = site.sync(PYTHON=base_python(site.root))
    assert done.returncode == 3
    assert "has no mlx-lm" in done.stderr or "no virtual or conda environment" in done.stderr


def test_dry_run_shows_commands_and_asks_nobody(site):
    done = site.sync("--dry-run", "node-2", "127.0.0.1")
    assert done.returncode == 0
    assert done.stdout.count("+ rsync -v --progress") == 2
    assert not any(node.commands() for node in site.nodes)


def test_two_at_a_time_are_refused(site):
    import fcntl

    (site.root / "run/sync").mkdir()
    with (site.root / "run/sync/sync_nodes.sh.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = site.sync("node-2")
    assert done.returncode == 1
    assert "another sync_nodes.sh is at work" in done.stderr


# -- without nodes


def fake_python(folder: Path, prefix: Path, own: bool = False) -> str:
    """A program that answers as the Python of such an environment would."""
    told = {"prefix": str(prefix), "own": own, "base": "/opt/python", "version": "3.12.1"}
    program = folder / "python"
    program.write_text(f"#!/bin/sh\ncat <<'TOLD'\n{json.dumps(told)}\nTOLD\n")
    program.chmod(0o755)
    return str(program)


def test_an_environment_is_told_from_a_python_that_is_none(tmp_path):
    prefix = tmp_path / "env"
    (prefix / "bin").mkdir(parents=True)
    python = fake_python(tmp_path, prefix)
    with pytest.raises(Failure, match="no virtual or conda environment"):
        environment.describe(python)
    (prefix / "conda-meta").mkdir()
    conda = environment.describe(python)
    assert (conda.kind, conda.prefix, conda.base) == ("conda", prefix, None)
    assert environment.base_program(conda) == ""
    (prefix / "condabin").mkdir()
    with pytest.raises(Failure, match="base environment"):
        environment.describe(python)
    with pytest.raises(Failure, match="does not run"):
        environment.describe("/none/there")


def test_the_base_of_a_venv_is_what_its_link_leads_to(tmp_path):
    """Not the end of the links: Homebrew's python3.12 leads to a folder of the patch version."""
    prefix = tmp_path / "env"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "pyvenv.cfg").write_text("")
    (prefix / "bin/python").symlink_to("python3.12")
    (prefix / "bin/python3.12").symlink_to("/opt/homebrew/opt/python@3.12/bin/python3.12")
    venv = environment.describe(fake_python(tmp_path, prefix, own=True))
    assert (venv.kind, venv.base) == ("venv", "/opt/homebrew/opt/python@3.12/bin/python3.12")
    (prefix / "lib/__pycache__").mkdir(parents=True)
    (prefix / "lib/__pycache__/a.pyc").write_text("compiled")
    (prefix / "lib/a.py").write_text("x = 1")
    sizes = environment.list_sizes(prefix)
    assert sizes["lib/a.py"] == 5
    assert sizes.keys() == {"pyvenv.cfg", "bin/python", "bin/python3.12", "lib/a.py"}


def test_what_belongs_to_the_checkout_with_and_without_git(tmp_path):
    for name in (
        "server/a.py", "server/__pycache__/a.pyc", "scripts/new.sh", "notes.txt", "README.md",
        "hostfiles/x.template.json", "hostfiles/x.local.json", "models/m/w.safetensors",
        "run/1/hosts", "logs/l", "envs/mine/pyvenv.cfg", "envs/mine/lib.py", ".venv/pyvenv.cfg",
        "cluster.env", "cluster.env~", "tests/agents/node_modules/big/a.js",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    ours = ["README.md", "hostfiles/x.template.json", "notes.txt", "scripts/new.sh", "server/a.py"]
    assert checkout.list_files(tmp_path) == ours

    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@x"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run(
        [*git, "add", "README.md", "server/a.py", "hostfiles/x.template.json"], check=True
    )
    ours.remove("notes.txt")  # git does not know it, and it is no code
    assert checkout.list_files(tmp_path) == ours
    (tmp_path / "README.md").unlink()
    ours.remove("README.md")
    assert checkout.list_files(tmp_path) == ours


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "../x", "server/../../x", "run/sync/files", ".git/config", "models/a",
     "hostfiles/a.local.json", "cluster.env", "server/__pycache__/x",
     "tests/agents/node_modules/a.js"],
)  # fmt: skip
def test_nothing_but_ours_can_ever_be_removed(name):
    printed = f"{name}\nserver/gone.py\n{checkout.GIT}\n{name}\nold.py\n"
    assert checkout.what_changes(printed, []) == (["old.py", "server/gone.py"], True)


def test_a_host_that_has_the_same_list_is_not_told_again():
    printed = f"server/a.py\n{checkout.GIT}\n"
    assert checkout.what_changes(printed, ["server/a.py"]) == ([], False)
    assert checkout.what_changes("", ["server/a.py"]) == ([], True)


def test_the_probe_is_read_as_it_comes():
    facts = parse_facts(
        "system Darwin arm64\nrsync /usr/bin/rsync\nshared\nstate ours\nused 10\nfree 20\n"
        "state none\nused 0\nfree 5\n"
    )
    assert (facts.system, facts.shared) == ("Darwin arm64", True)
    assert facts.places == (Place("ours", 10240, 20480), Place("none", 0, 5120))
    with pytest.raises(Failure, match="df -Pk"):
        parse_facts("system Linux x86_64\nstate none\n")


def test_differences_are_named_one_by_one():
    here = {"python": "3.12.1", "packages": {"mlx": "1"}, "code": {"server/a.py": "1"}}
    there = {"python": "3.12.2", "packages": {}, "code": {"scripts/my.py": "2"}}
    assert compare(here, here) == []
    assert compare(here, there) == [
        "python is 3.12.2, here 3.12.1", "mlx is missing, here 1", "server/a.py is missing",
    ]  # fmt: skip


def test_pinned_packages_are_those_of_the_requirements():
    pinned = pinned_packages(REPO / "requirements.txt")
    assert set(PINNED) == set(pinned)
    assert {"mlx", "mlx-lm", "transformers"} < set(pinned)


@pytest.mark.parametrize(
    ("code", "error", "told"),
    [
        (30, "rsync error: timeout in data send/receive (code 30)", "stood still for 9 s"),
        (12, "rsync: connection unexpectedly closed", "the connection broke off"),
        (255, "ssh: connect to host x port 22: Connection refused", "the connection broke off"),
        (11, "rsync: write failed: No space left on device (28)", "its disk is full"),
        (23, "rsync: mkdir failed: Permission denied (13)", "Permission denied"),
        (1, "", "ended with code 1"),
    ],
)
def test_why_a_copy_ended_is_told_in_words(code, error, told):
    assert told in explain(code, [error] if error else [], 9)


HARD_PATHS = [
    "/plain/path-1.2_x", "/with a/few  blanks ", "/Jörg/Größe/日本", "/it's/\"quoted\"",
    "/a$HOME/`id`/$(id)", "/semi;colon&and|pipe<>(){}[]*?!#~", "/back\\slash", "/~/-dash",
    "/100%=@:,+",
]  # fmt: skip


@pytest.mark.parametrize("path", HARD_PATHS)
@pytest.mark.parametrize("shell", ["bash", "zsh", "sh"])
@pytest.mark.parametrize("through", [str, carried], ids=["rsync", "openrsync"])
def test_every_path_reaches_the_far_shell_as_one_word(path, shell, through):
    """openrsync took the quotes out: "cd: too many arguments", after some stray folders."""
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    line = through(f"printf %s {far_path(path)} && printf %s /end")
    done = subprocess.run([shell, "-c", line], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{path}/end", "")


@pytest.mark.parametrize("path", ["/a\tb", "/a\nb", "/a\x7f"])
def test_a_path_that_cannot_be_told_is_refused(path):
    with pytest.raises(Failure, match="its path holds"):
        far_path(path)


def test_progress_follows_names_and_per_cents():
    class Process:
        stdout = io.BufferedReader(io.BytesIO(
            b"sending incremental file list\r\nnotes\nmodel a\n        500  25%    1.0MB/s  0:00:03"
            b"\r      1,000  50%   1.0MB/s\r      2,000 100%   1.0MB/s\nsub/b\n    10 100%\n"
            b"\nsent 9 bytes  received 9 bytes  18.00 bytes/sec\n"
        ))  # fmt: skip

    told = []
    sizes = {"model a": 2000, "sub/b": 10, "not sent": 7}
    assert _follow(Process, sizes, told.append) == ["model a", "sub/b"]
    assert told == [0, 500, 1000, 2000, 2000, 2010]


def test_sizes_for_people():
    assert [size_text(n) for n in (0, 999, 1500, 2.5e6, 7.1e11, 3e12)] == [
        "0 B", "999 B", "1.5 kB", "2.5 MB", "710 GB", "3 TB",
    ]  # fmt: skip


@pytest.mark.parametrize("verb", ["sync_nodes.sh", "sync_nodes.sh --dry-run", "sync_model.sh ."])
def test_a_checkout_in_which_nothing_can_be_written_is_a_sentence(tmp_path, verb):
    """A traceback. A file in the way refuses root, too, whom no mode keeps out."""
    for name in ("scripts", "server"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "run").write_text("in the way")
    script, *more = verb.split()
    env = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(
        [tmp_path / "scripts" / script, *more, "mac1"],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert done.stderr.startswith(f"{script}: {tmp_path}/run/sync: ")
    assert f"{script} keeps a lock in {tmp_path}/run/sync" in done.stderr


def test_a_folder_for_models_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch, capsys):
    """Whatever of ours cannot be written after the lock was had."""

    def denied(*arguments):
        raise PermissionError(errno.EACCES, "Permission denied", "/models/.token")

    monkeypatch.setattr(sync_model, "choose_source", denied)
    # The lock of the checkout is for all tests that run now.
    monkeypatch.setattr(sync_model, "ROOT", tmp_path)
    assert sync_model.main([str(tmp_path), "127.0.0.1"]) == 3
    assert capsys.readouterr().err == "sync_model.sh: /models/.token: Permission denied\n"
