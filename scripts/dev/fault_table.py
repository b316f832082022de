"""Do to a real server what may happen to it, and write down what came of it.

usage: python -m scripts.dev.fault_table [--cases NAME...] [--results FILE] [--list]
                                         [--markdown FILE | --update FILE]

Every case starts a server of its own on two local ranks with a tiny model, through
scripts/run_openai_cluster_server.sh; holds requests in a phase (idle, in prefill, in decode,
under 8 streams); puts the fault in; and watches until a good answer comes again, or until
everything is gone. A case takes 10 to 40 seconds.

  --cases NAME...   Only these (see --list); a name without a phase means all of its phases.
  --results FILE    Keep results there, one JSON a line, and make the table of all it holds.
  --markdown FILE   Write the table there.
  --update FILE     Put it into FILE, between the two lines that mark its place. Rows of cases
                    that were not run stay as they are.
  --list            Name the cases.

Without --markdown or --update the table goes to stdout; progress always goes to stderr.
Run it with the interpreter that has the server's packages. Exit code 1 when a case did not end
as it should: an accepted request cut or hanging although rank 0 could speak, a process left over,
no good answer.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.faults import (
    ANSWERED,
    CONTEXT,
    CUT,
    DEADLINE_S,
    HUNG,
    IDLE,
    PHASES,
    STALL_TIMEOUT_S,
    Client,
    Server,
    Stranger,
    leave_rank_zero_stopped,
    wait_for,
)
from tests.support.tiny_models import tiny_llama

BEGIN = "<!-- fault table: written by scripts/dev/fault_table.py, do not edit -->"
END = "<!-- end of fault table -->"
AWAY_S = 40  # more than five starts in a row need to fail
LAST_WORDS_S = 10  # for held requests to end once all else has


@dataclass
class Result:
    """What a case showed. told_s: until the last held request had its end; seconds: until the
    next good answer, or until everything was gone; counts are by outcome."""

    fault: str
    phase: str
    end: str
    held: dict[str, int]
    told_s: float
    seconds: float
    newcomers: dict[str, int]
    left: int
    last: str
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%d"))


@dataclass(frozen=True)
class Fault:
    """One row of the table. silent: rank 0's process is killed, so nobody can tell clients."""

    title: str
    put_in: Callable[[Server], None]
    end: str = "served again"
    silent: bool = False
    settings: dict = field(default_factory=dict)
    before: Callable[[Server], None] | None = None


# Faults that strike a server that serves, in each phase.


def kill_rank(number: int) -> Callable[[Server], None]:
    return lambda server: os.kill(server.rank(number), signal.SIGKILL)


def stop_rank(number: int) -> Callable[[Server], None]:
    return lambda server: os.kill(server.rank(number), signal.SIGSTOP)


def raise_in_step(number: int) -> Callable[[Server], None]:
    return lambda server: (server.fault_dir / f"raise-{number}").touch()


def garble(how: str) -> Callable[[Server], None]:
    """The next message that rank 1 gets; tests/support/fault_site tells how."""
    return lambda server: server.garble(1, "any", how)


def pause_all(server: Server) -> None:
    server.pause(PAUSE_S)


def fill_disk(server: Server) -> None:
    """Every write to the log fails, as on a full disk."""
    server.log_path.symlink_to("/dev/full")


GONE = "all gone"
WENT_ON = "went on"
PAUSE_S = STALL_TIMEOUT_S + 4
FAULTS = {
    "kill-rank-0": Fault("SIGKILL of rank 0", kill_rank(0), silent=True),
    "kill-rank-1": Fault("SIGKILL of rank 1", kill_rank(1)),
    "stop-rank-0": Fault("SIGSTOP of rank 0", stop_rank(0)),
    "stop-rank-1": Fault("SIGSTOP of rank 1", stop_rank(1)),
    "raise-rank-0": Fault("rank 0 raises in its step", raise_in_step(0)),
    "raise-rank-1": Fault("rank 1 raises in its step", raise_in_step(1)),
    "flip-bit": Fault("a message that reaches rank 1 with a bit flipped", garble("flipped")),
    "lose-message": Fault("a message that rank 1 loses, so that all later ones are shifted",
                          garble("shifted")),
    "pause": Fault(f"SIGSTOP of everything, SIGCONT after {PAUSE_S} s", pause_all, end=WENT_ON),
    "kill-launcher": Fault(
        "SIGKILL of the launcher", lambda server: os.kill(server.launcher, signal.SIGKILL)
    ),
    "kill-supervisor": Fault(
        "SIGKILL of the supervisor",
        lambda server: os.kill(server.supervisor, signal.SIGKILL),
        end=GONE,
    ),
    "full-disk": Fault("full disk for the log, and SIGKILL of rank 1", kill_rank(1),
                       before=fill_disk),
}  # fmt: skip


