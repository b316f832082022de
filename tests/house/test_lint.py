"""Linters over the whole repository: ruff, shellcheck, and what bash 3.2 does not have."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

SCRIPTS = sorted([*ROOT.glob("scripts/**/*.sh"), ROOT / ".ci" / "run"])
BATS = sorted([*ROOT.glob("tests/bats/*.bats"), *ROOT.glob("tests/bats/*.bash")])

# What stock macOS (bash 3.2, BSD tools) lacks, each with the words that a failure shows.
ABSENT = {
    r"\b(declare|local|typeset)\s+-\w*[Ag]": "associative or global declare",
    r"\b(declare|local|typeset)\s+-\w*n\b": "name reference",
    r"\b(mapfile|readarray|coproc)\b": "mapfile, readarray, coproc",
    r"\$\{!?\w+(\[[^]]*\])?(,|\^)": "${x,,} or ${x^^}",
    r"\$\{\w+(\[[^]]*\])?@[A-Za-z]\}": "${x@Q}",
    r"\$\{\w+(\[[^]]*\])?:[^}:]*:\s*-": "negative substring length",
    r"\$\{\w+\[-\d": "negative array index",
    r"\bwait\s+-[a-z]*n": "wait -n",
    r"\|&": "|&",
    r"&>>": "&>>",
    r";;&|;&": ";& in case",
    r"(\[\[|\[|\btest)\s+(!\s+)?-v\b": "-v test",
    r"\bprintf\b.*%\(": "printf %(...)T",
    r"\bread\s+-\w*N": "read -N",
    r"\$\{?(EPOCHSECONDS|EPOCHREALTIME|BASHPID|SRANDOM)\b": "variable of bash 4 or 5",
    r"\bshopt\s+-s\s+(globstar|lastpipe|inherit_errexit)": "shopt of bash 4",
    r"\bexec\s+\{\w+\}": "exec {fd}",
    r"\$\(\s*case\b": "case in $(...), which 3.2 misparses",
    r"(^|[|;&(]|\b(if|then|do|else|exec|while|until|!)\s)\s*(timeout|flock|setsid|nproc|tac)\s": (
        "tool that stock macOS lacks"
    ),
    r"\breadlink\s+-f": "readlink -f",
    r"\bsed\s+(-\w+\s+)*-i": "sed -i, which differs",
    r"\bdate\s+-d": "date -d",
    r"\bmktemp\s+--": "long option of mktemp",
    r"\bgrep\s+(-\w+\s+)*-\w*P": "grep -P",
}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def absent_in(text: str) -> list[str]:
    """Each use of what macOS lacks, as `line number: words: line`. Comments may name it."""
    return [
        f"{number}: {words}: {line.strip()}"
        for number, line in enumerate(text.splitlines(), 1)
        if not line.lstrip().startswith("#")
        for pattern, words in ABSENT.items()
        if re.search(pattern, line)
    ]


def tool(command: str) -> str:
    found = shutil.which(command)
    if found is None:
        reason = f"{command} is not installed"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    return found


def run(*command: str | Path) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


LINES_MOST = 400


def test_a_file_is_one_idea():
    """Of what serves and what runs: beyond so many lines it is more than that."""
    files = [path for folder in ("server", "scripts") for path in (ROOT / folder).rglob("*")]
    long = {
        name(path): lines
        for path in files
        if path.suffix in (".py", ".sh")
        and (lines := len(path.read_text("utf-8").splitlines())) > LINES_MOST
    }
    assert long == {}


def test_ruff_finds_nothing():
    pytest.importorskip("ruff")
    run(sys.executable, "-m", "ruff", "check", "--config", ".ci/ruff.toml", "--no-cache", ".")


# What cannot be known of a file alone: names that those it sources, or those that source it, set.
ACROSS_FILES = "SC1091,SC2034,SC2153,SC2154"


def test_shellcheck_finds_nothing_in_any_file():
    for path in SCRIPTS:
        run(tool("shellcheck"), "--exclude", ACROSS_FILES, path)


@pytest.mark.thorough
def test_shellcheck_finds_nothing_across_files():
    """It follows what a file sources, and looks at that again for each: ten times the work."""
    run(tool("shellcheck"), *SCRIPTS)


@pytest.mark.parametrize("path", [*SCRIPTS, *BATS], ids=name)
def test_script_uses_nothing_that_stock_macos_lacks(path):
    assert absent_in(path.read_text()) == []


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_script_is_built_like_the_others(path):
    text = path.read_text()
    if path.is_relative_to(ROOT / "scripts" / "lib") and not os.access(path, os.X_OK):
        said = text.startswith(("# shellcheck shell=bash\n", "# shellcheck shell=sh\n"))
        assert said, "sourced files say for which shell"
        return
    assert os.access(path, os.X_OK)
    assert text.startswith("#!/usr/bin/env bash\n# "), "the header comment is the help"
    assert "\nset -euo pipefail\n" in text
    assert text.endswith('\nmain "$@"\n')


@pytest.mark.parametrize(
    "line",
    [
        "declare -A table",
        "local -n name=$1",
        "mapfile -t lines <file",
        'echo "${word,,}"',
        'echo "${words[0]^^}"',
        'echo "${word@Q}"',
        'echo "${word:0:-1}"',
        'echo "${words[-1]}"',
        "wait -n",
        "a |& b",
        "a &>>log",
        "[[ -v word ]]",
        "printf '%(%s)T' -1",
        "exec {fd}>file",
        "x=$(case $y in a) ;; esac)",
        "timeout 5 ssh mac0 true",
        "if timeout 5 true; then",
        'echo "$EPOCHSECONDS"',
        "sed -i s/a/b/ file",
    ],
)
def test_lint_knows_what_bash_3_lacks(line):
    assert absent_in(line)


@pytest.mark.parametrize(
    "line",
    [
        'local name=$1; declare -a list; "${list[@]}" "${#list[@]}"',
        'echo "${word:-1}" "${word: -1}" "${word%%,*}" "${!name}" "${word:1:2}"',
        'wait "$pid" || a && b; c & d; REQ_TIMEOUT=5 --timeout 3',
        "# declare -A is absent",
        "ssh -n -o ConnectTimeout=5 mac0 true",
    ],
)
def test_lint_passes_what_bash_3_has(line):
    assert absent_in(line) == []
