"""Does the fixes that lose nothing, each after a yes; the rest stays words for people.

A fix is offered only with the command that takes it back, which is shown with it, or when there
is nothing to take back. sudo is never run unsaid: the question says so, and on a host it may ask
for a password, on the terminal. Changes hosts; called last.
"""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from scripts.lib.doctor.findings import FAIL, WARN, Finding
from scripts.lib.hosts.on_hosts import LOCAL_HOST

WITHIN_S = 120


def offered(findings: Sequence[Finding]) -> list[Finding]:
    """Findings with a fix that may be done here, each command once."""
    seen: set[tuple] = set()
    found = []
    for finding in findings:
        fix = finding.fix
        if finding.verdict not in (WARN, FAIL) or fix is None or not fix.offered:
            continue
        key = (None if fix.here else finding.host, fix.command)
        if key not in seen:
            seen.add(key)
            found.append(finding)
    return found


def ask_and_fix(
    findings: Sequence[Finding],
    checkout: Path,
    *,
    yes: bool,
    ask: Callable[[str], str] = input,
    run: Callable[..., subprocess.CompletedProcess] = subprocess.run,
) -> bool:
    """Go through what can be done; True if anything was done, so that a second look is due."""
    changed = False
    for finding in offered(findings):
        fix = finding.fix
        where = "here" if fix.here or finding.host == LOCAL_HOST else f"on {finding.host}"
        say(f"\n{finding.check}: {finding.found}")
        say(f"  {where}: {fix.command}")
        say(f"  undo: {fix.undo}" if fix.undo else f"  {fix.words}")
        if fix.needs_root:
            say(f"  it runs sudo {where}" + (", which must not ask for a password" * yes))
        if not yes:
            try:
                answer = ask("  do it? [y/N] ")
            except EOFError:
                answer = ""
            if answer.strip().lower() not in ("y", "yes"):
                say("  left as it is")
                continue
        code = _run(finding, checkout, ask_password=not yes, run=run)
        say("  done" if code == 0 else f"  it failed with exit code {code}; do it by hand")
        changed = True
    return changed


def command_line(finding: Finding, *, ask_password: bool) -> list[str]:
    """What is run for a fix: over ssh, with a terminal where sudo may ask."""
    command = finding.fix.command
    if not ask_password:
        command = command.replace("sudo ", "sudo -n ")
    if finding.fix.here or finding.host == LOCAL_HOST:
        return ["bash", "-c", command]
    terminal = ["-t"] if ask_password and finding.fix.needs_root else ["-o", "BatchMode=yes"]
    return ["ssh", *terminal, "-o", "ConnectTimeout=5", finding.host, command]


def _run(finding: Finding, checkout: Path, *, ask_password: bool, run) -> int:
    words = command_line(finding, ask_password=ask_password)
    stdin = None if ask_password else subprocess.DEVNULL
    try:
        return run(words, cwd=checkout, stdin=stdin, stdout=sys.stderr, timeout=WITHIN_S).returncode
    except subprocess.TimeoutExpired:
        return 124


def say(line: str) -> None:
    print(line, file=sys.stderr)
