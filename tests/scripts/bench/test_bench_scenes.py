"""The scenes of the comparison, played to the whole front end with a made-up engine."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from scripts.lib.bench import draft_scenes, scenes
from scripts.lib.bench.contenders import Broken
from scripts.lib.bench.gauge import Asker, take_gauge
from scripts.lib.bench.swarm import Swarm
from tests.support.faults import wait_for
from tests.support.front_end import FrontEnd


@pytest.fixture(scope="module")
def front_end(demo_model_dir):
    one = FrontEnd(demo_model_dir, MAX_BATCH="8", QUEUE_MAX="56")
    with one.saying("word " * scenes.ENDLESS):  # nobody comes to its end
        yield one
    one.end()


@pytest.fixture(scope="module")
def player(front_end):
    """What a scene needs of a web server."""
    swarm, asker = Swarm(front_end.url), Asker("chat", None, ignore_eos=False)
    gauge = take_gauge(swarm, asker, 1)
    return SimpleNamespace(
        name="stub", swarm=swarm, asker=asker, gauge=gauge, pids=lambda: [os.getpid()]
    )


@pytest.fixture(autouse=True)
def _hurry(monkeypatch):
    monkeypatch.setattr(scenes, "SETTLE_S", 0.1)


def asked(front_end, count: int):
    return front_end.engine.seen[-count:]


def test_throughput_counts_the_tokens_that_were_asked_for(front_end, player):
    result = scenes.throughput(4, 2, 60, 10, "mixed")(player, "a")
    tickets = asked(front_end, 8)
    assert {ticket.max_tokens for ticket in tickets} == {10}
    assert len({ticket.common.sampling.temperature for ticket in tickets}) == 4
    assert result["tokens_per_s"] > 0 and 0 < result["client_cpu"] < 1.5


def test_answers_that_end_by_themselves_spoil_the_throughput(front_end, player):
    with front_end.saying("word"), pytest.raises(Broken, match="4 of 4 answers ended"):
        scenes.throughput(2, 2, 60, 10, "greedy")(player, "a")


def test_ctrl_c_ends_the_comparison_and_not_one_load_of_it(front_end, player):
    def interrupt() -> None:
        raise KeyboardInterrupt

    dropped = len(front_end.engine.dropped)
    player.swarm.call_at(time.perf_counter() + 0.3, interrupt)
    with pytest.raises(KeyboardInterrupt):
        scenes.throughput(2, 1, 60, 2000, "greedy")(player, "a")
    wait_for(lambda: len(front_end.engine.dropped) == dropped + 2, "end of the abandoned")


def test_newcomers_come_while_all_the_others_decode(front_end, player):
    before = len(front_end.engine.seen)
    dropped = len(front_end.engine.dropped)
    result = scenes.newcomers(3, 2, 50)(player, "b")
    tickets = front_end.engine.seen[before:]
    assert [t.max_tokens == 4 for t in tickets[:5]] == [False, False, False, True, True]
    assert 0 < result["ttft_p50"] <= result["ttft_p95"]
    wait_for(lambda: len(front_end.engine.dropped) == dropped + 3, "end of the decoders")


def test_a_long_prompt_meets_decoders_and_their_gaps_are_told(front_end, player):
    result = scenes.long_prompt(2, 600, quiet_s=0.2)(player, "c")
    (long,) = [t for t in asked(front_end, 4) if t.max_tokens == 2]
    assert len(long.prompt) == pytest.approx(600, abs=20)
    assert 0 < result["itl_p95"] <= result["itl_most"]
    assert result["itl_p95_before"] > 0 and result["ttft"] > 0


def test_short_chats_are_timed_while_a_long_one_decodes(front_end, player):
    result = scenes.beside_long(3, 600, 6)(player, "g")
    long, *short, _ = asked(front_end, 5)  # the last one asks whether it is idle again
    assert len(long.prompt) == pytest.approx(600, abs=20) and long.max_tokens > 1000
    assert [one.max_tokens for one in short] == [6] * 3
    assert result["tokens_per_s"] > 0


def test_a_second_turn_begins_with_all_of_the_first(front_end, player):
    result = scenes.second_turn(300, 6)(player, "d")
    first, second = asked(front_end, 2)
    shared = len(first.prompt)
    assert second.prompt[:shared] == first.prompt and len(second.prompt) > shared + 12
    assert result["first"] > 0 and result["second"] > 0 and result["cached"] == 0


def test_a_burst_below_the_limit_loses_nothing(player):
    result = scenes.burst(64, 1, 40, 4)(player, "e")
    assert result == {"lost": 0, "failed": 0, "of": 64}


def test_memory_is_told_by_tenths(player):
    result = scenes.memory(8, 40, 40, 2)(player, "f")
    tenths = [result[f"mb_{number}"] for number in range(1, 11)]
    assert min(tenths) > 10 and result["growth_mb"] == tenths[9] - tenths[4]


def test_idle_tells_the_busiest_rank_and_the_launcher():
    busy, lazy = "while True: pass", "import time; time.sleep(60)"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for code in (lazy, busy, lazy)]
    try:
        time.sleep(0.3)  # past their imports
        contender = SimpleNamespace(
            pids=lambda: [processes[0].pid, processes[1].pid], launcher=processes[2]
        )
        result = scenes.idle(0.5)(contender, "g")
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert result["rank"] > result["launcher"]


def test_failures_break_a_scene(player, monkeypatch):
    monkeypatch.setattr(scenes, "REQUEST_DEADLINE_S", 0.01)
    monkeypatch.setattr(scenes, "LONG_DEADLINE_S", 0.01)
    for scene in (scenes.throughput(2, 1, 40, 400, "greedy"), scenes.second_turn(40, 400)):
        with pytest.raises(Broken, match="timeout"):
            scene(player, "h")


# Drafts.


def test_prose_is_asked_for_at_temperature_1_with_the_same_seeds_on_both_sides(front_end, player):
    for _ in range(2):
        result = draft_scenes.prose(3, 9)(player, "a")
        assert result["tokens_per_step"] == 1 and result["tokens_per_s"] > 0
    first, second = ([t.common.sampling for t in asked(front_end, 6)[half]]
                     for half in (slice(3), slice(3, 6)))  # fmt: skip
    assert {s.temperature for s in first} == {1.0}
    assert {s.seed for s in first} == {s.seed for s in second} and len({s.seed for s in first}) == 3


def test_a_file_that_is_not_written_as_it_should_be_breaks_the_scene(front_end, player, tmp_path):
    player.place = SimpleNamespace(model=tmp_path)
    (tmp_path / draft_scenes.FILE).write_text('{"prompt": " a b\\n", "answer": " word word word"}')
    with front_end.saying(" word word"):
        assert draft_scenes.rewrite(8)(player, "a")["tokens_per_step"] == 1
    with front_end.saying(" other"), pytest.raises(Broken, match="wrote something else: ' other'"):
        draft_scenes.rewrite(8)(player, "a")


def test_json_that_lacks_a_key_breaks_the_scene(player, monkeypatch):
    """The made-up engine writes what the grammar allows."""
    assert draft_scenes.schema(2)(player, "a")["tokens_per_s"] > 0
    monkeypatch.setattr(draft_scenes, "KEYS", ("another",))
    with pytest.raises(Broken, match="wrote something else"):
        draft_scenes.schema(1)(player, "a")
