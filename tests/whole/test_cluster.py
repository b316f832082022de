"""Real ranks of the real server: what a user of the cluster relies on."""

import json
import os
import signal
import socket
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests.support.cluster import Cluster
from tests.support.faults import CONTEXT
from tests.support.tiny_models import tiny_pipeline

pytestmark = pytest.mark.ranks

QUESTIONS = [f"What is the capital of {place}? Answer in one sentence." for place in (
    "France", "Italy", "Spain", "Japan", "Egypt", "Norway", "Peru", "Kenya",
)]  # fmt: skip


@pytest.fixture(scope="module")
def pair(tiny_model, tmp_path_factory):
    """Two ranks, kept for the tests that leave them whole. phases: what /health said meanwhile."""
    one = Cluster(2, tiny_model, tmp_path_factory.mktemp("pair"), {})
    one.phases = []

    def ready() -> bool:
        status, body = one.get("/health")
        one.phases.append((status, body.get("status")))
        return status == 200

    try:
        one.wait_for(ready)
        yield one
    finally:
        one.end()


def client_of(cluster) -> openai.OpenAI:
    return openai.OpenAI(base_url=cluster.url + "/v1", api_key="none", max_retries=0)


def stream_text(client: openai.OpenAI, text: str, **fields) -> str:
    chunks = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": text}], stream=True, **fields
    )
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


@pytest.mark.parametrize("most", [2, pytest.param(4, marks=pytest.mark.thorough)])
def test_greedy_text_is_the_same_on_any_number_of_ranks(cluster, pair, most):
    """A small model: four ranks on two cores take turns at every collective."""
    others = [] if most == 2 else [cluster(most, pair.model_dir)]
    stories = []
    for one in (pair, cluster(1, pair.model_dir), *others):
        status, body = one.get("/health")
        assert (status, body["world_size"], len(body["ranks"])) == (200, one.ranks, one.ranks)
        stories.append(one.chat("Tell me a story about a dog.", max_tokens=16))
    assert len(set(stories)) == 1
    assert len(stories[0]) == 16


def test_eight_streams_at_once_get_what_each_gets_alone(pair):
    client = client_of(pair)
    options = {"temperature": 0, "max_tokens": 8}
    alone = [stream_text(client, question, **options) for question in QUESTIONS]
    assert len(set(alone)) > 1
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda q: stream_text(client, q, **options), QUESTIONS))
    assert together == alone


def test_a_seed_gives_the_same_text_alone_and_among_others(pair):
    client = client_of(pair)
    seeded = {"temperature": 0.9, "seed": 2**63 - 1, "max_tokens": 8}
    alone = stream_text(client, QUESTIONS[0], **seeded)
    assert alone == stream_text(client, QUESTIONS[0], **seeded)
    assert alone != stream_text(client, QUESTIONS[0], **seeded | {"seed": -5})
    others = [
        {"temperature": 1.3, "top_p": 0.8},
        {"temperature": 0},
        {"temperature": 0.7, "extra_body": {"top_k": 100_000, "min_p": 0.05}},
        {"temperature": 1, "presence_penalty": 1.5, "frequency_penalty": -0.5},
        {"temperature": 0.5, "extra_body": {"repetition_penalty": 1.2, "top_k": 1}},
    ]
    with ThreadPoolExecutor(6) as pool:
        noise = [
            pool.submit(stream_text, client, q, max_tokens=10, **o)
            for q, o in zip(QUESTIONS, others, strict=False)
        ]
        assert pool.submit(stream_text, client, QUESTIONS[0], **seeded).result() == alone
        for future in noise:
            future.result()


