"""scripts/lib/bench: the comparison's targets, order of play and page; and one row for real."""

import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import mlx.core as mx
import pytest
from mlx_lm.utils import load, load_tokenizer

from scripts.lib.bench import compare, copier, page
from scripts.lib.bench.contenders import Broken
from scripts.lib.bench.models import find_silent_token, make_endless, make_tiny
from scripts.lib.bench.processes import alive, cpu_seconds, parse_ps_time, resident_mb
from scripts.lib.bench.rows import (
    BARE,
    BEFORE,
    LINES,
    OURS,
    THEIRS,
    Check,
    Goal,
    Measure,
    make_checks,
    render,
)
from tests.support.cluster import ROOT, engine_environment

pytestmark = pytest.mark.ranks

CHECKS = {check.id: check for check in make_checks(quick=False)}


def sampled(**sides: list) -> dict:
    return sides


# Targets.


@pytest.mark.parametrize(
    ("goal", "samples", "figure", "met"),
    [
        (Goal("ratio", ">=", 3.0), sampled(ours=[{"x": 6.0}], theirs=[{"x": 2.0}]), 3.0, True),
        (Goal("ratio", ">=", 3.0), sampled(ours=[{"x": 5.9}], theirs=[{"x": 2.0}]), 2.95, False),
        (Goal("ratio", "<=", 0.4), sampled(ours=[{"x": 1.0}], theirs=[{"x": 2.0}]), 0.5, False),
        (Goal("ratio", ">=", 0.9, BARE), sampled(ours=[{"x": 9.0}], bare=[{"x": 10.0}]), 0.9, True),
        (Goal("ratio", ">=", 0.97, BEFORE), sampled(ours=[{"x": 9.0}], before=[{"x": 9.0}]), 1.0,
         True),
        (Goal("share", "<=", 0.15, "y"), sampled(ours=[{"x": 1.0, "y": 10.0}]), 0.1, True),
        (Goal("value", "<=", 0), sampled(ours=[{"x": 1.0}]), 1.0, False),
        # Medians, over the rounds that gave something.
        (Goal("ratio", ">=", 2.0),
         sampled(ours=[{"x": 1.0}, {"x": 4.0}, {"x": 9.0}], theirs=[None, {"x": 2.0}]), 2.0, True),
        (Goal("ratio", ">=", 2.0), sampled(ours=[{"x": 4.0}], theirs=[None]), None, None),
        (Goal("ratio", ">=", 2.0), sampled(ours=[None], theirs=[{"x": 1.0}]), None, None),
        (Goal("ratio", ">=", None), sampled(ours=[{"x": 4.0}], theirs=[{"x": 1.0}]), 4.0, None),
    ],
)  # fmt: skip
def test_goals_compare_medians_with_their_limit(goal, samples, figure, met):
    assert goal.figure("x", samples) == (None if figure is None else pytest.approx(figure))
    assert goal.met(goal.figure("x", samples)) is met


def test_every_check_has_a_place_in_the_table_and_every_line_its_checks():
    placed = [name for line in LINES for name in line.checks]
    assert sorted(placed) == sorted(CHECKS)
    assert [check.id for check in make_checks(quick=True)] == list(CHECKS)
    for check in CHECKS.values():
        assert OURS in check.sides
        for measure in check.measures:
            if measure.goal.kind == "ratio":
                assert measure.goal.against in check.sides


def test_a_line_states_the_limits_that_its_checks_judge_by():
    for line in LINES:
        limits = [m.goal.limit for name in line.checks for m in CHECKS[name].measures]
        if set(limits) == {None}:
            assert line.target == "none"
        for limit in filter(None, limits):
            shown = {f"{limit:g}", f"{limit:.1f}", f"{100 * limit:g}%"}
            assert any(text in line.target for text in shown), (line, limit)


