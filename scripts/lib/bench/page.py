"""The comparison's table in docs/performance.md, between two marks."""

import os
import platform
import subprocess
import sys
from pathlib import Path

BEGIN = "<!-- comparison: written by scripts/dev/bench_compare.sh --write, do not edit -->"
END = "<!-- end of comparison -->"


def write_table(file: Path, table: str, facts: list[dict], notes: list[str]) -> None:
    """Replaces what stands between the marks. Ends the program if they are not there.

    facts: for each check when and where it was measured (compare.describe).
    """
    head, begin, rest = file.read_text("utf-8").partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        sys.exit(f"bench_compare.sh: {file} lacks the lines\n{BEGIN}\n{END}")
    text = f"{head}{BEGIN}\n\n{caption(facts)}\n\n{table}\n\n"
    text += "".join(f"- {note}\n" for note in notes) + ("\n" if notes else "")
    file.write_text(text + END + tail, "utf-8")


def caption(facts: list[dict]) -> str:
    """A sentence on when, where and how, naming every value that the checks do not share."""

    def each(name: str) -> str:
        values = dict.fromkeys(str(one[name]) for one in facts)
        return ", ".join(values)

    quick = " Some were quick runs, which show that it works and no more." if any(
        one["quick"] for one in facts) else ""  # fmt: skip
    return (
        f"Measured {each('date')} on {each('machine')}; mlx {each('mlx')}, mlx-lm "
        f"{each('mlx_lm')}; demo is {each('demo')}; medians of {each('rounds')} rounds.{quick}"
    )


def describe_machine() -> str:
    """The processor and its cores."""
    return f"{platform.system()} {platform.machine()}, {_processor()}, {os.cpu_count()} cores"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.strip()
    return "unknown processor"
