"""Coding agents as their makers ship them: where they are, and a run of one in an empty home.

They come from npm, pinned in tests/agents (`npm install` there installs them); one on PATH will do.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT

FOLDER = ROOT / "tests/agents"
INSTALLED = FOLDER / "node_modules/.bin"
DEADLINE_S = 180  # against a hang
# Whatever asks for another machine than this one is refused at once.
NOWHERE = "http://127.0.0.1:9"
NO_NETWORK = {
    "HTTP_PROXY": NOWHERE, "HTTPS_PROXY": NOWHERE, "http_proxy": NOWHERE, "https_proxy": NOWHERE,
    "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
}  # fmt: skip


def program(name: str) -> str:
    """The agent's path; skips the test, or fails it under CI=true."""
    found = shutil.which(name, path=f"{INSTALLED}{os.pathsep}{os.environ['PATH']}")
    reason = None if found else f"{name} is not installed (npm install in tests/agents)"
    if found and _needs_node(found) and shutil.which("node") is None:
        reason = f"node is not installed, which {name} needs"
    if reason:
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    return found


def _needs_node(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(64).partition(b"\n")[0] == b"#!/usr/bin/env node"


def run_agent(
    command: list[str], repository: Path, home: Path, **env: str
) -> subprocess.CompletedProcess:
    """The agent's whole run, in a home that holds only what was put there."""
    home.mkdir(exist_ok=True)
    told = {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home), "LANG": "C.UTF-8"}
    return subprocess.run(
        command,
        cwd=repository,
        env=told | NO_NETWORK | env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