def test_table_tells_measured_missed_broken_and_not_run():
    table = render(list(CHECKS.values()), {
        "tiny-1-greedy": sampled(ours=[{"tokens_per_s": 3600.0}], theirs=[{"tokens_per_s": 900.0}]),
        "tiny-2-greedy": sampled(ours=[{"tokens_per_s": 99.0}], theirs=[{"tokens_per_s": 90.0}]),
        "newcomer": sampled(ours=[{"ttft_p95": 0.5}], theirs=[None]),
        "second-turn": sampled(ours=[{"second": 0.1, "first": 2.0}],
                               theirs=[{"second": 0.2, "first": 3.0}]),
        "idle": sampled(ours=[{"rank": 0.021, "launcher": 0.001}],
                        theirs=[{"rank": 0.93, "launcher": 0.0}]),
        "even-demo-1-8": sampled(ours=[{"tokens_per_s": 50.0}], before=[{"tokens_per_s": 40.0}]),
        "demo-2-seeds": sampled(ours=[{"tokens_per_s": 30.0}], theirs=[{"tokens_per_s": 10.0}]),
    }).splitlines()  # fmt: skip
    assert len({len(line) for line in table}) == 1 and len(table) == len(LINES) + 2

    def row(words: str) -> list[str]:
        (line,) = [line for line in table if words in line]
        return [cell.strip() for cell in line.strip("|").split("|")][1:]

    assert row("tiny, 1 rank, 32 clients, greedy") == ["3600", "900", "4.00x", ">= 3.0x", "met"]
    assert row("tiny, 2 ranks, 32") == ["99.0 / -", "90.0 / -", "1.10x / -", ">= 2.5x / >= 2.0x",
                                        "MISSED / not run"]  # fmt: skip
    assert row("newcomer") == ["500 ms", "-", "-", "<= 0.4x", "no figure"]
    assert row("second turn")[:3] == ["100 ms", "200 ms / first turn 2000 ms", "0.50x / 0.05x"]
    assert row("idle CPU")[0] == "2.1% / 0.1%" and row("idle CPU")[4] == "met"
    assert row("a seed a request")[4] == "not run / for comparison"
    assert row("8 equal rows")[1:3] == ["before 40.0 / - / - / -", "1.25x / - / - / -"]
    assert row("6,000-token") == ["-", "-", "-", "<= 0.3x", "not run"]


def test_a_row_that_is_held_to_another_checkout_needs_one(capsys, tmp_path):
    checks = list(CHECKS.values())
    with pytest.raises(SystemExit) as left:
        compare.choose(checks, ["even-tiny-1-8"])
    assert left.value.code == 2 and "--before" in capsys.readouterr().err
    (chosen,) = compare.choose(checks, ["even-tiny-1-8"], tmp_path)
    assert chosen.sides == (OURS, BEFORE)
    assert not any(BEFORE in check.sides for check in compare.choose(checks, []))


# The order of play.


class Player:
    """A contender that takes notes. breaks: in these calls of its scene, counted from 1."""

    def __init__(self, side: str, diary: list[str]) -> None:
        self.name, self.diary = side, diary

    def resume(self) -> None:
        self.diary.append(f"{self.name} on")

    def pause(self) -> None:
        self.diary.append(f"{self.name} off")

    def end(self) -> None:
        self.diary.append(f"{self.name} end")


def play(tmp_path, monkeypatch, checks: list[Check], rounds: int, startable=(OURS, THEIRS)):
    """Plays the checks with Players; returns the run and its diary."""
    diary: list[str] = []
    arguments = SimpleNamespace(python="x", env=[], rounds=rounds, peer_flag=[])
    run = compare.Run(arguments, tmp_path)

    def start(side: str, place, settings: dict):
        diary.append(f"{side} start")
        return Player(side, diary) if side in startable else None

    monkeypatch.setattr(run, "start", start)
    run.play_group("tiny", 1, {}, checks)
    return run, diary


def check_of(scene, **fields) -> Check:
    goal = Goal("ratio", ">=", 1.0)
    return Check("a", "what", "tiny", 1, scene, (Measure("x", "ms", goal),), **fields)