def test_bursts_of_leavers_leave_nothing_behind(pair):
    quiet = pair.chat(QUESTIONS[0], max_tokens=20)

    def leave(i: int) -> None:
        connection = pair.open_stream(
            max_tokens=200, ignore_eos=True, temperature=0.5, seed=i if i % 2 else None
        )
        if i % 3:
            connection.recv(1)
        connection.close()

    threads = [threading.Thread(target=leave, args=(i,)) for i in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pair.wait_idle()
    assert pair.chat(QUESTIONS[0], max_tokens=20) == quiet


def test_the_loading_server_says_so_and_then_serves(pair):
    assert (503, "loading") in pair.phases
    assert pair.phases[-1] == (200, "ok")
    assert pair.get("/v1/models")[1]["data"][0]["max_model_len"] == CONTEXT


@pytest.fixture(scope="module")
def narrow(tiny_model, tmp_path_factory):
    """Two ranks, one slot, one place in the line, small prefill chunks, a long drain."""
    settings = {"MAX_BATCH": 1, "QUEUE_MAX": 1, "PREFILL_STEP": 16, "DRAIN_TIMEOUT": 300}
    one = Cluster(2, tiny_model, tmp_path_factory.mktemp("narrow"), settings)
    one.wait_ready()
    yield one
    one.end()


LONG_ANSWER = {"max_tokens": 50_000, "ignore_eos": True, "temperature": 0}
SHORT = {"prompt": [5, 6, 7], "max_tokens": 6, "temperature": 0, "ignore_eos": True}


def test_a_full_line_answers_429_with_retry_after(narrow):
    first = narrow.open_stream(**LONG_ANSWER)
    narrow.wait_for(lambda: narrow.get("/queue")[1]["running"] == 1)
    second = narrow.open_stream(**LONG_ANSWER)
    narrow.wait_for(lambda: narrow.get("/queue")[1]["size"] == 1)
    with pytest.raises(openai.RateLimitError) as refused:
        client_of(narrow).completions.create(model="demo", prompt="x")
    assert int(refused.value.response.headers["retry-after"]) >= 1
    assert refused.value.code == "rate_limit_exceeded"
    first.close()
    second.close()
    narrow.wait_idle()


@pytest.mark.parametrize("phase", ["queue", "prefill", "decode", "seeded decode"])
def test_a_client_that_leaves_frees_its_slot(narrow, phase):
    right = narrow.post("/v1/completions", SHORT)[1]["choices"]
    held = []
    if phase == "queue":
        held.append(narrow.open_stream(**LONG_ANSWER))
        narrow.wait_for(lambda: narrow.get("/queue")[1]["running"] == 1)
        leaver = narrow.open_stream(**LONG_ANSWER)
        narrow.wait_for(lambda: narrow.get("/queue")[1]["size"] == 1)
        leaver.close()
        narrow.wait_for(lambda: narrow.get("/queue")[1]["size"] == 0)
        assert narrow.get("/queue")[1]["running"] == 1
    elif phase == "prefill":
        leaver = narrow.open_stream(prompt=[7] * 60_000, **LONG_ANSWER)
        narrow.wait_for(lambda: narrow.get("/queue")[1]["running"] == 1)
        leaver.close()
    else:
        sampled = {"seed": 3, "temperature": 0.5} if phase == "seeded decode" else {}
        leaver = narrow.open_stream(**LONG_ANSWER | sampled)
        while b"data:" not in leaver.recv(4096):
            pass
        leaver.close()
    for connection in held:
        connection.close()
    narrow.wait_idle()
    assert narrow.post("/v1/completions", SHORT)[1]["choices"] == right


def test_a_request_over_its_time_ends_with_504_and_leaves_the_ranks(cluster, tiny_model):
    one = cluster(2, tiny_model, REQ_TOTAL_TIMEOUT=5)
    with ThreadPoolExecutor(1) as pool:
        whole = pool.submit(one.post, "/v1/completions", {"prompt": "Once"} | LONG_ANSWER)
        with pytest.raises(openai.APIError, match="REQ_TOTAL_TIMEOUT"):
            for _ in client_of(one).completions.create(
                model="demo",
                prompt="Once",
                max_tokens=50_000,
                stream=True,
                extra_body={"ignore_eos": True},
            ):
                pass
        status, answer = whole.result()
    assert (status, answer["error"]["code"]) == (504, "request_timeout")
    one.wait_idle()
    assert one.post("/v1/completions", SHORT)[0] == 200


@pytest.mark.sweep(2)
@pytest.mark.parametrize("penalty", [0.5, 0])
def test_requests_that_outgrow_the_kv_memory_take_turns(cluster, tiny_model, penalty):
    """Two rows of 512 tokens do not fit, two of 256 do: one is paused when they grow over that.

    With a penalty rank 0 chooses for both; without one, the other rank draws for the younger while
    there are two."""
    # Two layers of keys and values, two of four heads a rank, 16 float32 each: 512 bytes a token.
    one = cluster(2, tiny_model, KV_BUDGET_GB=700 * 512 / 1e9)
    assert one.get("/health")[1]["kv_tokens"]["capacity"] == 700
    ask = {"max_tokens": 240, "temperature": 0.8, "ignore_eos": True, "presence_penalty": penalty}
    asks = [{"prompt": [100 + i] * (50 + i), "seed": i} | ask for i in range(2)]
    # First together: the answers' length is an estimate yet, and too short to keep them apart.
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda a: one.post("/v1/completions", a)[1], asks))
    assert "paused after" in one.log()
    alone = [one.post("/v1/completions", a)[1]["choices"] for a in asks]
    assert [answer["choices"] for answer in together] == alone
    assert all(answer["usage"]["completion_tokens"] == 240 for answer in together)
    assert one.get("/health")[1]["kv_tokens"]["used"] == 0
    status, body = one.post("/v1/completions", {"prompt": [5] * 600})
    assert (status, body["error"]["code"]) == (400, "context_length_exceeded")


