"""GET /metrics: text that Prometheus can read and promtool would pass, and counts that add up."""

import json
import time

import pytest
from prometheus_client.openmetrics import parser as openmetrics

from server.observe.recorder import Recorder
from server.protocol.errors import engine_failed
from server.protocol.events import Failed, Token
from server.protocol.requests import Common
from server.scheduler.queue import Ticket
from tests.support.front_end import FrontEnd
from tests.support.phase import in_phase
from tests.support.prom_lint import lint, parse, value
from tests.support.raw_http import RawClient, request

KEY = "Authorization: Bearer sesame"
ROUTE = "/v1/completions"
OUTCOMES = ("answered", "refused", "failed", "cut")


@pytest.fixture(scope="module")
def front_end(demo_model_dir):
    one = FrontEnd(demo_model_dir, API_KEY="sesame", MAX_BATCH="2", QUEUE_MAX="1")
    yield one
    one.end()


def scrape(front_end, *headers: str) -> str:
    answer = front_end.ask("GET", "/metrics", None, KEY, *headers)
    assert answer.status == 200
    return answer.body.decode()


def settled(front_end) -> str:
    """The metrics, once only the scrape itself is in progress."""
    for _ in range(500):
        text = scrape(front_end)
        if value(text, "mlx_cluster_requests_in_progress") == 1:
            return text
        time.sleep(0.01)
    raise AssertionError(text)


def ask(front_end, **fields):
    return front_end.ask("POST", ROUTE, {"prompt": "Paris is", "max_tokens": 6} | fields, KEY)


# What it is.


def test_the_text_is_what_prometheus_reads(front_end):
    ask(front_end)
    answer = front_end.ask("GET", "/metrics", None, KEY)
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert lint(answer.body.decode()) == []


def test_open_metrics_comes_to_those_who_ask_for_it(front_end):
    accept = "Accept: application/openmetrics-text; version=1.0.0"
    answer = front_end.ask("GET", "/metrics", None, KEY, accept)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    names = {f.name for f in openmetrics.text_string_to_metric_families(answer.body.decode())}
    assert names == set(parse(scrape(front_end)))


def test_it_needs_the_key_when_there_is_one(front_end):
    assert front_end.ask("GET", "/metrics").status == 401
    assert front_end.ask("GET", "/v1/metrics", None, KEY).status == 200


def test_it_answers_while_the_model_loads(front_end):
    with in_phase(front_end.status, "loading"):
        text = scrape(front_end)
    assert value(text, "mlx_cluster_server_state", state="loading") == 1
    assert value(text, "mlx_cluster_server_state", state="ok") == 0


def test_names_that_vllm_has_are_there(front_end):
    names = {sample.name for family in parse(scrape(front_end)).values() for sample in
             family.samples}  # fmt: skip
    assert names >= {
        f"mlx_cluster_{name}"
        for name in (
            "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc",
            "num_preemptions_total", "prefix_cache_queries_total", "prefix_cache_hits_total",
            "prompt_tokens_total", "prompt_tokens_cached_total", "generation_tokens_total",
            "request_success_total", "time_to_first_token_seconds_bucket",
            "inter_token_latency_seconds_bucket", "request_queue_time_seconds_bucket",
            "e2e_request_latency_seconds_bucket",
        )
    }  # fmt: skip


def test_hostile_paths_make_no_new_labels(front_end):
    for n in range(5):
        front_end.ask("GET", f"/hostile/{n}", None, KEY)
        front_end.ask("GET", f"/v1/models/hostile-{n}", None, KEY)
    text = settled(front_end)
    assert "hostile" not in text
    assert value(text, "mlx_cluster_requests_total", route="other", outcome="refused") >= 5
    assert value(text, "mlx_cluster_requests_total", route="/v1/models/{model}", code="404") >= 5


# What it counts.


def counts(text: str) -> dict[str, float]:
    """Requests of the route, and tokens."""
    found = {"requests": value(text, "mlx_cluster_requests_received_total", route=ROUTE)}
    for outcome in OUTCOMES:
        found[outcome] = value(text, "mlx_cluster_requests_total", route=ROUTE, outcome=outcome)
    for name in ("prompt", "generation"):
        found[name] = value(text, f"mlx_cluster_{name}_tokens_total")
    found["rejected"] = value(text, "mlx_cluster_requests_rejected_total")
    return found


