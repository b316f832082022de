"""What rank_facts.sh told of one host, as values. Pure: text in, dataclasses out."""

import re
from dataclasses import dataclass, field

from scripts.lib.hosts.on_hosts import Answer

MIB = 2**20


@dataclass(frozen=True)
class Process:
    """A process as ps shows it."""

    state: str  # ps's letters: T is stopped, U or D waits in the kernel, Z is dead.
    age_s: int
    rss_bytes: int
    command: str


@dataclass(frozen=True)
class RankRecord:
    """A rank's pid file, and the process that has this pid now, whoever's it is."""

    pid: int
    run_id: str
    process: Process | None


@dataclass(frozen=True)
class HostFacts:
    """problem: why the host told nothing, empty if it did. Sizes that it did not tell are None."""

    host: str
    problem: str = ""
    system: str = ""
    memory_total: int | None = None
    memory_used: int | None = None
    wired_limit_mb: int | None = None  # macOS alone; 0: the system's own choice
    ranks: dict[int, RankRecord] = field(default_factory=dict)


def read_facts(answer: Answer) -> HostFacts:
    """What a host answered. A talkative profile may have printed before it."""
    lines = [line.split("\t")[1:] for line in answer.output.splitlines() if line[:5] == "fact\t"]
    if ["end"] not in lines:
        return HostFacts(answer.host, problem=_why_nothing(answer))
    told: dict[str, list[str]] = {}
    for name, *values in lines:
        told.setdefault(name, []).append("\t".join(values))
    total, used = _memory(told)
    return HostFacts(
        host=answer.host,
        system="".join(told.get("system", [])),
        memory_total=total,
        memory_used=used,
        wired_limit_mb=_whole("".join(told.get("wired_limit_mb", []))),
        ranks=dict(_ranks(told.get("rank", []))),
    )


def _why_nothing(answer: Answer) -> str:
    if answer.timed_out or answer.unreachable:
        return f"cannot be reached: {answer.reason}"
    return f"did not tell its state: {answer.reason}"


def _ranks(lines: list[str]):
    for line in lines:
        rank, pid, run_id, process = (line.split("\t", 3) + [""] * 3)[:4]
        if rank.isdecimal() and pid.isdecimal():
            yield int(rank), RankRecord(int(pid), run_id.strip(), read_process(process))


def read_process(line: str) -> Process | None:
    """One line of `ps -o stat= -o etime= -o rss= -o command=`; None for none, or a dead one."""
    words = line.split(None, 3)
    if len(words) < 4 or words[0].startswith("Z") or not words[2].isdecimal():
        return None
    return Process(words[0], read_age(words[1]), int(words[2]) * 1024, words[3])


def read_age(text: str) -> int:
    """Seconds of ps's [[days-]hours:]minutes:seconds."""
    days, _, clock = text.rpartition("-")
    seconds = 0
    for number in clock.split(":"):
        seconds = seconds * 60 + (_whole(number) or 0)
    return (_whole(days) or 0) * 86400 + seconds


def _memory(told: dict[str, list[str]]) -> tuple[int | None, int | None]:
    """Total and used bytes, by macOS's or by Linux's own account."""
    if "meminfo" in told:
        kib = {line.partition(":")[0]: _first_whole(line) for line in told["meminfo"]}
        total, free = kib.get("MemTotal"), kib.get("MemAvailable")
        if total is None:
            return None, None
        return total * 1024, None if free is None else (total - free) * 1024
    total = _whole("".join(told.get("memsize", [])))
    lines = told.get("vm", [])
    page = _first_whole(lines[0]) if lines else None
    pages = {line.partition(":")[0].strip('"'): _first_whole(line) for line in lines[1:]}
    # What Activity Monitor calls used: of programs, wired, and compressed.
    names = ("Anonymous pages", "Pages wired down", "Pages occupied by compressor")
    counts = [pages.get(name) for name in names]
    if page is None or None in counts:
        return total, None
    return total, max(0, sum(counts) - (pages.get("Pages purgeable") or 0)) * page


def _first_whole(text: str) -> int | None:
    found = re.search(r"\d+", text.partition(":")[2])
    return int(found[0]) if found else None


def _whole(text: str) -> int | None:
    return int(text) if text.strip().isdecimal() else None
