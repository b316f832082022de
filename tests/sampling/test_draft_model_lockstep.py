"""A draft model on two ranks, of which only rank 0 has it: the texts are what they are without."""

import pytest

from tests.support.cluster import Cluster
from tests.support.paths import FAULT_SITE
from tests.support.tiny_models import tiny_llama

pytestmark = pytest.mark.ranks

PROMPTS = ["Once upon a time", "def add(a, b):\n    return a + b\n", "z" * 300]
FIELDS = [
    {"temperature": 0},
    {"temperature": 1.0, "seed": 7, "top_p": 0.95},
    {"temperature": 0.7, "seed": 8, "n": 2},
]


def ask(one: Cluster) -> list[list[str]]:
    """What each request gets, one after another and all of them at once."""
    texts = []
    for fields in FIELDS:
        body = {"prompt": PROMPTS, "max_tokens": 60, "ignore_eos": True} | fields
        status, answer = one.post("/v1/completions", body)
        assert status == 200, answer
        texts.append([choice["text"] for choice in answer["choices"]])
    return texts


def serve(folder, model, **settings) -> Cluster:
    one = Cluster(2, model, folder, {"QUEUE_MAX": 64, "PREFILL_STEP": 64} | settings)
    one.wait_ready()
    return one


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny", context=4096)


@pytest.fixture(scope="module")
def right(model, tmp_path_factory):
    """What they say without."""
    off = serve(tmp_path_factory.mktemp("off") / "run", model, SPECULATE="off")
    try:
        return ask(off)
    finally:
        off.end()


@pytest.mark.sweep(2)
@pytest.mark.parametrize("draft", ["itself", "another"])
def test_two_ranks_say_with_a_draft_model_what_they_say_without(draft, model, right, tmp_path):
    other = tiny_llama(tmp_path / "small", layers=1, hidden=32, context=4096, seed=9)
    (tmp_path / "eager-0").touch()
    # Rank 1 has no such folder, and needs none.
    (tmp_path / "env-1").write_text("DRAFT_MODEL_DIR=/nowhere\n")
    on = serve(
        tmp_path / "on",
        model,
        SPECULATE="auto",
        DRAFT_MODEL_DIR=model if draft == "itself" else other,
        PYTHONPATH=FAULT_SITE,
        FAULT_DIR=tmp_path,
    )
    try:
        pids = on.pids()
        assert ask(on) == right
        drafts = on.get("/cluster")[1]["drafts"]
        assert drafts["drafted"] > (100 if draft == "itself" else 10), drafts
        if draft == "itself":  # n-grams go first where they have been as good
            assert drafts["right"] > 0.8 * drafts["drafted"], drafts
        on.wait_idle()
        assert on.pids() == pids and "draft model: " in on.log()
    finally:
        on.end()
