"""docs/operations.md against the tools: checks of the doctor, options, metrics, its own form."""

import re

import pytest

from scripts.lib.doctor import checks
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "operations.md").read_text("utf-8")
# An entry may be wrapped anywhere; a command in a block is on its own line.
ENTRIES = [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", PAGE)]
BLOCKS = "\n".join(re.findall(r"^```(?:bash)?\n(.*?)^```$", PAGE, re.M | re.S)).splitlines()
COMMANDS = [line for line in [*ENTRIES, *BLOCKS] if "scripts/" in line]


def failures() -> dict[str, str]:
    """Heading to text, from the first failure to the last."""
    part = PAGE.partition("\n## Failures before the launch")[2]
    part = part.partition("\n## Recovery from a dead node")[0]
    pieces = re.split(r"^### (.*)\n", part, flags=re.M)[1:]
    return dict(zip(pieces[::2], pieces[1::2], strict=True))


@pytest.mark.parametrize("heading", failures())
def test_each_failure_has_symptom_check_and_fix(heading):
    marks = re.findall(r"^\*\*(Symptom|Check|Fix)\.\*\* \S", failures()[heading], re.M)
    assert marks == ["Symptom", "Check", "Fix"]


def test_each_check_of_the_doctor_has_its_failure():
    named = {name for line in COMMANDS for name in re.findall(r"--check (\S+)", line)}
    assert named == set(checks.NAMES)


def read_verb(name: str) -> str:
    """The script's text, and that of the module that does its work."""
    text = (ROOT / "scripts" / name).read_text("utf-8")
    for module in re.findall(r"from (scripts\.[\w.]+) import main", text):
        text += (ROOT / (module.replace(".", "/") + ".py")).read_text("utf-8")
    return text


def test_options_in_commands_exist():
    """Of each script, in its help; a comment behind a command is none of it."""
    unknown = []
    for line in COMMANDS:
        for part in re.split(r"[|;&]| # ", line):
            found = re.search(r"scripts/([\w.]+)(.*)", part)
            if not found or "/" in found[2].split(" ")[0]:
                continue
            text = read_verb(found[1])
            words = (option.partition("=")[0] for option in re.findall(r" (--?\w[\w-]*)", found[2]))
            unknown += [f"{found[1]} {word}" for word in words if word not in text]
    assert unknown == []


def test_metrics_that_are_named_exist():
    observe = ROOT / "server" / "observe"
    code = "".join(path.read_text("utf-8") for path in observe.glob("metrics*.py"))
    names = {name.removesuffix("_total") for name in re.findall(r"mlx_cluster_(\w+)", PAGE)}
    assert len(names) > 8
    assert {name for name in names if f'"{name}"' not in code} == set()


# The tests that it names, as `test_file`, `room/test_file`, `test_of_something`, and behind a file
# and a colon those in it. "faults" stands for the folder tests/whole/.
NAME = r"`((?:[\w./]+/)?test_\w+)(?:\.py)?`"
OF_A_FILE = rf"(?:{NAME}|(faults)):\s+((?:`test_\w+`[,\s]*(?:and\s+)?)+)"


def read_tests() -> dict[str, set[str]]:
    """By path below tests/, without the ending."""
    return {
        str(path.relative_to(ROOT / "tests").with_suffix("")): set(
            re.findall(r"^ *def (test_\w+)", path.read_text("utf-8"), re.M)
        )
        for path in ROOT.glob("tests/**/test_*.py")
    }


def wrong_names(page: str) -> list[str]:
    """Test files and tests that a page names, and that are not there, or not in that file."""
    files = read_tests()
    every = set().union(*files.values())

    def of(file: str) -> list[set[str]]:
        return [tests for path, tests in files.items() if f"/tests/{path}".endswith(f"/{file}")]

    whole = [tests for path, tests in files.items() if path.startswith("whole/")]

    wrong = [name for name in re.findall(NAME, page) if name not in every and not of(name)]
    for file, faults, tests in re.findall(OF_A_FILE, page):
        held = whole if faults else of(file)
        for name in re.findall(r"`(test_\w+)`", tests):
            if not any(name in own for own in held):
                wrong.append(f"{file or faults}: {name}")
    return wrong


def test_every_test_that_it_names_is_there():
    assert len(re.findall(NAME, PAGE)) > 100
    assert wrong_names(PAGE) == []


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        ("(`test_gone`.)", ["test_gone"]),
        ("(`grammar/test_queue`; `wire/test_queue`.)", ["wire/test_queue"]),
        ("`tests/whole/test_faults.py`, `tests/test_faults.py`", ["tests/test_faults"]),
        (
            "(`test_lint`: `test_ruff_finds_nothing`,\n`test_no_such_thing`; more.)",
            ["test_no_such_thing", "test_lint: test_no_such_thing"],
        ),
        ("(faults: `test_ruff_finds_nothing`.)", ["faults: test_ruff_finds_nothing"]),
    ],
)
def test_a_test_that_is_not_there_is_found(words, wrong):
    assert wrong_names(words) == wrong


def test_the_table_of_faults_is_whole():
    table = PAGE.partition("<!-- fault table")[2].partition("<!-- end of fault table -->")[0]
    assert "SIGKILL of rank 0" in table and "not run" not in table