def run_phase(name: str, phase: str, folder: Path, model: Path) -> Result:
    """One fault in one phase."""
    fault = FAULTS[name]
    server = Server(folder, model, **fault.settings)
    try:
        if fault.before is not None:
            fault.before(server)
        if server.start() != 0:
            raise AssertionError(server.output)
        held = server.hold(phase)
        struck = time.monotonic()
        fault.put_in(server)
        if fault.end == GONE:
            seconds, newcomers, left = server.wait_gone(struck), Counter(), []
            last = server.last_line()
        else:
            if fault.end == WENT_ON:
                _see_going_on(server, held)
            seconds, newcomers = server.wait_good_answer(struck)
            left = server.orphans()
            last = server.get("/health")[1]["last_failure"]
            assert fault.end != WENT_ON or not last, f"it did not go on: {last}"
        for client in held:
            client.join(LAST_WORDS_S)
        told = [(client.ended_at or float("inf")) - struck for client in held]
        outcomes = Counter(client.outcome for client in held)
        return Result(
            fault.title, phase, fault.end, outcomes, max(told, default=0.0), seconds,
            newcomers, len(left), last,
        )  # fmt: skip
    finally:
        server.close()


def _see_going_on(server: Server, held: list[Client]) -> None:
    """Waits for more of each answer, and has its client leave: streams may hold all places."""
    went_on = [client for client in held if server.goes_on(client)]
    for client in went_on:
        client.leave()
        client.join(LAST_WORDS_S)
        client.outcome = WENT_ON


# Faults at a start, and those that know one phase.


def start_without(rank: int) -> Callable[[Server], Result]:
    def run(server: Server) -> Result:
        (server.fault_dir / f"hang-{rank}").touch()
        return _refused_start(server, f"rank {rank} never comes up")

    return run


def restart_without(rank: int) -> Callable[[Server], Result]:
    def run(server: Server) -> Result:
        assert server.start() == 0, server.output
        hang = server.fault_dir / f"hang-{rank}"
        hang.touch()
        struck = time.monotonic()
        os.kill(server.rank(1), signal.SIGKILL)

        def relent() -> None:
            with contextlib.suppress(AssertionError):
                wait_for(lambda: "failure 2 in a row" in server.log(), "a second failure")
            hang.unlink()

        threading.Thread(target=relent, daemon=True).start()
        seconds, seen = server.wait_good_answer(struck)
        return Result(
            f"SIGKILL of rank 1, and rank {rank} does not come up at the first restart", IDLE,
            "served again", {}, 0.0, seconds, seen, len(server.orphans()),
            server.get("/health")[1]["last_failure"],
        )  # fmt: skip

    return run


def stop_supervisor(server: Server) -> Result:
    assert server.start() == 0, server.output
    os.kill(server.supervisor, signal.SIGSTOP)
    struck = time.monotonic()
    server.make_log_lines(4000)
    seconds, seen = server.wait_good_answer(struck)
    os.kill(server.supervisor, signal.SIGCONT)
    words = "lines of the ranks dropped"
    wait_for(lambda: words in server.log(), "what was dropped")
    (last,) = [line for line in server.log().splitlines() if words in line][:1]
    return Result(
        "SIGSTOP of the supervisor (Ctrl-Z), and 4,000 requests that are logged", IDLE,
        "served on", {}, 0.0, seconds, seen, len(server.orphans()), last,
    )  # fmt: skip


def fill_run(server: Server) -> Result:
    reason = server.give_small_disk()
    assert not reason, reason
    assert server.start() == 0, server.output
    give_back = server.fill_disk()
    struck = time.monotonic()
    os.kill(server.rank(1), signal.SIGKILL)
    seconds, seen = server.wait_good_answer(struck)
    told = server.get("/health")[1]["detail"].replace(str(server.run_dir), "run/PORT")
    give_back()
    records = [server.run_dir / f"rank-{rank}.pid" for rank in (0, 1)]
    wait_for(lambda: all(path.exists() for path in records), "the pid files")
    return Result(
        "full disk under `run/`, and SIGKILL of rank 1", IDLE, "served again", {}, 0.0, seconds,
        seen, len(server.orphans()), told,
    )  # fmt: skip


