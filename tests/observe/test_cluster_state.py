"""GET /cluster: what it says while loading, serving and failing, and that it follows its schema."""

import json
import time
from dataclasses import replace

import pytest
from jsonschema import Draft202012Validator

from server.api.openapi.document import describe
from server.observe.event_file import keep_events
from server.observe.event_log import EVENTS_KEPT
from server.observe.fleet import Fleet, Loaded, Machine, Member, PairSpeed, Ranks, Vitals
from server.observe.rotating_file import RotatingFile
from server.observe.series import KEEP_S
from server.observe.series_file import keep_points
from server.observe.status import Status
from server.observe.views import Load
from tests.support.front_end import MODEL, FrontEnd
from tests.support.phase import in_phase

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
SCHEMAS = describe(MODEL)["components"]["schemas"]


@pytest.fixture(scope="module")
def front_end(demo_model_dir):
    one = FrontEnd(
        demo_model_dir,
        API_KEY="sesame",
        QUEUE_MAX="3",
        PARALLEL="pipeline",
        REQ_TOTAL_TIMEOUT="3600",
    )
    one.key = ("Authorization: Bearer sesame",)
    yield one
    one.end()


def look(front_end) -> dict:
    answer = front_end.ask("GET", "/cluster", None, *front_end.key)
    assert answer.status == 200
    schema = {"$ref": "#/components/schemas/Cluster", "components": {"schemas": SCHEMAS}}
    Draft202012Validator(schema).validate(answer.json)
    return answer.json


def settled(front_end) -> dict:
    """The totals, once the server has noticed the end of every request."""
    for _ in range(500):
        totals = look(front_end)["totals"]
        outcomes = [totals[name] for name in ("answered", "refused", "failed", "cut")]
        if totals["requests"] == sum(outcomes):
            return totals
        time.sleep(0.01)
    raise AssertionError(totals)


def test_it_needs_the_key(front_end):
    assert front_end.ask("GET", "/cluster").status == 401
    assert front_end.ask("GET", "/v1/cluster", None, *front_end.key).status == 200


def test_it_shows_the_settings_and_that_the_server_serves(front_end):
    body = look(front_end)
    assert (body["status"], body["detail"], body["model"]) == ("ok", "serving", MODEL)
    assert body["parallel"] == "pipeline"
    assert body["limits"] == {
        "max_batch": 8, "queue_max": 3, "context": 2048, "req_timeout_s": 600,
        "req_total_timeout_s": 3600,
    }  # fmt: skip
    assert body["events"][0]["text"] == "started"
    assert body["now"] - body["uptime_s"] == pytest.approx(body["events"][0]["t"], abs=1)


def test_it_answers_while_loading_and_after_a_failure(front_end):
    status = front_end.status
    for phase in ("loading", "draining", "failed"):
        with in_phase(status, phase):
            assert look(front_end)["status"] == phase


def test_totals_add_up_and_tokens_are_those_of_the_usages(front_end):
    before = settled(front_end)
    usages = []
    for fields in ({}, {"max_tokens": 3}, {"n": 2}):
        answer = front_end.ask("POST", "/v1/chat/completions", CHAT | fields, *front_end.key)
        usages.append(answer.json["usage"])
    assert front_end.ask("POST", "/v1/chat/completions", CHAT).status == 401
    assert front_end.ask("POST", "/v1/chat/completions", {}, *front_end.key).status == 400
    front_end.ask("GET", "/v1/models", None, *front_end.key)  # asks for no answer by the model
    after = settled(front_end)
    change = {name: after[name] - before[name] for name in after}
    assert change == {
        "requests": 5, "answered": 3, "refused": 2, "failed": 0, "cut": 0,
        "prompt_tokens": sum(u["prompt_tokens"] for u in usages), "cached_tokens": 0,
        "generated_tokens": sum(u["completion_tokens"] for u in usages),
    }  # fmt: skip


def test_a_restart_is_told_with_its_reason_and_old_events_make_room():
    status = Status("demo", "run", 2, "rank 1 ended with code 75")
    assert "rank 1 ended with code 75" in status.events.events[0][1]
    for n in range(EVENTS_KEPT):
        status.note(f"event {n}")
    assert [text for _, text in status.events.events] == [f"event {n}" for n in range(EVENTS_KEPT)]


def test_the_series_counts_between_its_ticks(front_end):
    status = Status("demo", "run")
    began = time.monotonic()
    status.series.tick(began)
    status.record.prefilled_tokens += 50
    status.record.first_tokens.extend([0.1, 0.5, 0.2])
    status.publish(Load(running=2, waiting=1))
    status.series.tick(began + 5)
    status.series.tick(began + 10)
    _, point, quiet = status.series.points()
    assert point["prompt_tokens_per_s"] == 10
    assert (point["ttft_p50_s"], point["running"], point["queued"]) == (0.2, 2, 1)
    assert (quiet["prompt_tokens_per_s"], quiet["ttft_p50_s"]) == (0, None)
    for n in range(KEEP_S):
        status.series.tick(began + 15 + 5 * n)
    assert len(status.series.points()) * 5 == KEEP_S


# The ranks.


def fleet_of(count: int, **fields) -> Fleet:
    fleet = Fleet(**fields)
    machine = Machine("chip", "os", 2**36, None)
    fleet.join(tuple(Member(n, f"mac{n}", 100 + n, "/m", machine) for n in range(count)))
    return fleet


