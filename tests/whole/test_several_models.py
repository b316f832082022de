"""Several models on the same two ranks: loaded when asked for, and unloaded for each other."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.cluster import Cluster
from tests.support.tiny_models import tiny_llama

pytestmark = pytest.mark.ranks

CONTEXT = 512
# Each rank has 0.3 MB of a, and 0.93 of b or of c: a and one of the others fit.
MODELS_GB = "0.0014"


def start(place: Path, **settings) -> Cluster:
    """Two ranks with three models, of which two fit."""
    folders = {
        "a": tiny_llama(place / "a", context=CONTEXT),
        "b": tiny_llama(place / "b", context=CONTEXT, hidden=128, seed=1),
        "c": tiny_llama(place / "c", context=CONTEXT, hidden=128, seed=2),
    }
    named = ",".join(f"{name}={folders[name]}" for name in "bc")
    env = {"MODEL_ID": "a", "MODELS": named, "MODELS_GB": MODELS_GB, "MAX_BATCH": 4}
    return Cluster(2, folders["a"], place / "run", env | settings)


@pytest.fixture
def several(tmp_path):
    """several(**settings) is what start() makes, ready."""
    made = []

    def begin(**settings) -> Cluster:
        made.append(start(tmp_path, **settings))
        made[-1].wait_ready()
        return made[-1]

    yield begin
    for one in made:
        one.end()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The same for several tests, which know nothing of what is loaded."""
    one = start(tmp_path_factory.mktemp("plain"))
    try:
        one.wait_ready()
        yield one
    finally:
        one.end()


def ask(one: Cluster, model: str, tokens: int = 8) -> str:
    body = {"model": model, "prompt": "Once upon", "max_tokens": tokens, "temperature": 0,
            "ignore_eos": True}  # fmt: skip
    status, answer = one.post("/v1/completions", body)
    assert status == 200, answer
    assert answer["model"] == model
    return answer["choices"][0]["text"]


def embed(one: Cluster, model: str) -> list[list[float]]:
    status, answer = one.post("/v1/embeddings", {"model": model, "input": ["a text", "b"]})
    assert status == 200, answer
    assert answer["model"] == model
    return [item["embedding"] for item in answer["data"]]


def states(one: Cluster) -> dict[str, str]:
    return {card["id"]: card["state"] for card in one.get("/cluster")[1]["models"]}


def memory(one: Cluster) -> int:
    """What MLX has on the rank that has most."""
    return max(rank["memory_used_bytes"] for rank in one.get("/cluster")[1]["ranks"])


def drive_out_b(one: Cluster) -> None:
    for name in "ac":
        ask(one, name)
    one.wait_for(lambda: states(one)["b"] == "unloaded")


def test_models_come_and_go_and_say_the_same_each_time(plain):
    """First in this file: it sees what is loaded at the start."""
    one = plain
    cards = one.get("/v1/models")[1]["data"]
    assert [(c["id"], c["loaded"]) for c in cards] == [("a", True), ("b", False), ("c", False)]
    right = {name: ask(one, name) for name in "abc"}
    assert len(set(right.values())) == 3
    # b was used last but one, so c came in the place of a, which was used before it.
    assert sorted(states(one).values()) == ["loaded", "loaded", "unloaded"]
    used = []
    for name in "abcabcbc":
        assert ask(one, name) == right[name]
        one.wait_idle()
        used.append(memory(one))
    # Nothing of those that have gone is left. What the ranks told last may be older than that.
    one.wait_for(lambda: memory(one) < max(used[:4]) + 2**20)
    with ThreadPoolExecutor(6) as pool:  # more than there are slots, of models that do not fit
        answers = list(pool.map(lambda name: (name, ask(one, name, 8)), "abcabc"))
    assert all(text == right[name] for name, text in answers)
    assert one.post("/v1/completions", {"model": "d", "prompt": "x"})[0] == 404
    events = " ".join(event["text"] for event in one.get("/cluster")[1]["events"])
    assert "makes room for" in events


