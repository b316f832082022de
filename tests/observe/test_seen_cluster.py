"""What two real ranks show of themselves: memory, heartbeat, counts and the request log."""

import json
import os
import signal
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from jsonschema import Draft202012Validator

from server.api.openapi.document import describe
from tests.support.cluster import Cluster
from tests.support.prom_lint import lint, value
from tests.support.tiny_models import tiny_llama

pytestmark = pytest.mark.ranks

SCHEMAS = describe("demo")["components"]["schemas"]
ROUTE = "/v1/completions"
STALL_S = 10  # a rank counts as silent after half of it


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seen")
    settings = {
        "MAX_BATCH": 4, "QUEUE_MAX": 4, "PREFILL_STEP": 64, "STALL_TIMEOUT": STALL_S,
        "LOG_DIR": folder / "logs",
    }  # fmt: skip
    one = Cluster(2, tiny_llama(folder / "tiny", context=4096), folder / "run", settings)
    one.wait_ready()
    one.folder = folder
    yield one
    one.end()


def look(cluster: Cluster) -> dict:
    status, body = cluster.get("/cluster")
    assert status == 200
    schema = {"$ref": "#/components/schemas/Cluster", "components": {"schemas": SCHEMAS}}
    Draft202012Validator(schema).validate(body)
    return body


def scrape(cluster: Cluster) -> str:
    with urllib.request.urlopen(cluster.url + "/metrics") as answer:
        return answer.read().decode()


def settled(cluster: Cluster) -> str:
    """The metrics, once only the scrape itself is in progress."""
    name = "mlx_cluster_requests_in_progress"
    cluster.wait_for(lambda: value(scrape(cluster), name) == 1)
    return scrape(cluster)


def lines(cluster: Cluster) -> list[dict]:
    path = cluster.folder / "logs" / f"requests-{cluster.port}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_rank_shows_its_memory_and_how_it_was_loaded(pair):
    pair.wait_for(lambda: all(rank["memory_used_bytes"] for rank in look(pair)["ranks"]))
    first, second = look(pair)["ranks"]
    for rank in (first, second):
        assert rank["loaded_bytes"] == rank["total_bytes"] > 0
        assert rank["memory_used_bytes"] >= rank["total_bytes"]
        assert rank["rss_bytes"] > rank["memory_peak_bytes"] >= rank["memory_used_bytes"]
        assert rank["chip"] and rank["os"] and rank["memory_total_bytes"] > rank["rss_bytes"]
    assert first["pid"] != second["pid"]
    link = look(pair)["link"]
    assert link["latency_us"] > 0 and link["bandwidth_gb_s"] > 0
    health = pair.get("/health")[1]
    assert [rank["loaded_bytes"] for rank in health["ranks"]] == [
        first["total_bytes"], second["total_bytes"],
    ]  # fmt: skip
    assert "loaded: 100% (rank 0 " in pair.log()


def test_counts_add_up_after_a_mixed_load(pair):
    """requests = answered + refused + failed + cut; tokens are the sum of the usages."""
    prompt = list(range(65, 95))
    bodies = [
        {"prompt": prompt, "max_tokens": 5 + n, "seed": n, "ignore_eos": True, "n": 1 + n % 2}
        for n in range(8)
    ]
    bodies += [{"prompt": prompt, "temperature": "hot"}, {"prompt": prompt, "n": 99}]
    with ThreadPoolExecutor(3) as pool:  # the queue takes no more at once
        answers = list(pool.map(lambda body: pair.post(ROUTE, body), bodies))
    statuses = [status for status, _ in answers]
    with pair.open_stream(max_tokens=3000, ignore_eos=True) as stream:
        stream.recv(500)
    text = settled(pair)
    assert lint(text) == []

    def count(outcome: str) -> float:
        return value(text, "mlx_cluster_requests_total", route=ROUTE, outcome=outcome)

    assert (statuses.count(200), statuses.count(400)) == (8, 2)
    assert value(text, "mlx_cluster_requests_received_total", route=ROUTE) == 11
    assert [count(o) for o in ("answered", "refused", "failed", "cut")] == [8, 2, 0, 1]

    pair.wait_for(lambda: len(lines(pair)) == 11)
    log = lines(pair)
    told = [line for line in log if "generated_tokens" in line]
    answered = [line for line in told if line["outcome"] == "answered"]
    usages = [body["usage"] for status, body in answers if status == 200]
    for field, metric in (("prompt", "prompt"), ("completion", "generation")):
        ours = sum(usage[f"{field}_tokens"] for usage in usages)
        name = {"completion": "generated"}.get(field, field)
        assert ours == sum(line[f"{name}_tokens"] for line in answered)
        everything = sum(line[f"{name}_tokens"] for line in told)
        assert everything == value(text, f"mlx_cluster_{metric}_tokens_total")
        totals = look(pair)["totals"]
        assert everything == totals[f"{name}_tokens"]
    assert totals["requests"] == 11
    assert {line["finish"][0] for line in answered} == {"length"}
    assert [line["status"] for line in told if line["outcome"] == "cut"] == [200]
    assert all(0 <= line["queue_s"] <= line["ttft_s"] <= line["seconds"] for line in answered)


def test_steps_waits_and_meetings_are_measured(pair):
    pair.post(ROUTE, {"prompt": "measure", "max_tokens": 8, "ignore_eos": True})
    text = settled(pair)

    def observed(name: str) -> float:
        return value(text, f"mlx_cluster_{name}_count")

    generated = value(text, "mlx_cluster_generation_tokens_total")
    # Of a request that was cut, the ranks may have made a token or two that nobody took.
    assert observed("inter_token_latency_seconds") >= generated - observed(
        "time_to_first_token_seconds"
    )
    # A first token comes of a chunk of prompts.
    assert value(text, "mlx_cluster_step_batch_size_sum") >= generated - observed(
        "time_to_first_token_seconds"
    )
    for name in (
        "request_queue_time_seconds", "decode_step_seconds", "prefill_chunk_seconds",
        "meeting_seconds", "message_collective_seconds", "e2e_request_latency_seconds",
    ):  # fmt: skip
        assert observed(name) > 0, name
    assert value(text, "mlx_cluster_step_collectives_seconds") > 0
    assert value(text, "mlx_cluster_kv_cache_capacity_bytes") > 0
    assert value(text, "mlx_cluster_rank_memory_used_bytes", rank="1") > 0
    assert value(text, "mlx_cluster_model_info", world_size="2", backend="ring") == 1


def test_a_stopped_rank_is_silent_and_one_that_goes_on_is_not(pair):
    pid = pair.pids()[1]
    os.kill(pid, signal.SIGSTOP)
    try:
        pair.wait_for(lambda: look(pair)["ranks"][1]["state"] == "silent")
        body, during = look(pair), scrape(pair)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert body["ranks"][0]["state"] == "ok"
    assert body["ranks"][1]["heartbeat_age_s"] > STALL_S / 2
    assert "a rank does not answer" in body["detail"]
    name = "mlx_cluster_rank_last_heartbeat_timestamp_seconds"
    assert body["now"] - value(during, name, rank="1") > STALL_S / 2 - 1
    pair.wait_for(lambda: look(pair)["ranks"][1]["state"] == "ok")
    assert look(pair)["detail"] == "serving"