def test_sides_are_played_in_turn_and_the_first_changes(tmp_path, monkeypatch, capsys):
    tags = []

    def scene(player: Player, tag: str) -> dict:
        tags.append(tag)
        player.diary.append(f"{player.name} plays")
        return {"x": float(len(tags))}

    run, diary = play(tmp_path, monkeypatch, [check_of(scene)], rounds=2)
    ours, theirs = (["ours on", "ours plays", "ours off"],
                    ["theirs on", "theirs plays", "theirs off"])  # fmt: skip
    assert diary == ["ours start", "theirs start", *ours, *theirs, *theirs, *ours,
                     "ours end", "theirs end"]  # fmt: skip
    assert run.results["a"] == {OURS: [{"x": 1.0}, {"x": 4.0}], THEIRS: [{"x": 2.0}, {"x": 3.0}]}
    assert tags[0] == tags[1] != tags[2] == tags[3], "a round's prompts are the same for both"
    assert "round 2, a, ours: x 4000 ms" in capsys.readouterr().err


def test_what_breaks_is_noted_and_started_again(tmp_path, monkeypatch):
    def scene(player: Player, tag: str) -> dict:
        if player.name == THEIRS and tag.endswith(" 1"):
            raise Broken("mlx_lm.server: {'timeout': 3}")
        return {"x": 1.0}

    run, diary = play(tmp_path, monkeypatch, [check_of(scene)], rounds=2)
    assert run.results["a"] == {OURS: [{"x": 1.0}] * 2, THEIRS: [None, {"x": 1.0}]}
    assert run.notes == ["a, round 1: mlx_lm.server: {'timeout': 3}"]
    assert diary.count("theirs start") == 2 and diary.count("theirs end") == 2


def test_what_does_not_start_leaves_the_others_their_turn(tmp_path, monkeypatch):
    run, _ = play(tmp_path, monkeypatch, [check_of(lambda player, tag: {"x": 2.0})], 2, [OURS])
    assert run.results["a"] == {OURS: [{"x": 2.0}] * 2, THEIRS: [None, None]}


def test_a_check_may_have_fewer_rounds_and_sides_than_others(tmp_path, monkeypatch):
    once = check_of(lambda player, tag: {"x": 1.0}, rounds=1, sides=(OURS,))
    run, _ = play(tmp_path, monkeypatch, [once], rounds=3)
    assert run.results["a"] == {OURS: [{"x": 1.0}]}


def test_groups_share_model_ranks_and_settings():
    groups = compare.grouped([CHECKS[name] for name in ("tiny-1-greedy", "demo-2-mixed", "burst",
                                                        "memory")])  # fmt: skip
    assert [[check.id for check in group] for _, group in groups] == [
        ["tiny-1-greedy", "burst"], ["demo-2-mixed"], ["memory"],
    ]  # fmt: skip


# The page.


FACTS = {"date": "2026-01-02", "machine": "a machine", "mlx": "1", "mlx_lm": "2", "demo": "D",
         "rounds": 5, "quick": False}  # fmt: skip


def test_the_table_goes_between_its_marks_and_can_be_put_there_again(tmp_path):
    file = tmp_path / "page.md"
    file.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n")
    for table in ("| first |", "| second |"):
        page.write_table(file, table, [FACTS, FACTS | {"date": "2026-01-03"}], ["a note"])
    text = file.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    assert "| second |" in text and "first" not in text and "old" not in text
    assert "Measured 2026-01-02, 2026-01-03 on a machine; mlx 1" in text and "- a note\n" in text


def test_the_page_of_the_repository_has_the_marks():
    text = (ROOT / "docs" / "performance.md").read_text()
    assert text.count(page.BEGIN) == text.count(page.END) == 1


def test_a_page_without_marks_is_left_alone(tmp_path):
    file = tmp_path / "page.md"
    file.write_text("nothing here\n")
    with pytest.raises(SystemExit, match="lacks the lines"):
        page.write_table(file, "t", [FACTS], [])
    assert file.read_text() == "nothing here\n"


# Processes.


def test_cpu_and_memory_of_a_process_are_those_that_it_uses():
    me = os.getpid()
    before = cpu_seconds(me)
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    assert 0.15 <= cpu_seconds(me) - before < 5
    held = bytearray(os.urandom(1)) * 50_000_000
    assert resident_mb(me) > 50 and len(held)
    with pytest.raises(OSError):
        cpu_seconds(2**22 + 1)


