"""README and docs against the repository: every link leads somewhere, every script is named."""

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from server.protocol.settings import read_settings
from tests.scripts.settings.test_run_settings import Recorder
from tests.support.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN_SCRIPT = ROOT / "scripts" / "run_openai_cluster_server.sh"
# What the supervisor tells the ranks; no user sets it.
INTERNAL = {"SUPERVISOR_RESTARTS", "SUPERVISOR_LAST_FAILURE", "SUPERVISOR_STARTS_AGAIN"}


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)


@cache
def anchors(page: Path) -> set[str]:
    """What a link to a heading may say behind #, as GitHub makes it."""
    found: set[str] = set()
    for title in re.findall(r"^#+ +(.+?) *$", prose(page), re.M):
        title = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title)
        name = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        # A second heading of the same words gets a number.
        again = sum(name == other or re.fullmatch(rf"{name}-\d+", other) is not None
                    for other in found)  # fmt: skip
        found.add(f"{name}-{again}" if again else name)
    return found


def broken_links(page: Path) -> list[str]:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    return broken


def tree() -> list[str]:
    """Paths in the tree of docs/architecture.md."""
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    (block,) = re.findall(r"^## Repository layout\n\n```\n(.*?)^```$", text, re.M | re.S)
    paths, above = [], []
    for line in block.splitlines():
        entry = re.match(r"( *)(\S+)", line)
        depth = len(entry[1]) // 2
        if len(entry[1]) > 4:
            continue  # the words of the line before go on
        above = [*above[:depth], entry[2]]
        paths.append("".join(above))
    return paths


def committed() -> list[str]:
    done = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    return done.stdout.splitlines()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_between_our_pages_leads_somewhere(page):
    assert broken_links(page) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    (tmp_path / "other.md").write_text("# One\n\n## What `it` is\n\n```\n# no heading\n```\n")
    page = tmp_path / "page.md"
    page.write_text("[a](other.md#what-it-is) [b](other.md#no-heading) [c](gone.md) [d](#me)\n")
    assert broken_links(page) == ["other.md#no-heading", "gone.md", "#me"]


def test_the_tree_shows_what_there_is():
    listed = set(tree())
    assert [path for path in listed if not (ROOT / path).exists()] == []
    files = committed()
    expected = {path.split("/")[0] + ("/" if "/" in path else "") for path in files}
    expected |= {path for path in files if re.fullmatch(r"(scripts|docs|hostfiles)/[^/]+", path)}
    assert sorted(expected - listed) == []


def test_the_readme_is_read_in_a_minute():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 150
    steps = re.findall(r"^### (\d)\) ", text, re.M)
    assert steps == ["1", "2", "3", "4", "5"]
    assert "Nothing here was run on a Mac" in text


def test_the_index_asks_questions_and_each_leads_to_a_heading():
    text = (ROOT / "docs" / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", text, re.M)[2:]
    assert len(rows) > 20
    assert [question for question, answer in rows if not re.search(r"\]\([^)]*#", answer)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_script_that_a_page_names_is_there(page):
    named = set(re.findall(r"\bscripts/[\w/]+\.(?:sh|py)\b", page.read_text("utf-8")))
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_the_runbook_s_table_has_every_setting_with_its_default(tmp_path):
    """That it is the table itself, test_settings_table sees; here, that it tells the truth."""
    text = (ROOT / "docs" / "from-scratch.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `([A-Z_]+)`[^|]*\| ([^|]*) \|", text, re.M))
    help_text = subprocess.run([RUN_SCRIPT, "--help"], capture_output=True, text=True).stdout
    asked = Recorder({"MODEL_DIR": str(tmp_path)})
    settings = read_settings(asked)
    wanted = set(re.findall(r"^  ([A-Z][A-Z_]+)  ", help_text, re.M)) | asked.asked - INTERNAL
    assert sorted(wanted - rows.keys()) == []
    for name, shown in rows.items():
        default = getattr(settings, name.lower(), None)
        if isinstance(default, int | float):
            assert shown == f"{default:g}", name


def test_the_map_of_the_server_and_the_tree_have_every_room():
    rooms = {path.parent.name for path in (ROOT / "server").glob("*/__init__.py")}
    text = (ROOT / "server" / "__init__.py").read_text("utf-8")
    assert [room for room in sorted(rooms) if not re.search(rf"\b{room}\b", text)] == []
    assert sorted({f"server/{room}/" for room in rooms} - set(tree())) == []


def test_every_module_that_the_architecture_names_is_there():
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    walk = text.partition("## One request, room by room")[2].partition("\n## ")[0]
    modules = {path.stem for path in (ROOT / "server").rglob("*.py")}
    folders = {path.name for path in (ROOT / "server").rglob("*") if path.is_dir()}
    named = {name.strip("/").rpartition("/")[2] for name in re.findall(r"`([a-z_/]+)`", walk)}
    assert sorted(named - modules - folders - {"all_sum"}) == []  # MLX's, not ours


def test_every_file_that_our_code_names_is_there():
    """Comments went on naming modules that had moved or changed their names."""
    there = {Path(path).name for path in committed()} | {"utils.py"}  # mlx-lm's
    gone = {
        f"{path.relative_to(ROOT)}: {name}"
        for folder in ("server", "scripts")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".sh")
        for name in re.findall(r"\b[a-z_]\w*\.(?:py|sh)\b", path.read_text("utf-8"))
        if name not in there
    }
    assert sorted(gone) == []