def kill_again_and_again(server: Server) -> Result:
    assert server.start() == 0, server.output
    all_seen: Counter = Counter()
    for _ in range(6):
        struck = time.monotonic()
        os.kill(server.rank(1), signal.SIGKILL)
        seconds, seen = server.wait_good_answer(struck)
        all_seen += seen
    return Result(
        "SIGKILL of rank 1, six times in a row, each as soon as it served (the last time)", IDLE,
        "served again", {}, 0.0, seconds, all_seen, len(server.orphans()),
        server.get("/health")[1]["last_failure"],
    )  # fmt: skip


def lose_host(server: Server) -> Result:
    """Through real ssh, to an sshd that is away for longer than five starts would take."""
    from tests.support.nodes import running_nodes  # which needs pytest

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "nodes"
        with running_nodes(place, ["node-1", "node-2"]) as nodes:
            server.live_on(nodes, Path(folder))
            assert server.start() == 0, server.output
            nodes["node-2"].down()
            waits = "starting again when all hosts answer"
            wait_for(lambda: waits in server.log(), "the supervisor to wait")
            time.sleep(AWAY_S)
            nodes["node-2"].up()
            struck = time.monotonic()
            seconds, seen = server.wait_good_answer(struck)
            # The connections to the nodes carry the ranks' command lines, too.
            left = [one for one in server.orphans() if not re.match(r"\S*ssh ", one)]
            (last,) = [line for line in server.log().splitlines() if waits in line][:1]
            os.kill(server.supervisor, signal.SIGTERM)
            wait_for(lambda: not server.left(), "the server to stop")
    return Result(
        f"the host of rank 1 is away for {AWAY_S} s (from its return)", IDLE, "served again", {},
        0.0, seconds, seen, len(left), last,
    )  # fmt: skip


def start_on_taken_port(server: Server) -> Result:
    with socket.create_server(("127.0.0.1", server.port)):
        return _refused_start(server, "HTTP port taken at start")


def restart_on_taken_port(server: Server) -> Result:
    assert server.start() == 0, server.output
    struck = time.monotonic()
    os.kill(server.rank(0), signal.SIGKILL)
    thief = wait_for(lambda: _steal(server.port), "the port")
    with thief:
        wait_for(lambda: not server.left(), "everything to be gone")
        seconds = time.monotonic() - struck
    return Result(
        "SIGKILL of rank 0, and another program takes the port", IDLE, GONE, {}, 0.0, seconds,
        {}, 0, server.last_line(),
    )  # fmt: skip


def _steal(port: int) -> socket.socket | None:
    try:
        return socket.create_server(("127.0.0.1", port), backlog=128)
    except OSError:
        return None


def _refused_start(server: Server, title: str) -> Result:
    began = time.monotonic()
    code = server.start()
    seconds = time.monotonic() - began
    assert code == 1, f"the run script ended with {code}: {server.output}"
    left = server.left()
    lines = [line for line in server.output.splitlines() if "its log is" not in line]
    return Result(title, IDLE, GONE, {}, 0.0, seconds, {}, len(left), lines[-1])


def start_with_stranger(server: Server) -> Result:
    began = time.monotonic()
    with Stranger(server, "talks") as stranger:
        assert server.start() == 0, server.output
    assert stranger.called.is_set()
    seconds, seen = server.wait_good_answer(began)
    return Result(
        "a stranger connects to a port where ranks meet", IDLE, "served in the end", {}, 0.0,
        seconds, seen, len(server.orphans()), server.get("/health")[1]["last_failure"],
    )  # fmt: skip


def start_twice(server: Server) -> Result:
    began = time.monotonic()
    scripts = [server.begin(), server.begin()]
    outputs = [script.communicate(timeout=DEADLINE_S)[0] for script in scripts]
    codes = [script.returncode for script in scripts]
    assert sorted(codes) == [0, 1], outputs
    server.run_ids.add(server.get("/health")[1]["run_id"])
    assert server.ask().outcome == ANSWERED
    lines = outputs[codes.index(1)].splitlines()
    return Result(
        "two starts at once for one port", IDLE, "one serves", {}, 0.0, time.monotonic() - began,
        {}, len(server.orphans()), lines[-1],
    )  # fmt: skip