def test_the_speed_of_each_link_is_told_once_by_its_pair(front_end):
    before = front_end.status.fleet.ranks
    pairs = {
        0: (PairSpeed(1, 12.34e-6, 6.5e9), PairSpeed(2, 2e-5, 1e9)),
        1: (PairSpeed(2, 1, 1e9),),
    }
    fleet = Fleet()
    fleet.join(tuple(Member(n, "mac", 1, "/m", pairs=pairs.get(n, ())) for n in range(3)))
    front_end.status.fleet.ranks = fleet.ranks
    try:
        told = look(front_end)["link"]["pairs"]
    finally:
        front_end.status.fleet.ranks = before
    assert [one["ranks"] for one in told] == [[0, 1], [0, 2], [1, 2]]
    assert told[0] == {"ranks": [0, 1], "latency_us": 12.3, "bandwidth_gb_s": 6.5}


def aged(fleet: Fleet, seconds: float) -> Ranks:
    """As they would be seen so much later, with nothing heard meanwhile."""
    return replace(fleet.ranks, heard=fleet.ranks.heard - seconds)


def test_ranks_are_shown_as_soon_as_they_are_known(front_end):
    status = front_end.status
    before, fleet = status.fleet.ranks, fleet_of(2)
    fleet.load((Loaded(5, 10), Loaded(4, 10)))
    fleet.measure((Vitals(1, 2, 3), Vitals(4, 5, 6)))
    status.fleet.ranks = replace(fleet.ranks, heard=None)
    try:
        with in_phase(status, "loading"):
            first, second = look(front_end)["ranks"]
        assert [rank["state"] for rank in look(front_end)["ranks"]] == ["ok", "ok"]
    finally:
        status.fleet.ranks = before
    assert (first["host"], second["host"]) == ("mac0", "mac1")
    assert (first["state"], first["loaded_bytes"], first["total_bytes"]) == ("loading", 5, 10)
    assert (second["memory_used_bytes"], second["memory_peak_bytes"], second["rss_bytes"]) == (
        4, 5, 6,
    )  # fmt: skip
    assert first["heartbeat_age_s"] is None


def test_when_nothing_is_heard_the_other_ranks_are_silent():
    fleet = fleet_of(3, silent_after=10)
    fleet.hear()
    assert fleet.ranks.states(loading=False) == ["ok", "ok", "ok"]
    later = aged(fleet, 11)
    assert later.states(loading=False) == ["ok", "silent", "silent"]
    assert later.states(loading=True) == ["loading"] * 3
    assert later.describe(loading=False)[1]["heartbeat_age_s"] >= 11


def test_a_rank_alone_is_silent_when_its_own_loop_stands_still():
    fleet = fleet_of(1)
    fleet.hear()
    assert aged(fleet, 60).states(loading=False) == ["silent"]


# Events over restarts.


def kept(run_dir, run_id: str, *restart) -> tuple[Status, RotatingFile]:
    """A process of the run, with the file of its events."""
    events, file = keep_events(run_id, run_dir)
    return Status("demo", run_id, *restart, events=events), file


def test_events_of_the_run_outlive_a_restart(tmp_path):
    first, file = kept(tmp_path, "run-1")
    first.note('rank 1 said "no" – ✗')
    file.close()
    kept(tmp_path, "run-1", 1, "rank 1 ended")[1].close()
    third, file = kept(tmp_path, "run-1", 2, "rank 0 ended")
    file.close()
    texts = [text for _, text in third.events.events]
    assert texts[:2] == ["started", 'rank 1 said "no" – ✗']
    assert "rank 1 ended" in texts[2] and "rank 0 ended" in texts[3]
    assert len(texts) == 4
    other, file = kept(tmp_path, "run-2")
    file.close()
    assert [text for _, text in other.events.events] == ["started"]


def test_the_newest_events_are_kept_and_broken_lines_skipped(tmp_path):
    lines = [json.dumps({"run": "r", "t": n, "text": f"event {n}"}) for n in range(2000)]
    broken = ["{", "[]", '{"run": "r", "t": "soon", "text": ""}', '{"run": "r", "t": 1}', "\x00"]
    (tmp_path / "events.jsonl").write_text("\n".join([*lines, *broken]) + "\n")
    status, file = kept(tmp_path, "r", 1, "gone")
    file.close()
    texts = [text for _, text in status.events.events]
    assert len(texts) == EVENTS_KEPT
    assert texts[0] == f"event {2000 - EVENTS_KEPT + 1}"
    assert texts[-1].startswith("restarted")


def test_events_need_no_file_to_be_told(tmp_path):
    (tmp_path / "file").write_text("")
    status, file = kept(tmp_path / "file", "r")
    status.note("told")
    file.close()
    assert [text for _, text in status.events.events] == ["started", "told"]


def test_charts_outlive_the_process(tmp_path):
    """As the events do; what is torn, of another run or too old is no point."""
    kept, file = keep_points("run-1", tmp_path)
    series = Status("m", "run-1", points=kept).series
    series.tick(time.monotonic())
    file.close()
    (point,) = series.points()
    lines = [
        {"run": "run-1", **point, "t": point["t"] - 2 * KEEP_S},
        {"run": "run-2", **point},
        {"run": "run-1", **point, "running": "many"},
        {"run": "run-1", "t": point["t"]},
    ]
    with (tmp_path / "series.jsonl").open("a") as out:
        out.writelines(json.dumps(line) + "\n" for line in lines)
        out.write('{"run": "run-1", "t": 17')
    again, _ = keep_points("run-1", tmp_path)
    assert Status("m", "run-1", points=again).series.points() == [point]
    assert keep_points("run-3", tmp_path)[0].earlier == ()