@pytest.mark.parametrize(
    ("text", "seconds"), [("0:02.50", 2.5), ("10:00:00", 36_000), ("2-03:04:05", 183_845)]
)
def test_times_of_ps_are_read(text, seconds):
    assert parse_ps_time(text) == seconds


def test_a_process_is_known_by_its_command_line():
    with subprocess.Popen(["sleep", "30"]) as process:
        assert alive(process.pid, "sleep 30") and not alive(process.pid, "another")
        process.kill()
    assert not alive(process.pid, "sleep 30")


# Models, and one row for real.


def test_an_endless_model_differs_in_its_end_alone(demo_model_dir, tmp_path):
    """The tokenizer's own end-of-text was left, and mlx-lm ends there, too: answers were cut."""
    make_endless(demo_model_dir, tmp_path / "demo")
    silent, text = find_silent_token(demo_model_dir)
    files = ("config", "tokenizer_config")
    old, new = (
        [json.loads((folder / f"{name}.json").read_text()) for name in files]
        for folder in (demo_model_dir, tmp_path / "demo")
    )
    assert new == [old[0] | {"eos_token_id": silent}, old[1] | {"eos_token": text}]
    assert silent != old[0]["eos_token_id"] and text not in json.dumps(old)
    weights = tmp_path / "demo" / "model.safetensors"
    assert weights.resolve() == (demo_model_dir / "model.safetensors").resolve()
    make_tiny(demo_model_dir, tmp_path / "tiny")
    for model in ("demo", "tiny"):
        tokenizer = load_tokenizer(tmp_path / model, eos_token_ids=[silent])
        assert tokenizer.eos_token_ids == {silent}
        assert tokenizer.decode([silent]) == text


def test_a_copier_writes_its_file_again_with_one_line_changed(demo_model_dir, tmp_path):
    make_tiny(demo_model_dir, tmp_path / "tiny")
    copier.make_copier(tmp_path / "tiny", tmp_path / "copier")
    texts = json.loads((tmp_path / "copier" / copier.FILE).read_text())
    words, changed = copier.WORDS, copier.WORDS * copier.CHANGED
    old, new = texts["prompt"].split(), texts["answer"].split()
    assert len(old) == len(new) == words * copier.LINES
    others = [place for place, pair in enumerate(zip(old, new, strict=True)) if len({*pair}) > 1]
    assert others == list(range(changed, changed + words))
    model, tokenizer = load(str(tmp_path / "copier"))
    text = tokenizer.encode("\n" + texts["answer"])[:200]
    chosen = mx.argmax(model(mx.array([text]))[0], axis=-1).tolist()
    assert chosen[:-1] == text[1:]
    assert len(text) > changed + words


@pytest.mark.thorough
def test_one_row_is_measured_on_real_servers(demo_model_dir, tmp_path):
    """Both servers and the bare engine start, play, are stopped and go on, and leave nothing."""
    results = tmp_path / "results.json"
    command = [
        sys.executable, ROOT / "scripts/lib/module.py", "lib.bench.compare",
        "--demo", demo_model_dir, "--quick",
        "--rounds", 2, "--only", "tiny-1-alone", "--only", "bare-tiny", "--results", results,
    ]  # fmt: skip
    for name, value in engine_environment().items():
        command += ["--env", f"{name}={value}"]
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as done:
        stdout, stderr = done.communicate(timeout=240)
    last = json.loads(stdout.splitlines()[-1])
    assert last["notes"] == [], stderr
    for check, sides in (("tiny-1-alone", (OURS, THEIRS)), ("bare-tiny", (OURS, BARE))):
        for side in sides:
            speeds = [one["tokens_per_s"] for one in last["samples"][check][side]]
            assert len(speeds) == 2 and min(speeds) > 0
    # On a busy machine targets are missed; the exit code tells, the table as well.
    missed = [one for check in last["checks"].values() for one in check if not one["met"]]
    assert done.returncode == (1 if missed else 0)
    assert set(json.loads(results.read_text())) == {"tiny-1-alone", "bare-tiny"}
    left = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True).stdout
    assert not [line for line in left.splitlines() if f"bench-{done.pid}-" in line]
