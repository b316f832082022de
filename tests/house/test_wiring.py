"""The parts are wired by their constructors: nobody sets what another object does afterwards."""

import ast

import pytest

from tests.support.paths import ROOT

SERVER = ROOT / "server"


def set_from_outside(tree: ast.AST) -> list[str]:
    """Assignments to attributes of anything but self."""
    found = []
    for node in ast.walk(tree):
        targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
        for target in (
            targets if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign) else ()
        ):
            for part in target.elts if isinstance(target, ast.Tuple) else (target,):
                if isinstance(part, ast.Attribute) and ast.unparse(part.value) != "self":
                    found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("name", ["main.py", "rank.py", "loop.py"])
def test_what_puts_a_rank_together_sets_nothing_afterwards(name):
    """The line learned how to estimate a wait, the one that drains how to stop the loop, and the
    routes the model, by attributes that were set when the rest was there."""
    assert set_from_outside(ast.parse((SERVER / name).read_text("utf-8"))) == []


@pytest.mark.parametrize("path", sorted(SERVER.rglob("*.py")), ids=lambda p: p.stem)
def test_no_callback_is_set_from_outside(path):
    """A method, or a function of no name, put into another object."""
    wired = [
        node
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Lambda)
        and any(
            isinstance(target, ast.Attribute) and ast.unparse(target.value) != "self"
            for target in node.targets
        )
    ]
    assert [ast.unparse(node) for node in wired] == []


@pytest.mark.parametrize(
    "text", ["line.wait = scheduler.wait", "app.routes.model = model", "a.b, c = 1, 2", "x.y += 1"]
)
def test_such_an_assignment_is_found(text):
    assert len(set_from_outside(ast.parse(text))) == 1


@pytest.mark.parametrize("text", ["self.wait = scheduler.wait", "wait = scheduler.wait", "a = 1"])
def test_any_other_is_not(text):
    assert set_from_outside(ast.parse(text)) == []