def test_counters_add_up_after_a_mixed_load(front_end):
    """requests = answered + refused + failed + cut, and tokens are the sum of the usages."""
    before = counts(settled(front_end))
    usages = [
        ask(front_end, **fields).json["usage"] for fields in ({}, {"n": 2}, {"max_tokens": 1})
    ]
    streamed = ask(front_end, stream=True, stream_options={"include_usage": True})
    last_but_one = streamed.body.decode().split("\n\n")[-3]
    usages.append(json.loads(last_but_one.removeprefix("data: "))["usage"])
    assert ask(front_end, n=0).status == 400
    assert front_end.ask("POST", ROUTE, {"prompt": "x"}).status == 401
    engine = front_end.engine

    def fail_after_two(ticket):
        yield Token(5, None)
        yield Token(6, None)
        yield Failed(engine_failed("a fault"))

    speaking, engine.script = engine.script, fail_after_two
    assert ask(front_end).status == 500
    engine.script = speaking
    usages.append({"prompt_tokens": usages[0]["prompt_tokens"], "completion_tokens": 2})

    engine.go.clear()
    held = [RawClient(front_end.server.port) for _ in range(3)]
    for client in held:
        client.send(request("POST", ROUTE, {"prompt": "hold"}, KEY))
    while front_end.line.held() < 3:
        time.sleep(0.005)
    assert ask(front_end).status == 429
    for client in held:
        client.close()  # they got no token: no usage
    while front_end.line.held():
        time.sleep(0.005)
    engine.go.set()

    after = counts(settled(front_end))
    change = {name: after[name] - before[name] for name in after}
    assert change == {
        "requests": 11, "answered": 4, "refused": 3, "failed": 1, "cut": 3, "rejected": 1,
        "prompt": sum(u["prompt_tokens"] for u in usages),
        "generation": sum(u["completion_tokens"] for u in usages),
    }  # fmt: skip


def test_a_client_that_leaves_in_the_middle_leaves_its_tokens_counted(front_end):
    before = settled(front_end)

    def speak_on(ticket):
        for n in range(10**6):
            yield Token(5 + n % 7, None)

    speaking, front_end.engine.script = front_end.engine.script, speak_on
    with RawClient(front_end.server.port) as client:
        client.send(request("POST", ROUTE, {"prompt": "on", "stream": True}, KEY))
        client.read_head()
        for _ in range(3):
            client.read_chunk()
    front_end.engine.script = speaking
    after = settled(front_end)
    labels = {"route": ROUTE, "outcome": "cut", "code": "200"}
    assert value(after, "mlx_cluster_requests_total", **labels) >= 1
    name = "mlx_cluster_generation_tokens_total"
    assert value(after, name) - value(before, name) >= 3


def test_running_requests_count_before_they_end(front_end):
    before = settled(front_end)

    def three_and_wait(ticket):
        for n in range(3):
            yield Token(5 + n, None)
        while True:
            yield None

    speaking, front_end.engine.script = front_end.engine.script, three_and_wait
    name = "mlx_cluster_generation_tokens_total"
    with RawClient(front_end.server.port) as client:
        client.send(request("POST", ROUTE, {"prompt": "on", "max_tokens": 50}, KEY))
        while (gained := value(scrape(front_end), name) - value(before, name)) < 3:
            time.sleep(0.005)
    front_end.engine.script = speaking
    assert gained == 3
    assert value(settled(front_end), name) - value(before, name) == 3


def test_waits_are_those_of_the_ticket():
    record = Recorder()
    ticket = Ticket([1, 2, 3], 9, Common())
    start = ticket.accepted
    record.started(ticket, start + 0.5)
    for moment in (1.0, 1.03, 1.06, 3.0):
        record.token(ticket, start + moment)
    record.started(ticket, start + 9)  # again, after a pause: it waited once
    assert record.queue_wait.count == 1
    assert record.time_to_first_token.snapshot()[1] == pytest.approx(1.0)
    buckets = dict(record.inter_token.snapshot()[0])
    assert (buckets["0.025"], buckets["0.05"], buckets["2.5"]) == (0, 2, 3)


def test_turns_are_told_apart_by_what_they_did():
    record = Recorder()
    record.turn(3, 0, 0.0, 0.02)
    record.turn(1, 100, 0.4, 0.0)
    record.turn(0, 50, 0.3, 0.0)
    assert record.step_seconds.count == 1
    assert record.prefill_seconds.snapshot()[1] == pytest.approx(0.7)
    assert record.prefilled_tokens == 150
    assert record.batch_size.snapshot()[1] == 3
