"""Models that cannot be loaded, and faults while one is on its way, on two real ranks: who waits
for it is told, and the others go on."""

import json
import os
import signal
import threading
import time
import urllib.request

import pytest

from tests.support.cluster import Cluster
from tests.support.fault_checks import assert_served_again, assert_told, start
from tests.support.faults import Client, wait_for
from tests.support.paths import FAULT_SITE
from tests.support.tiny_models import tiny_llama
from tests.whole.test_several_models import CONTEXT, ask, states

pytestmark = pytest.mark.ranks

# Of these each test has its own, none of which is loaded when it begins.
NAMES = ("asked", "late", "held", "memory", "other", "twin", "list", "kind", "cut", "good")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Two ranks with a model and those of NAMES, which all fit."""
    place = tmp_path_factory.mktemp("models")
    tiny_llama(place / "a", context=CONTEXT)
    named = [
        f"{name}={tiny_llama(place / name, context=CONTEXT, seed=seed)}"
        for seed, name in enumerate(NAMES, 1)
    ]
    (place / "faults").mkdir()
    env = {
        "MODEL_ID": "a", "MODELS": ",".join(named), "MAX_BATCH": 4,
        "PYTHONPATH": FAULT_SITE, "FAULT_DIR": place / "faults",
    }  # fmt: skip
    cluster = Cluster(2, place / "a", place / "run", env)
    try:
        cluster.wait_ready()
        yield cluster
    finally:
        cluster.end()


@pytest.fixture
def place(one):
    """Where the folders of the models are, and that of the faults."""
    return one.model_dir.parent


def refusal(one: Cluster, model: str) -> str:
    status, answer = one.post("/v1/completions", {"model": model, "prompt": "x"})
    assert (status, answer["error"]["code"]) == (503, "not_loaded"), answer
    assert states(one)[model] == "unloaded"
    return answer["error"]["message"]


def test_whatever_keeps_a_model_from_being_loaded_the_others_go_on(one, place):
    faults = place / "faults"
    right = ask(one, "a", 60)
    asking, texts = threading.Event(), []

    def go_on_asking() -> None:
        while not asking.is_set():
            texts.append(ask(one, "a", 60))

    thread = threading.Thread(target=go_on_asking)
    thread.start()
    try:
        (faults / "memory-1").touch()
        assert "rank 1: RuntimeError: [malloc] Unable to allocate" in refusal(one, "memory")
        # Another size, which the files' headers show; and other numbers, which the canary does.
        tiny_llama(place / "elsewhere", context=CONTEXT, hidden=128)
        (faults / "elsewhere-1").write_text(f"{place / 'other'}={place / 'elsewhere'}")
        assert "rank 1" in (said := refusal(one, "other")) and "config.json of other" in said
        tiny_llama(place / "unlike", context=CONTEXT, seed=99)
        (faults / "elsewhere-1").write_text(f"{place / 'twin'}={place / 'unlike'}")
        assert "rank" in refusal(one, "twin")
        (faults / "elsewhere-1").unlink()
        (place / "list" / "config.json").write_text("[]")
        refusal(one, "list")
        config = place / "kind" / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "odd"}))
        assert "odd" in refusal(one, "kind")
        weights = place / "cut" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4000])
        assert "model.safetensors" in refusal(one, "cut") or "exceeding the size" in one.log()
        # What was there before is what is there now; and what is whole can be loaded.
        assert ask(one, "good") and states(one)["good"] == "loaded"
    finally:
        asking.set()
        thread.join()
    assert len(texts) > 1 and set(texts) == {right}
    assert one.get("/health")[0] == 200
    assert "start: pid" in one.log() and one.log().count("start: pid") == 2, "no rank is new"


def test_a_client_that_leaves_while_its_model_comes_leaves_nothing_behind(one, place):
    hold = place / "faults" / "piece-1"
    hold.touch()
    left = one.open_stream(model="late")
    one.wait_for(lambda: states(one)["late"] == "loading")
    left.close()
    stays = one.open_stream(model="late", max_tokens=2)
    heard = b""
    while b": waiting for late: loading" not in heard:  # and nobody takes it for dead
        heard += stays.recv(4096)
    assert b"200 OK" in heard and b"data:" not in heard
    hold.unlink()
    one.wait_for(lambda: states(one)["late"] == "loaded")
    while b"[DONE]" not in heard:
        heard += stays.recv(4096)
    stays.close()
    one.wait_idle()
    assert ask(one, "late") and one.get("/health")[0] == 200


ROUTES = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2},
    "/v1/completions": {"prompt": "x", "max_tokens": 2},
    "/v1/responses": {"input": "x", "max_output_tokens": 16},
    "/v1/messages": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "x"}]},
    "/v1/embeddings": {"input": "x"},
    "/tokenize": {"prompt": "x"},
    "/detokenize": {"tokens": [5]},
}


def test_every_route_serves_the_model_that_it_is_asked_for_and_names_those_there_are(one):
    for route, body in ROUTES.items():
        status, answer = one.post(route, body | {"model": "asked"})
        assert status == 200, (route, answer)
        assert answer.get("model", "asked") == "asked", route
        status, answer = one.post(route, body | {"model": "odd"})
        assert status == 404 and answer["error"]["message"].count("'a'") == 1, (route, answer)
        assert "'asked'" in answer["error"]["message"] and "'odd'" in answer["error"]["message"]
    request = urllib.request.Request(f"{one.url}/v1/models", headers={"anthropic-version": "x"})
    with urllib.request.urlopen(request, timeout=60) as got:
        listed = json.load(got)
    assert [card["type"] for card in listed["data"]] == ["model"] * (1 + len(NAMES))
    assert (listed["first_id"], listed["last_id"], listed["has_more"]) == ("a", NAMES[-1], False)
    assert "type" not in one.get("/v1/models")[1]["data"][0]


def test_a_server_that_is_told_to_end_in_mid_load_ends_in_good_order(one, place):
    """Last of those that share the ranks."""
    hold = place / "faults" / "piece-1"
    hold.touch()
    waiting = Client(one.port, {"model": "held", "prompt": "x", "max_tokens": 4})
    one.wait_for(lambda: states(one)["held"] == "loading")
    one.launcher.send_signal(signal.SIGTERM)
    waiting.join(60)
    assert waiting.outcome == "503" and waiting.error["code"] == "draining", waiting.error
    hold.unlink()
    assert one.launcher.wait(60) == 0, one.log()


def test_a_rank_that_is_killed_in_mid_load_is_told_to_who_waits_and_all_comes_again(
    server, tmp_path
):
    other = tiny_llama(tmp_path / "b", context=CONTEXT, seed=3)
    one = server(MODELS=f"b={other}")
    hold = one.fault_dir / "piece-1"
    start(one)
    hold.touch()
    body = {"prompt": "x", "max_tokens": 4, "temperature": 0, "ignore_eos": True}
    held = [
        Client(one.port, body | {"model": "b"}),
        Client(one.port, body | {"model": "b"}, stream=True),
        Client(one.port, body | {"prompt": [5, 6, 7], "max_tokens": 60_000}, stream=True),
    ]
    wait_for(lambda: _state(one, "b") == "loading" and held[2].text, "the load, and an answer")
    struck = time.monotonic()
    os.kill(one.rank(1), signal.SIGKILL)
    assert_told(held)
    hold.unlink()
    assert_served_again(one, struck, "rank 1 on 127.0.0.1 exited with code 137")
    again = Client(one.port, body | {"model": "b"})
    again.join(60)
    assert again.outcome == "answered", again.error
    assert _state(one, "b") == "loaded"


def _state(one, model: str) -> str:
    return {card["id"]: card["state"] for card in one.get("/cluster")[1]["models"]}[model]
