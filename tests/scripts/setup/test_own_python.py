"""A Python of the checkout's own: made of one that stands alone, copied to hosts that have none."""

import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from scripts.lib.sync import environment
from tests.scripts.sync.test_sync_nodes import Checkout, files_of, lines

NAME = f"python3.{sys.version_info.minor}"
LEAVE = shutil.ignore_patterns("__pycache__", "site-packages", "test", "*.a")


@pytest.fixture
def alone(tmp_path):
    """A copy of this Python, made to stand alone: what it needs it finds beside itself."""
    base = Path(sys.base_prefix)
    if base in (Path("/usr"), Path("/usr/local")):
        pytest.skip("this Python is the system's")
    shutil.copytree(base, copy := tmp_path / "alone", symlinks=True, ignore=LEAVE)
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        rpath = f"{base}/lib".encode()
        beside = b"$ORIGIN/../lib".ljust(len(rpath), b"\0")
        program = copy / "bin" / NAME
        program.write_bytes(program.read_bytes().replace(rpath + b"\0", beside + b"\0"))
    return copy


@pytest.fixture
def site(nodes, tmp_path):
    return Checkout(tmp_path / 'Jörg\'s "own" Python', nodes)


def made_with(site: Checkout, python: Path) -> None:
    """The checkout's environment is one of this Python's; its packages stay."""
    for link in (site.root / ".venv/bin").glob("python*"):
        link.unlink()
    words = [python, "-m", "venv", "--without-pip", "--upgrade", site.root / ".venv"]
    subprocess.run(words, check=True)


def own_python(site: Checkout, more: Path | None = None) -> subprocess.CompletedProcess:
    """more: a folder of programs, beside the system's, among which there is no uv."""
    words = [sys.executable, "scripts/lib/module.py", "lib.setup.own_python"]
    env = {"PATH": f"{more}:/usr/bin:/bin"}
    return subprocess.run(words, cwd=site.root, env=env, capture_output=True, text=True)


def base_of(site: Checkout) -> str:
    code = "import sys, mlx_lm; print(sys.base_prefix)"
    words = [site.root / ".venv/bin/python", "-c", code]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.thorough
def test_it_goes_with_the_environment_to_hosts_that_have_no_such_python(site, alone):
    made_with(site, alone / "bin" / NAME)
    site.nodes["node-2"].replace(alone / "bin" / NAME, b"#!/bin/sh\necho 3.11.0\n")
    told = lines(site.sync("node-2"))["node-2"]
    assert "is Python 3.11.0 there" in told and "scripts/setup_cluster.sh --from python" in told

    done = own_python(site)
    assert done.returncode == 0, done.stderr
    assert own_python(site).returncode == 0  # again: what is so stays
    shutil.rmtree(alone / "lib")
    assert base_of(site) == str(site.root / ".python")
    env = environment.describe(str(site.root / ".venv/bin/python"), site.root)
    assert (env.base, env.own) == (None, site.root / ".python")

    told = lines(site.sync("node-2"))["node-2"]
    assert told.startswith("ok checkout: ") and f"python {env.version}" in told
    assert files_of(site.view("node-2") / ".python") >= {f"bin/{NAME}", "lib/" + NAME + "/os.py"}
    words = [str(site.root / ".venv/bin/python"), "-c", "import sys; print(sys.base_prefix)"]
    there = site.nodes["node-2"].ssh(shlex.join(words))
    assert there.stdout.strip() == str(site.root / ".python"), there.stderr


def test_one_that_leans_on_other_folders_is_refused_and_nothing_is_changed(site, alone):
    """As Homebrew's does, whose libraries lie in other packages' folders."""
    program = alone / "bin" / NAME
    elsewhere = alone.parent / "elsewhere"
    elsewhere.mkdir()
    made_with(site, program)
    shutil.copytree(alone, other := alone.parent / "uv's own", symlinks=True)
    # A part of its standard library is a link out of it.
    (alone / "lib" / NAME / "lib-dynload").rename(elsewhere / "lib-dynload")
    (alone / "lib" / NAME / "lib-dynload").symlink_to(elsewhere / "lib-dynload")
    done = own_python(site)
    assert done.returncode == 1
    assert f"a copy of {program} needs {elsewhere}/lib-dynload/" in done.stderr
    assert "no Python here stands alone: install uv" in done.stderr
    assert not list(site.root.glob(".python*"))
    assert base_of(site) == str(alone)

    # uv has some that stand alone.
    uv = elsewhere / "uv"
    uv.write_text(f'#!/bin/sh\n[ "$2" != find ] || echo "{other}/bin/{NAME}"\n')
    uv.chmod(0o755)
    done = own_python(site, elsewhere)
    assert done.returncode == 0, done.stderr
    assert base_of(site) == str(site.root / ".python")


def test_without_an_environment_it_says_so(site):
    shutil.rmtree(site.root / ".venv")
    done = own_python(site)
    assert done.returncode == 3
    assert f"there is no {site.root}/.venv/bin/python: make it first" in done.stderr
