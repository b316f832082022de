"""The set-up of the first start under Ctrl-C and on a terminal: one line, and a bar."""

import os
import pty
import shutil
import signal
import subprocess

import pytest

from tests.support.launch_helpers import PATIENCE_S, wait_until
from tests.support.paths import ROOT

# A Python that makes an environment of itself, and whose pip takes its time, with a lot to say.
STUB = """#!/bin/bash
case "$*" in
  *"-m venv"*)
    if [ "$SLOW" = venv ]; then touch "$PLACE/busy"; exec sleep 600; fi
    for last; do :; done
    mkdir -p "$last/bin"; cp "$0" "$last/bin/python"
    ;;
  *"pip install"*)
    for n in 1 2 3; do echo "Collecting package-$n"; done
    if [ "$SLOW" = pip ]; then touch "$PLACE/busy"; exec sleep 600; fi
    ;;
esac
"""
CODE = """
. "$PLACE/scripts/lib/common.sh"
. "$ROOT/scripts/lib/venv.sh"
ensure_venv "$PLACE/requirements.txt"
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "scripts" / "lib").mkdir(parents=True)
    for name in ("common.sh", "venv.sh"):
        shutil.copy(ROOT / "scripts" / "lib" / name, tmp_path / "scripts" / "lib")
    (tmp_path / "requirements.txt").write_text("mlx==1\nother==2\n")
    stub = tmp_path / "bin" / "python3.11"
    stub.parent.mkdir()
    stub.write_text(STUB)
    stub.chmod(0o755)
    return tmp_path


def begin(place, slow: str = "", **streams) -> subprocess.Popen:
    path = f"{place / 'bin'}:{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", CODE, "setup"], stdin=subprocess.DEVNULL,
        env=os.environ | {"PATH": path, "PLACE": str(place), "SLOW": slow},
        start_new_session=True, **streams,
    )  # fmt: skip


def left(process: subprocess.Popen) -> list[str]:
    ps = subprocess.run(["ps", "-A", "-o", "pgid=,stat="], capture_output=True, text=True)
    rows = [line.split() for line in ps.stdout.splitlines()]
    return [row for row in rows if row[0] == str(process.pid) and not row[1].startswith("Z")]


@pytest.mark.parametrize("slow", ["venv", "pip"])
def test_ctrl_c_is_one_line_and_leaves_nothing_running(place, slow):
    """Python's and pip's tracebacks, and "could not make a virtual environment"."""
    process = begin(place, slow, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: (place / "busy").exists())
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert out == ""
    told = [line for line in err.splitlines() if "making" not in line and "installing" not in line]
    assert told == ["setup: interrupted; start again to go on"]
    wait_until(lambda: not left(process))


def test_on_a_terminal_a_bar_goes_on_and_pips_lines_go_to_the_log(place):
    ours, theirs = pty.openpty()
    process = begin(place, stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    seen = b""
    while True:
        try:
            data = os.read(ours, 4096)
        except OSError:  # how a terminal's other end ends on Linux
            data = b""
        if not data:
            break
        seen += data
    os.close(ours)
    assert process.wait(PATIENCE_S) == 0
    text = seen.decode()
    assert "Collecting" not in text
    assert "\r[" in text and "%" in text and text.count("\n") == 2, text
    assert (place / "logs" / "setup.log").read_text().count("Collecting") == 3