def test_sigterm_finishes_what_runs_and_refuses_what_comes(narrow):
    """Last of those with these ranks."""
    one = narrow
    pids = one.pids()
    running = one.open_stream(max_tokens=500, ignore_eos=True, temperature=0)
    one.wait_for(lambda: one.get("/queue")[1]["running"] == 1)
    one.launcher.send_signal(signal.SIGTERM)
    one.wait_for(lambda: one.get("/health")[1].get("status") == "draining")
    request = urllib.request.Request(one.url + "/v1/completions", b'{"prompt":"x"}')
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=240)
    assert refused.value.code == 503 and int(refused.value.headers["Retry-After"]) >= 1
    received = b""
    while chunk := running.recv(65536):
        received += chunk
    assert b"[DONE]" in received
    assert one.launcher.wait(60) == 0
    assert_gone(one, pids)


def test_a_killed_worker_ends_the_run_with_a_reason(pair):
    """Last of those with these ranks."""
    one = pair
    pids = one.pids()
    stream = one.open_stream(**LONG_ANSWER)
    while b"data:" not in stream.recv(4096):
        pass
    os.kill(pids[1], signal.SIGKILL)
    received = b""
    while chunk := stream.recv(65536):
        received += chunk
    events = [line for line in received.split(b"\n") if line.startswith(b"data: {")]
    assert "error" in json.loads(events[-1][6:]), "a stream cut by a fault ends with its error"
    assert one.launcher.wait(60) != 0
    assert_gone(one, pids)


def test_a_pipeline_model_serves_on_two_ranks(cluster, tmp_path):
    model = tiny_pipeline(tmp_path / "tiny")
    ask = {"prompt": [5, 6, 7, 8], "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    texts = []
    for ranks in (1, 2):
        one = cluster(ranks, model, PARALLEL="pipeline")
        status, body = one.post("/v1/completions", ask)
        assert status == 200, body
        assert body["usage"]["completion_tokens"] == 12
        texts.append(body["choices"][0]["text"])
    assert texts[0] == texts[1]


def assert_gone(cluster, pids: list[int]) -> None:
    """No rank left, no port held."""
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", cluster.port))