def start_beside_stopped_rank(server: Server) -> Result:
    assert server.start() == 0, server.output
    leave_rank_zero_stopped(server)
    began = time.monotonic()
    assert server.start() == 1, server.output
    last = server.output.splitlines()[-1]
    assert server.stop() == 0, server.output
    return Result(
        "rank 0 stopped, launcher and supervisor killed; a start, and the stop it names",
        IDLE, GONE, {}, 0.0, server.wait_gone(began), {}, len(server.left()), last,
    )  # fmt: skip


AT_START = {
    "no-rank-0": (start_without(0), {"JOIN_TIMEOUT": 8}),
    "no-rank-1": (start_without(1), {"JOIN_TIMEOUT": 8}),
    "no-rank-0-again": (restart_without(0), {"JOIN_TIMEOUT": 25}),
    "no-rank-1-again": (restart_without(1), {"JOIN_TIMEOUT": 25}),
    "stranger": (start_with_stranger, {"JOIN_TIMEOUT": 25}),
    "two-starts": (start_twice, {}),
    "stopped-rank-0-left": (start_beside_stopped_rank, {}),
    "port-taken": (start_on_taken_port, {}),
    "port-taken-again": (restart_on_taken_port, {}),
    "stop-supervisor": (stop_supervisor, {"LOG_LEVEL": "DEBUG"}),
    "full-run": (fill_run, {}),
    "kill-rank-1-six-times": (kill_again_and_again, {}),
    "host-away": (lose_host, {}),
}


def all_cases() -> list[str]:
    """Names; those with phases as fault/phase."""
    phased = [f"{name}/{phase.split()[-1]}" for name in FAULTS for phase in PHASES]
    return [*phased, *AT_START]


def run_case(case: str, model: Path) -> Result:
    """One case, in a folder of its own."""
    name, _, short = case.partition("/")
    with tempfile.TemporaryDirectory() as folder:
        if name in FAULTS:
            (phase,) = [phase for phase in PHASES if phase.split()[-1] == short]
            return run_phase(name, phase, Path(folder), model)
        run, settings = AT_START[name]
        server = Server(Path(folder), model, **settings)
        try:
            return run(server)
        finally:
            server.close()


def complaints(result: Result) -> list[str]:
    """What should not have been."""
    found = []
    silent = any(fault.silent and fault.title == result.fault for fault in FAULTS.values())
    if result.held.get(HUNG):
        found.append("a request hangs")
    if result.held.get(CUT) and not silent:
        found.append("a request was cut without a word")
    if result.newcomers.get(HUNG) or result.newcomers.get("wrong answer"):
        found.append(f"newcomers saw {result.newcomers}")
    if result.left:
        found.append(f"{result.left} processes left over")
    return found


# The table.


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
            cells = " | ".join(_cell(one) if one else "not run" for one in row)
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


def _cell(one: Result) -> str:
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


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cases", nargs="*")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--list", action="store_true")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--markdown", type=Path)
    where.add_argument("--update", type=Path)
    arguments = parser.parse_args()
    chosen = arguments.cases
    for name in chosen or []:
        if not any(name in (case, case.partition("/")[0]) for case in all_cases()):
            parser.error(f"no case {name!r}; see --list")
    arguments.cases = [
        case for case in all_cases()
        if chosen is None or case in chosen or case.partition("/")[0] in chosen
    ]  # fmt: skip
    return arguments


def main() -> int:
    arguments = parse_arguments()
    if arguments.list:
        print("\n".join(all_cases()))
        return 0
    results = []
    if arguments.results and arguments.results.exists():
        lines = arguments.results.read_text("utf-8").splitlines()
        results = [Result(**json.loads(line)) for line in lines]
    wrong = 0
    work = Path(tempfile.mkdtemp())
    try:
        model = tiny_llama(work / "tiny", context=CONTEXT)
        for number, case in enumerate(arguments.cases, 1):
            print(f"{number}/{len(arguments.cases)} {case}: ", end="", file=sys.stderr, flush=True)
            try:
                result = run_case(case, model)
            except AssertionError as error:
                wrong += 1
                print(f"FAILED: {error}", file=sys.stderr)
                continue
            bad = complaints(result)
            wrong += bool(bad)
            print(f"{result.end}, {_cell(result)} {dict(result.newcomers)} {'; '.join(bad)}",
                  file=sys.stderr)  # fmt: skip
            results.append(result)
            if arguments.results:
                with arguments.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(vars(result)) + "\n")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if results:
        table = render(results)
        if arguments.update:
            put_into(arguments.update, table)
        elif arguments.markdown:
            arguments.markdown.write_text(table, "utf-8")
        else:
            print(table)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
