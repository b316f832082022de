"""An OpenBLAS of our own where a Linux has none: made once, checked, and never in the way."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.lib import openblas
from tests.support.paths import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")

# Of .venv: makes the library as its module would, or fails.
PYTHON = """#!/bin/bash
echo "$*" >>"$PLACE/calls"
case "$*" in
  *lib.openblas*)
    echo "looking for wheels"
    [ -z "$FAILS" ] || { echo "no network" >&2; exit 1; }
    for library; do :; done
    mkdir -p "${library%/*}" && echo >"$library"
    ;;
esac
"""
CODE = """
. "$PLACE/scripts/lib/common.sh"
. "$ROOT/scripts/lib/venv.sh"
ensure_venv "$PLACE/requirements.txt"
blas_environment
"""
PRODUCT = """
import mlx.core as mx
product = mx.array([[1.0, 2.0], [3.0, 4.0]]) @ mx.array([[1.0, 2.0], [3.0, 4.0]])
print(product.tolist(), "libopenblas.so" in open("/proc/self/maps").read())
"""


@pytest.fixture
def place(tmp_path):
    """A checkout with a finished .venv, on a machine whose ldconfig knows no OpenBLAS."""
    folder = tmp_path / "checkout"
    (folder / "scripts" / "lib").mkdir(parents=True)
    for name in ("common.sh", "venv.sh"):
        shutil.copy(ROOT / "scripts" / "lib" / name, folder / "scripts" / "lib")
    for name in ("requirements.txt", "requirements-openblas.txt"):
        (folder / name).write_text("a==1\n")
    for file, text in (
        (folder / ".venv/bin/python", PYTHON),
        (folder / "bin/ldconfig", "#!/bin/sh\n"),
    ):
        file.parent.mkdir(parents=True)
        file.write_text(text)
        file.chmod(0o755)
    return folder


def start(place: Path, **settings: str) -> subprocess.CompletedProcess:
    unset = {"LD_PRELOAD", "OPENBLAS_CORETYPE", "OPENBLAS_NUM_THREADS"}
    env = {name: value for name, value in os.environ.items() if name not in unset}
    env |= {"PLACE": str(place), "FAILS": "", "PATH": f"{place / 'bin'}:{env['PATH']}"} | settings
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", CODE, "setup"],
        env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip


def made(place: Path) -> int:
    return (place / "calls").read_text().count("lib.openblas")


def test_where_there_is_none_it_is_made_once_and_the_ranks_get_it(place):
    own = place / ".venv/openblas/libopenblas.so"
    for _ in range(2):
        done = start(place)
        assert done.returncode == 0, done.stderr
        assert f"LD_PRELOAD={own}" in done.stdout.splitlines()
    assert made(place) == 1
    (place / "requirements-openblas.txt").write_text("a==2\n")
    own.unlink()
    start(place)
    assert made(place) == 2


def test_without_a_network_the_start_goes_on_says_so_and_tries_no_more(place):
    first, second = start(place, FAILS="1"), start(place, FAILS="1")
    assert (first.returncode, second.returncode) == (0, 0)
    assert "  | no network" in first.stderr and "is not tried again" in first.stderr
    assert made(place) == 1
    for done in (first, second):
        assert "LD_PRELOAD" not in done.stdout
        assert "apt-get install libopenblas0-pthread" in done.stderr
    # What pip said of the other packages is still in the log.
    log = (place / "logs" / "setup.log").read_text()
    assert log.endswith("looking for wheels\nno network\n")


def test_ctrl_c_leaves_nothing_and_the_next_start_tries_again(place):
    python = place / ".venv/bin/python"
    python.write_text(PYTHON.replace('[ -z "$FAILS" ]', "kill -INT $PPID; exec sleep 600"))
    done = start(place)
    assert done.returncode == 130 and "interrupted; start again to go on" in done.stderr
    python.write_text(PYTHON)
    assert "LD_PRELOAD" in start(place).stdout


def test_a_system_that_has_one_and_a_user_who_names_one_are_left_alone(place):
    library = next(Path("/lib").glob("*/libm.so.6"))  # a real one, or every program would complain
    start(place, LD_PRELOAD=str(library))
    name = {"x86_64": "x86-64"}.get(os.uname().machine, "AArch64")
    (place / "bin/ldconfig").write_text(
        f'#!/bin/sh\necho "	libopenblas.so.0 (libc6,{name}) => {library}"\n'
    )
    assert f"LD_PRELOAD={library}" in start(place).stdout
    assert made(place) == 0


def test_a_path_that_cannot_be_preloaded_is_told(place):
    """The loader takes a blank for the end of a name."""
    there = place.rename(place.parent / "my checkout")
    done = start(there)
    assert done.returncode == 0
    assert "has a blank or a colon" in done.stderr
    assert made(there) == 0


def test_a_wheel_that_cannot_be_had_leaves_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    library = tmp_path / "openblas" / "libopenblas.so"
    assert openblas.main([str(library)]) == 1
    assert "OpenBLAS could not be made" in capfd.readouterr().err
    assert list(library.parent.iterdir()) == []


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """The real one, of the pinned wheels."""
    path = tmp_path_factory.mktemp("openblas") / "libopenblas.so"
    try:
        openblas.make(path)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no wheels: {error}")
    return path


def test_mlx_multiplies_with_the_library_that_was_made(library):
    env = os.environ | {"LD_PRELOAD": str(library), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PRODUCT], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[[7.0, 10.0], [15.0, 22.0]] True\n"
    assert not [path for path in library.parent.iterdir() if path != library]


def test_it_tells_which_kernels_it_takes_as_the_systems_does(library):
    code = f'. {ROOT}/scripts/lib/common.sh; openblas_core "$1"'
    done = subprocess.run(["bash", "-c", code, "-", library], capture_output=True, text=True)
    assert done.stdout.strip().isalnum(), done


def test_a_library_that_multiplies_wrong_is_not_taken(tmp_path, monkeypatch, library):
    wrong = tmp_path / "wheels"
    monkeypatch.setattr(openblas, "TRIAL", openblas.TRIAL.replace("22]", "23]"))
    with pytest.raises(ValueError, match="does not multiply right on this machine"):
        openblas.make(wrong / "libopenblas.so")
    assert list(wrong.iterdir()) == []