def test_each_of_them_embeds_and_is_drafted_for_as_it_can(several):
    one = several(SPECULATE="auto", KV_BITS="8")
    sizes = {"a": 64, "b": 128, "c": 128}
    right, texts = {}, {}
    for name in "abc":  # both at once, as b and c have to be loaded for each other
        right[name] = embed(one, name)
        texts[name] = ask(one, name, 40)
    assert {name: len(vectors[0]) for name, vectors in right.items()} == sizes
    cards = {card["id"]: card for card in one.get("/v1/models")[1]["data"]}
    assert {name: card["embeddings"]["dimensions"] for name, card in cards.items()} == sizes
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(ask, one, name, 40) for name in "abcabc"]
        embedded = [pool.submit(embed, one, name) for name in "cab"]
        assert [one.result() for one in asked] == [texts[name] for name in "abcabc"]
        for name, found in zip("cab", embedded, strict=True):
            for mine, theirs in zip(found.result(), right[name], strict=True):
                assert mine == pytest.approx(theirs, abs=1e-4)
    shown = one.get("/cluster")[1]["models"]
    assert all(model["drafts"] == "of any row" for model in shown)
    assert all(model["kv_precision"].startswith("full: ") for model in shown)


def test_who_does_not_want_to_wait_is_told_and_the_model_comes(plain):
    one = plain
    drive_out_b(one)
    body = json.dumps({"model": "b", "prompt": "x", "max_tokens": 2}).encode()
    import urllib.error
    import urllib.request

    request = urllib.request.Request(f"{one.url}/v1/completions", body, {"Prefer": "wait=0"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=240)
    assert caught.value.code == 503 and int(caught.value.headers["Retry-After"]) > 0
    assert json.load(caught.value)["error"]["code"] == "model_not_loaded"
    one.wait_for(lambda: states(one)["b"] == "loaded")


def test_a_model_that_differs_on_a_rank_is_dropped_by_all_and_the_others_go_on(plain):
    """Last of those that share the ranks: b is broken afterwards."""
    one = plain
    drive_out_b(one)
    # Both ranks read one folder here: it changes between one's look and the other's no more than
    # it can be read at all.
    (one.model_dir.parent / "b" / "model.safetensors").write_bytes(b"broken")
    right = ask(one, "a")
    asking = threading.Thread(target=lambda: [ask(one, "a", 60) for _ in range(3)])
    asking.start()
    status, answer = one.post("/v1/completions", {"model": "b", "prompt": "x"})
    assert status == 503 and answer["error"]["code"] == "not_loaded", answer
    asking.join()
    assert ask(one, "a") == right
    card = next(c for c in one.get("/cluster")[1]["models"] if c["id"] == "b")
    assert card["state"] == "unloaded" and "b" in card["why"]


def test_a_pinned_model_stays_and_what_has_no_room_beside_it_is_refused(several):
    one = several(PINNED="a,b", IDLE_UNLOAD="0.1")
    ask(one, "b")
    status, answer = one.post("/v1/completions", {"model": "c", "prompt": "x"})
    assert status == 503 and "MODELS_GB" in answer["error"]["message"], answer
    assert states(one) == {"a": "loaded", "b": "loaded", "c": "unloaded"}


def test_a_model_that_nobody_uses_goes_and_comes_again(several):
    one = several(IDLE_UNLOAD="0.5")
    right = ask(one, "a")
    one.wait_for(lambda: states(one)["a"] == "unloaded")
    assert ask(one, "a") == right


@pytest.mark.thorough
def test_the_demo_and_two_tiny_ones_in_turns_with_clients_that_leave(
    several, tmp_path, demo_model_dir
):
    """In fewer bits where the model bears them. Beside the demo one of the others fits, or two."""
    one = several(
        MODELS=f"b={tmp_path / 'b'},c={tmp_path / 'c'},demo={demo_model_dir}",
        MODELS_GB="0.345", KV_BITS="8", KV_BITS_FROM="64",
    )  # fmt: skip
    right = {name: ask(one, name, 12) for name in ("a", "b", "demo", "c")}
    precision = {card["id"]: card["kv_precision"] for card in one.get("/cluster")[1]["models"]}
    assert precision["demo"].startswith("8 bits") and precision["b"].startswith("full: ")
    turns, leavers = 3, ("demo", "b", "demo", "a")  # each turn loads the demo model anew
    with ThreadPoolExecutor(8) as pool:
        order = ("a", "demo", "b", "c") * turns
        asked = [(name, pool.submit(ask, one, name, 12)) for name in order]
        for name in leavers:
            leaver = one.open_stream(model=name, max_tokens=200)
            leaver.recv(1)
            leaver.close()
        assert all(answer.result() == right[name] for name, answer in asked)
    one.wait_idle()
    kv = one.get("/cluster")[1]["kv_tokens"]
    assert kv["used"] == 0
