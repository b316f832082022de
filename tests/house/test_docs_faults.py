"""docs/operations.md's promises name tests that exist."""

import re

from tests.support.faults import (
    ROOT,
)


def test_operations_names_tests_that_exist_and_holds_the_table():
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    code = "\n".join(path.read_text("utf-8") for path in ROOT.glob("tests/**/*.py"))
    modules = {path.stem for path in ROOT.glob("tests/**/test_*.py")}
    named = set(re.findall(r"\btest_\w+", page))
    assert {name for name in named - modules if f"def {name}(" not in code} == set()
    table = page.partition("<!-- fault table")[2].partition("<!-- end of fault table -->")[0]
    assert "SIGKILL of rank 0" in table and "not run" not in table
