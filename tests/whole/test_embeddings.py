"""Embeddings of real ranks, split by tensor and as a pipeline, while others decode."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest

from tests.support.cluster import Cluster
from tests.support.embedder import END, plain_hidden, tiny_embedder, unit

pytestmark = pytest.mark.ranks

TEXTS = [
    "a",
    "The weather in Rome.",
    "b" * 300,
    *[f"document {n} " * (n % 7) + "x" for n in range(60)],
]
WAYS = [(2, "tensor"), (2, "pipeline")]  # of one rank: engine/test_embedded


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_embedder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(
    scope="module",
    params=[WAYS[0], pytest.param(WAYS[1], marks=pytest.mark.thorough)],
    ids=[f"{ranks}-{way}" for ranks, way in WAYS],
)
def ranks(request, folder, tmp_path_factory):
    count, way = request.param
    settings = {"PARALLEL": way, "MAX_BATCH": 2, "QUEUE_MAX": 6, "PREFILL_STEP": 64}
    one = Cluster(count, folder, tmp_path_factory.mktemp("ranks"), settings)
    one.wait_ready()
    yield one
    one.end()


@pytest.fixture(scope="module")
def right(folder):
    """The tokenizer ends each text with a token of its own."""
    return [unit(plain_hidden(folder, [*text.encode(), END])) for text in TEXTS]


def vectors(one: Cluster, given, **how) -> np.ndarray:
    client = openai.OpenAI(base_url=one.url + "/v1", api_key="none", max_retries=0)
    answer = client.embeddings.create(model="demo", input=given, **how)
    return np.array([each.embedding for each in answer.data])


def test_they_are_right_alone_and_among_streams(ranks, right):
    card = ranks.get("/v1/models")[1]["data"][0]
    assert card["embeddings"] == {"dimensions": 64, "pooling": "last_token", "trained": True}
    np.testing.assert_allclose(vectors(ranks, TEXTS), right, atol=1e-4)
    ask = {"prompt": [5, 6, 7], "max_tokens": 40, "temperature": 0, "ignore_eos": True}
    alone = ranks.post("/v1/completions", ask)[1]["choices"]
    with ThreadPoolExecutor(4) as pool:
        streams = [pool.submit(ranks.post, "/v1/completions", ask) for _ in range(2)]
        both = list(pool.map(lambda _: vectors(ranks, TEXTS, encoding_format="float"), range(2)))
        assert [stream.result()[1]["choices"] for stream in streams] == [alone] * 2
    for found in both:
        np.testing.assert_allclose(found, right, atol=1e-4)
    cut = [unit(vector[:16]) for vector in right]
    np.testing.assert_allclose(vectors(ranks, TEXTS, dimensions=16), cut, atol=1e-4)
    ids = [[*text.encode(), END] for text in TEXTS]
    np.testing.assert_allclose(vectors(ranks, ids), right, atol=1e-4)


def test_leavers_leave_nothing_behind(ranks, right):
    body = {"input": ["c" * 400] * 500}
    for n in range(4):
        leaver = threading.Thread(target=lambda: ranks.post("/v1/embeddings", body, timeout=0.3))
        leaver.start()
        if n % 2:
            ranks.post("/v1/completions", {"prompt": "hello", "max_tokens": 4})
        leaver.join()
    ranks.wait_idle()
    np.testing.assert_allclose(vectors(ranks, TEXTS[:5]), right[:5], atol=1e-4)
    assert ranks.get("/health")[1]["kv_tokens"]["used"] == 0
