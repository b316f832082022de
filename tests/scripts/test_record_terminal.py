"""scripts/dev/record_terminal.py, and docs/terminal.svg as it made it."""

import shlex
import socket
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from scripts.dev.record_terminal import (
    PAUSE_MOST_S,
    PORT,
    WIDTH_CHARS,
    commands,
    draw,
    private,
    record,
)
from tests.support.paths import ROOT

TEXT = "{http://www.w3.org/2000/svg}text"


def rows(svg: str) -> list[tuple[str, str]]:
    """Class and text of each, from the top."""
    return [(row.get("class"), row.text or "") for row in ElementTree.fromstring(svg).iter(TEXT)]


def test_lines_are_recorded_in_order_without_the_place_of_the_checkout():
    lines = record("echo one; pwd; echo '<b>' >&2", 3.0)
    assert [text for _, text, _ in lines] == [
        "$ echo one; pwd; echo '<b>' >&2", "one", "~/mlx-cluster", "<b>",
    ]  # fmt: skip
    assert [typed for _, _, typed in lines] == [True, False, False, False]
    times = [at for at, _, _ in lines]
    assert times == sorted(times) and times[0] == 3.0
    assert times[-1] <= 3.0 + 3 * PAUSE_MOST_S


def test_a_command_that_fails_ends_the_recording():
    with pytest.raises(subprocess.CalledProcessError, match="status 3"):
        record("exit 3", 0.0)


def test_what_is_drawn_says_what_was_said_wrapped_and_escaped():
    told = draw([(0.0, "$ a", True), (0.5, "<&>  x", False), (1.0, "y" * (WIDTH_CHARS + 1), False)])
    assert rows(told) == [
        ("in", "$ a"),
        ("out", "<&>  x"),
        ("out", "y" * WIDTH_CHARS),
        ("out", "y"),
    ]


def test_the_picture_in_the_docs_is_a_recording_of_these_commands():
    told = rows((ROOT / "docs/terminal.svg").read_text("utf-8"))
    typed = "".join(text for kind, text in told if kind == "in")
    assert typed == "".join(f"$ {command}" for command in commands(PORT))
    said = "".join(text for kind, text in told if kind == "out")
    for words in ("ready after", "The capital of France is Paris.", "has stopped"):
        assert words in said
    for command in commands(PORT):  # they are still there
        program = shlex.split(command)[0]
        assert program == "curl" or (ROOT / program).is_file()


def test_what_tells_of_the_machine_is_found():
    told = [
        f"log: {Path.home()}/log",
        "in /srv/cluster",
        "~/mlx-cluster at http://127.0.0.1/v1/models",
    ]
    found = private([(0.0, text, False) for text in told])
    assert {str(Path.home()), "/srv"} <= set(found)
    assert not {"/127.0.0.1", "/mlx-cluster", "/v1"} & set(found)
    assert private([(0.0, f"on {socket.gethostname()}", False)]) == [socket.gethostname()]
    # Of the one in the docs it was asked where it was made; of paths it can be asked anywhere.
    picture = rows((ROOT / "docs/terminal.svg").read_text("utf-8"))
    assert [name for name in private([(0.0, t, False) for _, t in picture]) if "/" in name] == []
