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

import os
import sys

from scripts.lib.right_python import ensure

if __name__ == "__main__":  # before what an older one cannot even read
    ensure(os.getcwd(), "scripts.dev.fault_table")

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from scripts.dev.fault_cases import FAULTS, Result, complaints, run_phase
from scripts.dev.fault_rows import describe_cell, put_into, render
from scripts.dev.fault_starts import AT_START
from scripts.lib.verbs.parser import Parser
from tests.support.faults import CONTEXT, PHASES, Server
from tests.support.tiny_models import tiny_llama


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


def parse_arguments() -> argparse.Namespace:
    parser = Parser("fault_table.py", __doc__)
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
            told = f"{result.end}, {describe_cell(result)} {dict(result.newcomers)}"
            print(f"{told} {'; '.join(bad)}", file=sys.stderr)
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
