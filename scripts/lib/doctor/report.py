"""The result for people, a table and a paragraph for each finding; and for programs, as JSON.

Results go to stdout. Pure: texts out of findings.
"""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from scripts.lib.doctor.cluster import Cluster, over_ssh
from scripts.lib.doctor.findings import FAIL, PASS, SKIP, WARN, Finding

WIDTH = 100  # columns of a terminal that the table may take
SHOWN = {PASS: "pass", WARN: "warn", FAIL: "FAIL", SKIP: "-"}
WORST = (FAIL, WARN, PASS, SKIP)


def worst(findings: Sequence[Finding]) -> str:
    verdicts = {finding.verdict for finding in findings}
    return next((verdict for verdict in WORST if verdict in verdicts), SKIP)


def text(findings: Sequence[Finding], hosts: Sequence[str]) -> str:
    """The whole report."""
    parts = [table(findings, hosts)]
    for verdict in (FAIL, WARN):
        parts += [paragraph(group) for group in grouped(findings) if group[0].verdict == verdict]
    reasons = skipped(findings, hosts)
    if reasons:
        parts.append(reasons)
    parts.append(summary(findings))
    return "\n\n".join(parts) + "\n"


def table(findings: Sequence[Finding], hosts: Sequence[str]) -> str:
    """A line for each check, a column for each host; checks of the whole cluster in one line."""
    checks = list(dict.fromkeys(finding.check for finding in findings))
    name_width = max(map(len, (*checks, "check")))
    heads, legend = list(hosts), []
    if name_width + sum(len(host) + 2 for host in heads) > WIDTH:
        heads = [str(place) for place in range(len(hosts))]
        legend = [f"{place}  {host}" for place, host in enumerate(hosts)]
    widths = [max(4, len(head)) for head in heads]
    rows = [["check", *heads]]
    for check in checks:
        ours = [finding for finding in findings if finding.check == check]
        if all(finding.host is None for finding in ours):
            first = next(finding for finding in ours if finding.verdict == worst(ours))
            rows.append([check, f"{SHOWN[worst(ours)]}  {first.found}".rstrip()])
            continue
        cells = [[f for f in ours if f.host == host] for host in hosts]
        rows.append([check, *(SHOWN[worst(cell)] for cell in cells)])
    lines = []
    for name, *cells in rows:
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=False)]
        if len(cells) == 1 and len(heads) > 1:
            padded = cells
        lines.append("  ".join([name.ljust(name_width), *padded]).rstrip())
    return "\n".join([*legend, *([""] if legend else []), *lines])


def grouped(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Findings that say the same of several hosts, together; in the order of the table."""
    groups: dict[tuple, list[Finding]] = {}
    for finding in findings:
        if finding.verdict in (WARN, FAIL):
            key = (finding.check, finding.verdict, finding.found, finding.symptom)
            # The same command for another host is the same fix.
            command = finding.fix.command.replace(finding.host or " ", "HOST")
            groups.setdefault((*key, finding.fix.words, command), []).append(finding)
    return list(groups.values())


def paragraph(group: Sequence[Finding]) -> str:
    """What was found, what the launch would have shown, what mends it."""
    first = group[0]
    where = ", ".join(finding.host for finding in group if finding.host)
    head = f"{SHOWN[first.verdict]}  {where + ': ' if where else ''}{first.check}: {first.found}"
    lines = [head, *wrapped("      would show: ", first.symptom)]
    fix = first.fix
    for finding in group:
        place = "" if fix.here or finding.host is None else f", on {finding.host}"
        line = f"      fix{place}: {finding.fix.command}"
        if fix.command and line not in lines:
            lines.append(line)
    if fix.words:
        lines += wrapped(f"      {'     ' if fix.command else 'fix: '}", fix.words)
    return "\n".join(lines)


def wrapped(start: str, words: str) -> list[str]:
    """Words for people, within the width; commands are never broken."""
    return textwrap.wrap(
        words,
        WIDTH,
        initial_indent=start,
        subsequent_indent=" " * 11,
        break_long_words=False,
        break_on_hyphens=False,
    )


def skipped(findings: Sequence[Finding], hosts: Sequence[str]) -> str:
    """Why cells are empty, but for those that only point to another check."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        told = finding.found and "see " not in finding.found and finding.found != "not a Mac"
        if finding.verdict == SKIP and told:
            key = (finding.check, finding.found)
            reasons.setdefault(key, []).append(finding.host or "")
    lines = []
    for (check, reason), where in reasons.items():
        everywhere = len(set(where)) == len(hosts) or where == [""]
        lines.append(f"-     {'' if everywhere else ', '.join(where) + ': '}{check}: {reason}")
    return "\n".join(dict.fromkeys(lines))


def counts(findings: Sequence[Finding]) -> dict[str, int]:
    """How many cells of the table have each verdict."""
    cells: dict[tuple, list[Finding]] = {}
    for finding in findings:
        cells.setdefault((finding.check, finding.host), []).append(finding)
    verdicts = [worst(cell) for cell in cells.values()]
    return {verdict: verdicts.count(verdict) for verdict in (PASS, WARN, FAIL, SKIP)}


def summary(findings: Sequence[Finding]) -> str:
    number = counts(findings)
    words = f"{number[FAIL]} failed, {number[WARN]} warned, {number[PASS]} passed"
    return words + (f", {number[SKIP]} not judged" if number[SKIP] else "")


def as_json(findings: Sequence[Finding], cluster: Cluster) -> str:
    """Everything: verdicts, fixes, and the facts that they were judged from."""
    plan = cluster.plan
    facts = {
        host: {
            key: value
            for key, value in asdict(found).items()
            if value not in (None, "", {}, (), []) and key != "host"
        }
        for host, found in cluster.facts.items()
    }
    return json.dumps(
        {
            "ok": not any(finding.verdict == FAIL for finding in findings),
            "backend": plan.backend,
            "ranks": plan.ranks,
            "counts": counts(findings),
            "findings": [_finding_json(finding) for finding in findings],
            "facts": facts,
        },
        indent=1,
        default=str,
    )


def _finding_json(finding: Finding) -> dict[str, Any]:
    data = asdict(finding)
    if finding.fix is not None:
        data["fix"] |= {"offered": finding.fix.offered}
        if finding.fix.command and finding.host and not finding.fix.here:
            data["fix"]["over_ssh"] = over_ssh(finding.host, finding.fix.command)
    return data
