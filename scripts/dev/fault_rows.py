"""The table of faults in Markdown: made of results, and put in the place of an older one.

Rows of cases that were not run this time stay as they were.
"""

import os
import platform
import re
import sys
from pathlib import Path

from scripts.dev.fault_cases import FAULTS, Result
from tests.support.faults import PHASES, STALL_TIMEOUT_S

BEGIN = "<!-- fault table: written by scripts/dev/fault_table.py, do not edit -->"
END = "<!-- end of fault table -->"


def render(results: list[Result]) -> str:
    """Markdown: what was run, then the faults by phase, then those at a start."""
    newest = {(one.fault, one.phase): one for one in results}
    dates = sorted({one.date for one in newest.values()})
    lines = [
        f"Measured {' to '.join(dict.fromkeys([dates[0], dates[-1]]))} on {describe_machine()}, "
        f"2 local ranks over ring, a tiny model, STALL_TIMEOUT={STALL_TIMEOUT_S}. In each cell: "
        "what the requests saw that were held when the fault struck, and when the last of them "
        "was told; then the seconds until the next good answer (or until nothing of the server "
        "was left).",
        "",
        f"| fault | {' | '.join(PHASES)} | in the end | left over |",
        f"|---|{'---|' * len(PHASES)}---|---|",
    ]
    for fault in FAULTS.values():
        row = [newest.get((fault.title, phase)) for phase in PHASES]
        if any(row):
            left = max(one.left for one in row if one)
            cells = " | ".join(describe_cell(one) if one else "not run" for one in row)
            lines.append(f"| {fault.title} | {cells} | {fault.end} | {_count(left)} |")
    others = [one for one in newest.values() if one.fault not in {f.title for f in FAULTS.values()}]
    if others:
        lines += ["", "| fault | seconds | in the end | last line or failure | left over |",
                  "|---|---|---|---|---|"]  # fmt: skip
        for one in others:
            last = re.sub(r"^[-\d]+ [:\d]+ |, at .*$", "", one.last).replace("|", "\\|")
            lines.append(
                f"| {one.fault} | {one.seconds:.1f} s | {one.end} | `{last}` | {_count(one.left)} |"
            )
    return "\n".join(lines) + "\n"


def describe_cell(one: Result) -> str:
    held = ", ".join(f"{count} × {outcome}" for outcome, count in sorted(one.held.items()))
    told = f"{held} after {one.told_s:.1f} s; " if held else ""
    return f"{told}**{one.seconds:.1f} s**"


def _count(left: int) -> str:
    return "nothing" if not left else f"{left} processes"


def describe_machine() -> str:
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def put_into(file: Path, table: str) -> None:
    """Replaces what stands between the two marks, but for rows that the table does not have."""
    head, begin, rest = file.read_text("utf-8").partition(BEGIN)
    old, end, tail = rest.partition(END)
    if not begin or not end:
        sys.exit(f"fault_table.py: {file} lacks the lines\n{BEGIN}\n{END}")
    file.write_text(f"{head}{BEGIN}\n\n{merge(old, table)}\n{END}{tail}", "utf-8")


def merge(old: str, new: str) -> str:
    """The new tables, with the rows and cells of old ones that were not run this time."""
    words, *tables = [part.splitlines() for part in new.strip().split("\n\n")]
    _, *before = [part.splitlines() for part in old.strip().split("\n\n")] or [""]
    since = min(re.findall(r"\d{4}-\d\d-\d\d", old.partition(" on ")[0] + words[0]))
    until = max(re.findall(r"\d{4}-\d\d-\d\d", words[0].partition(" on ")[0]))
    dates = " to ".join(dict.fromkeys([since, until]))
    blocks = [f"Measured {dates} on {words[0].partition(' on ')[2]}"]
    heads = list(dict.fromkeys(table[0] for table in (*before, *tables)))
    for title in heads:
        rows: dict[str, str] = {}
        for table in (*before, *tables):
            if table[0] == title:
                for row in table[2:]:
                    fault = row.split(" | ")[0]
                    rows[fault] = _fill(row, rows.get(fault, row))
        order = [f"| {fault.title}" for fault in FAULTS.values()]
        first = [rows.pop(fault) for fault in order if fault in rows]
        blocks.append("\n".join([title, re.sub(r"[^|]+", "---", title), *first, *rows.values()]))
    return "\n\n".join(blocks) + "\n"


def _fill(row: str, old: str) -> str:
    """The row, with the old one's cells where it was not run."""
    cells = zip(row.split(" | "), old.split(" | "), strict=False)
    return " | ".join(before if cell == "not run" else cell for cell, before in cells)
