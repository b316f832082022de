"""Kept prefixes on two real ranks: a prompt whose beginning is given up while it is computed."""

import http.client
import json

import pytest

from tests.support.cluster import Cluster
from tests.support.tiny_models import tiny_llama

pytestmark = pytest.mark.ranks

LEAVERS = 5  # the supervisor would have given up after so many failures


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prefixes")
    model = tiny_llama(folder / "tiny", context=16_384)
    # Small chunks, so that a prompt takes long enough for all that happens meanwhile.
    one = Cluster(2, model, folder / "run", {"PREFILL_STEP": 16, "MAX_BATCH": 8})
    one.wait_ready()
    yield one
    one.end()


def open_stream(cluster: Cluster, **fields) -> http.client.HTTPResponse:
    link = http.client.HTTPConnection("127.0.0.1", cluster.port, timeout=120)
    body = {"stream": True, "temperature": 0, "ignore_eos": True} | fields
    link.request("POST", "/v1/completions", json.dumps(body))
    answer = link.getresponse()
    assert answer.status == 200
    return answer


def next_text(stream: http.client.HTTPResponse) -> str:
    """That of the next event that has one."""
    while line := stream.readline():
        assert b'"error"' not in line, line
        if line.startswith(b"data: {") and (text := json.loads(line[6:])["choices"][0]["text"]):
            return text
    raise AssertionError("the stream ended")


def complete(cluster: Cluster, prompt: list[int], **fields) -> tuple[str, int]:
    """The greedy answer of four tokens, and how many of the prompt were kept."""
    body = {"prompt": prompt, "max_tokens": 4, "temperature": 0, "ignore_eos": True} | fields
    status, answer = cluster.post("/v1/completions", body)
    assert status == 200, answer
    cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return answer["choices"][0]["text"], cached


def test_choices_whose_client_leaves_after_their_prefix_was_given_up_disturb_nobody(pair):
    """The next choice was submitted with the message of the first, which named a prefix that was
    gone: KeyError on every rank, and five of these ended the service for good."""
    pids = pair.pids()
    right = complete(pair, [72, 101, 108, 108, 111])[0]
    bystander = open_stream(pair, prompt=[66, 121], max_tokens=15_000)
    assert next_text(bystander)
    for turn in range(LEAVERS):
        beginning = [65 + (i * (turn + 3)) % 50 for i in range(200)]
        text, _ = complete(pair, beginning)
        leaver = pair.open_stream(
            prompt=[*beginning, *[70 + i % 40 for i in range(12_000)]], n=2, max_tokens=4
        )
        pair.wait_for(lambda: pair.get("/queue")[1]["running"] == 3)
        # It begins with all that is kept so far, which is given up when its answer is kept.
        assert complete(pair, [*beginning, *text.encode(), *range(70, 90)])[1] >= 200
        assert complete(pair, [40 + turn] * 20)[1] == 0  # in whose turns the ranks drop it
        assert pair.get("/queue")[1]["running"] == 3, "the prompt was done too soon"
        leaver.close()
        pair.wait_for(lambda: pair.get("/queue")[1]["running"] == 1)
        assert next_text(bystander)
        assert complete(pair, [72, 101, 108, 108, 111])[0] == right
    assert pair.pids() == pids
    bystander.close()
    pair.wait_idle()
    assert pair.get("/health")[1]["kv_tokens"]["used"] == 0
