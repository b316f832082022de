"""The table of faults: what was not run this time stays in it as it was."""

from dataclasses import replace

import pytest

pytest.importorskip("mlx.core")

from scripts.dev.fault_cases import FAULTS, Result
from scripts.dev.fault_rows import BEGIN, END, put_into, render
from tests.support.faults import PHASES

KILL, STOP = FAULTS["kill-rank-1"].title, FAULTS["stop-rank-1"].title
FIRST, SECOND, *_ = PHASES


def result(fault: str, phase: str, seconds: float, date: str = "2026-01-02", **fields) -> Result:
    shown = {"end": "served again", "held": {}, "told_s": 0.0, "newcomers": {}, "left": 0,
             "last": "code 69"} | fields  # fmt: skip
    return Result(fault, phase, seconds=seconds, date=date, **shown)


def rows(page) -> dict[str, list[str]]:
    """The cells of the file's tables, by their first."""
    lines = [line for line in page.read_text("utf-8").splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {first: others for first, *others in cells}


@pytest.fixture
def page(tmp_path):
    """A page with a table of two faults in two phases, and two faults of a start."""
    file = tmp_path / "page.md"
    file.write_text(
        f"before\n{BEGIN}\n\n"
        + render(
            [
                *(result(fault, phase, 1.0) for fault in (KILL, STOP) for phase in PHASES),
                result("a start in vain", FIRST, 2.0),
                result("a second start", FIRST, 3.0, left=1),
            ]
        )
        + f"\n{END}\nafter\n",
        "utf-8",
    )
    return file


def test_only_the_cells_that_were_run_are_new(page):
    before = rows(page)
    put_into(page, render([result(KILL, SECOND, 9.0, "2026-03-04", held={"answered": 3})]))
    after = rows(page)
    place = list(PHASES).index(SECOND)
    assert after[KILL][place] == "3 × answered after 0.0 s; **9.0 s**"
    assert [cell for n, cell in enumerate(after[KILL]) if n != place] == [
        cell for n, cell in enumerate(before[KILL]) if n != place
    ]
    assert {name: row for name, row in after.items() if name != KILL} == {
        name: row for name, row in before.items() if name != KILL
    }


def test_a_row_of_a_start_is_replaced_and_the_others_stay(page):
    before = rows(page)
    put_into(page, render([result("a second start", FIRST, 8.0, "2026-03-04")]))
    after = rows(page)
    assert after.pop("a second start") == ["8.0 s", "served again", "`code 69`", "nothing"]
    before.pop("a second start")
    assert after == before


def test_a_fault_that_is_new_comes_at_its_place(page):
    new = FAULTS["kill-rank-0"].title
    put_into(page, render([result(new, FIRST, 5.0)]))
    order = [name for name in rows(page) if name in (new, KILL, STOP)]
    assert order == [new, KILL, STOP]
    assert rows(page)[new][1 : len(PHASES)] == ["not run"] * (len(PHASES) - 1)


def test_the_dates_span_what_is_in_the_table_and_the_page_around_it_stays(page):
    put_into(page, render([replace(result(KILL, FIRST, 9.0), date="2026-03-04")]))
    text = page.read_text("utf-8")
    assert "Measured 2026-01-02 to 2026-03-04 on " in text
    assert text.startswith(f"before\n{BEGIN}\n\n") and text.endswith(f"\n{END}\nafter\n")
    again = page.read_text("utf-8")
    put_into(page, render([replace(result(KILL, FIRST, 9.0), date="2026-03-04")]))
    assert page.read_text("utf-8") == again  # the same once more changes nothing


def test_the_first_table_needs_no_older_one(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n", "utf-8")
    put_into(page, render([result(KILL, FIRST, 1.0)]))
    assert rows(page)[KILL][0] == "**1.0 s**"


def test_a_page_without_a_place_is_refused_and_stays_as_it_is(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("no marks", "utf-8")
    with pytest.raises(SystemExit, match="lacks the lines"):
        put_into(page, render([result(KILL, FIRST, 1.0)]))
    assert page.read_text("utf-8") == "no marks"
