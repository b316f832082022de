"""The views that a rank shows: immutable, one writer each, and together when looked at."""

import ast
import dataclasses
import functools
import threading

import pytest

from server.observe import views
from server.observe.phases import PHASES, Phases
from server.observe.status import Status
from server.observe.views import Capacity, Load, State
from tests.support.paths import ROOT

VIEWS = {
    name: kind
    for name, kind in vars(views).items()
    if isinstance(kind, type) and kind.__module__ == views.__name__
} | {"Ranks": views.Ranks}
# Where each is made. What a Status begins with, before its writer has spoken, is its own.
WRITERS = {
    "Start": "observe/status.py",
    "State": "observe/phases.py",
    "Trouble": "main.py",
    "Group": "main.py",
    "Ranks": "observe/fleet.py",
    "Capacity": "rank.py",
    "Formats": "rank.py",
    "LinkSpeed": "wire/link_speed.py",
    "DiskUse": "scheduler/disk_index.py",
    "DraftUse": "scheduler/speculation.py",
    "PrefixUse": "scheduler/load.py",
    "Load": "scheduler/load.py",
    "View": "observe/status.py",
}


@functools.cache
def makers() -> dict[str, set[str]]:
    """By the name of whatever is called with something in it, the files of server/ that do so."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "server").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            if called and (node.args or node.keywords):
                found.setdefault(node.func.id, set()).add(str(path.relative_to(ROOT / "server")))
    return found


def test_each_view_is_frozen_and_has_one_writer():
    assert set(VIEWS) == set(WRITERS)
    for name, kind in VIEWS.items():
        assert kind.__dataclass_params__.frozen, name
        assert makers()[name] == {WRITERS[name]}, name


def test_nobody_reaches_into_a_status_to_change_it():
    """Its 28 attributes were set from the main thread, HTTP threads and the one that drains."""
    held = {name for name in vars(Status("m", "run")) if not name.startswith("_")}
    views_of = {field.name for kind in VIEWS.values() for field in dataclasses.fields(kind)}
    for path in sorted((ROOT / "server").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
            for target in targets if isinstance(node, ast.Assign | ast.AugAssign) else ():
                for part in target.elts if isinstance(target, ast.Tuple) else (target,):
                    if isinstance(part, ast.Attribute):
                        owner = ast.unparse(part.value)
                        inside = owner.split(".")[-1].lstrip("_") in {"status", *held, "view"}
                        assert not (inside and part.attr in held | views_of), (path, owner)


def test_what_was_seen_does_not_change_and_the_next_look_sees_the_whole_of_the_new():
    status = Status("m", "run")
    before = status.look()
    status.publish(Load(running=2, waiting=3, kv_used=512))
    status.phases.stage("loading: 3 of 9")
    assert (before.load, before.state) == (Load(), State("loading", "starting"))
    after = status.look()
    assert (after.load.running, after.load.waiting, after.load.kv_used) == (2, 3, 512)
    assert after.state == State("loading", "loading: 3 of 9")
    with pytest.raises(dataclasses.FrozenInstanceError):
        after.load.running = 7


def test_who_sees_that_it_serves_sees_what_it_serves():
    """Phase and context were attributes of their own: "ok" could be seen with a context of 0."""
    for _ in range(200):
        status = Status("m", "run")

        def serve(status=status):
            status.publish(Capacity(4096, 10**6))
            status.phases.serve()

        writer = threading.Thread(target=serve)
        writer.start()
        while (view := status.look()).loading:
            pass
        assert view.capacity.context == 4096
        writer.join()


@pytest.mark.parametrize("first", PHASES)
@pytest.mark.parametrize("then", PHASES)
def test_a_phase_never_goes_back(first, then):
    """A stage of loading, told late, took the place of the reason for the end."""
    phases = Phases()
    move = {
        "loading": lambda: phases.stage("still loading"),
        "ok": phases.serve,
        "draining": phases.drain,
        "failed": lambda: phases.fail("rank 1 is gone"),
        "restarting": lambda: phases.fail("rank 1 is gone", restarting=True),
    }
    move[first]()
    before = phases.state
    move[then]()
    if PHASES.index(then) < PHASES.index(first):
        assert phases.state == before
    else:
        assert phases.state.phase == then


def test_whoever_drains_hears_in_which_phase_it_was():
    phases = Phases()
    phases.serve()
    assert [phases.drain(), phases.drain()] == ["ok", "draining"]
    phases.fail("gone")
    assert (phases.drain(), phases.state) == ("failed", State("failed", "gone"))
