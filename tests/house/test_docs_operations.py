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
    assert len(names) > 10
    assert {name for name in names if f'"{name}"' not in code} == set()
