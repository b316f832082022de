"""The hard limit of open files, in processes that have a low one; and what the scripts agree on."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from server.lifecycle import file_limit
from server.lifecycle.file_limit import FILES_LEAST, TooFewFiles, allow_files
from server.protocol import limits as limits_of_all
from server.protocol.exit_codes import CONFIG
from tests.support.paths import ROOT

ENTRY = ROOT / "server" / "openai_cluster_server.py"


@pytest.fixture
def limits(monkeypatch):
    """limits(soft, hard, may): what getrlimit says, and whether this process may raise it. Returns
    the list of what was set."""

    def have(soft: int, hard: int, may: bool) -> list:
        done = []

        def set_them(what: int, values: tuple[int, int]) -> None:
            if values[1] > hard and not may:
                raise ValueError("not allowed to raise maximum limit")
            done.append(values)

        monkeypatch.setattr(resource, "getrlimit", lambda what: (soft, hard))
        monkeypatch.setattr(resource, "setrlimit", set_them)
        return done

    return have


@pytest.mark.parametrize("hard", [FILES_LEAST, 524_288, resource.RLIM_INFINITY])
def test_a_limit_that_is_high_enough_is_left_alone(limits, hard):
    done = limits(256, hard, False)
    allow_files()
    assert done == []


def test_the_superuser_raises_it(limits):
    done = limits(256, 1024, True)
    allow_files()
    assert done == [(256, FILES_LEAST)]


@pytest.mark.parametrize(
    ("platform", "how"),
    [("darwin", "sudo launchctl limit maxfiles"), ("linux", "/etc/security/limits.conf")],
)
def test_others_are_told_value_bound_and_command(limits, monkeypatch, platform, how):
    monkeypatch.setattr(file_limit.sys, "platform", platform)
    limits(256, FILES_LEAST - 1, False)
    with pytest.raises(TooFewFiles, match="open files is 4095: must be at least 4096") as told:
        allow_files()
    assert how in str(told.value)


@pytest.mark.skipif(sys.platform != "linux", reason="drops a capability of Linux's superuser")
def test_a_rank_with_too_low_a_limit_ends_in_words(tmp_path):
    """mlx-lm's import raised ValueError: a traceback, and code 70, which is tried again."""
    drop = "setpriv --bounding-set=-sys_resource --inh-caps=-sys_resource" * (os.getuid() == 0)
    done = subprocess.run(
        [*drop.split(), "bash", "-c", 'ulimit -n 1024 && exec "$@"', "-", sys.executable, ENTRY],
        env=os.environ | {"MODEL_DIR": str(tmp_path)}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == CONFIG, done.stderr
    (line,) = done.stderr.splitlines()
    assert f"ending with code {CONFIG}: the hard limit of open files is 1024" in line


def test_mlx_lm_asks_for_no_more():
    import mlx_lm.utils

    asked = re.search(r"RLIMIT_NOFILE, \((\d+), (\d+)\)", Path(mlx_lm.utils.__file__).read_text())
    assert max(int(number) for number in asked.groups()) == FILES_LEAST


def test_bash_asks_every_host_for_as_many():
    """The number stands in one place; bash gets it with the settings."""
    code = (
        f". {ROOT}/scripts/lib/common.sh; . {ROOT}/scripts/lib/cluster_env.sh; check_settings; "
        'printf "%s\n" "$FILES_LEAST" "$RAISE_FILES_DARWIN" "$RAISE_FILES_LINUX"'
    )
    done = subprocess.run(
        ["bash", "-c", code, "stop_openai_cluster_server.sh"], capture_output=True, text=True
    )
    told = [str(FILES_LEAST), limits_of_all.RAISE_FILES_DARWIN, limits_of_all.RAISE_FILES_LINUX]
    assert done.stdout.splitlines() == told, done.stderr
    sources = [path for folder in ("scripts", "server") for path in (ROOT / folder).rglob("*.*")
               if path.suffix in (".py", ".sh")]  # fmt: skip
    written = [p for p in sources if re.search(r"FILES_LEAST *= *\d", p.read_text("utf-8"))]
    assert [path.name for path in written] == ["limits.py"]
