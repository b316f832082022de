"""Which room may import which: no arrow that the table does not have, and no cycle in the table."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

from tests.support.paths import ROOT

SERVER = ROOT / "server"
# A room may import those that it names. observe and protocol may be imported by all.
ALLOWED = {
    "transport": {"observe"},
    "api": {"transport", "text", "grammar", "scheduler", "observe"},
    "text": {"grammar", "scheduler"},
    "grammar": set(),
    "scheduler": {"wire", "engine", "sampling", "observe"},
    "disk": set(),
    "wire": {"observe"},
    "engine": {"wire", "sampling", "disk"},
    "sampling": {"wire"},
    "startup": {"wire", "engine", "sampling", "disk", "observe"},
    "lifecycle": {"scheduler", "observe"},
    "observe": set(),
    "protocol": set(),
}


def imported(path: Path) -> set[str]:
    """The modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
            assert not node.level, f"{path}: a relative import hides where it leads"
    return names


def room_of(module: str) -> str | None:
    """The room of one of our modules; "" for what stands above the rooms."""
    parts = module.split(".")
    if parts[0] != "server":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in ALLOWED else ""


def arrows() -> dict[tuple[str, str], list[str]]:
    """(room, imported room) -> the files that do it."""
    found: dict[tuple[str, str], list[str]] = {}
    for path in sorted(SERVER.rglob("*.py")):
        room = path.relative_to(SERVER).parts[0] if path.parent != SERVER else None
        for module in imported(path) if room else ():
            other = room_of(module)
            if other is not None and other != room:
                found.setdefault((room, other), []).append(str(path.relative_to(ROOT)))
    return found


def test_every_folder_is_a_room_of_the_table():
    folders = {path.name for path in SERVER.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders == set(ALLOWED)


def test_no_room_imports_another_that_the_table_does_not_allow():
    new = {
        arrow: files
        for arrow, files in arrows().items()
        if arrow[1] not in ALLOWED[arrow[0]] | {"protocol"}
    }
    assert new == {}


def test_the_table_has_no_cycle_and_no_arrow_that_nobody_uses():
    TopologicalSorter(ALLOWED).prepare()
    used = {(room, other) for room, other in arrows() if other != "protocol"}
    assert used == {(room, other) for room, others in ALLOWED.items() for other in others}


def test_scripts_and_tests_import_nothing_relatively():
    for folder in ("scripts", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            imported(path)
