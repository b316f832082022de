"""Kept prefixes on two real ranks: a prompt whose beginning is given up while it is computed, one
whose client leaves, and conversations with a model whose caches cannot be cut."""

import http.client
import json
import re
import urllib.request

import pytest

from tests.models.architectures import write
from tests.support.cluster import Cluster
from tests.support.talk import write_tokenizer
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


def computed(cluster: Cluster) -> float:
    """Tokens of prompts, since the start."""
    with urllib.request.urlopen(f"{cluster.url}/metrics", timeout=240) as answer:
        text = answer.read().decode()
    return float(re.search(r"^mlx_cluster_prefill_tokens_total\S* (\S+)$", text, re.M)[1])


def test_who_leaves_late_in_a_prompt_and_asks_again_computes_the_rest(pair):
    prompt = [33 + i * i % 90 for i in range(6000)]
    leaver = pair.open_stream(prompt=prompt, max_tokens=4)
    start = computed(pair)
    pair.wait_for(lambda: computed(pair) - start >= 4800)
    leaver.close()
    pair.wait_idle()
    assert complete(pair, prompt)[1] >= 4500
    # All ranks hold the same, or the next answer would differ.
    again = complete(pair, prompt)
    assert again == complete(pair, prompt) and again[1] == 5999


SYSTEM = "You are kind. " * 30


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory):
    """A model with states, a template that drops old thinking, and a system prompt that is warm."""
    folder = tmp_path_factory.mktemp("hybrid")
    model = write(folder / "model", "qwen3_5")
    write_tokenizer(model)
    (folder / "system.txt").write_text(SYSTEM)
    one = Cluster(2, model, folder / "run", {"PREFIX_WARM": folder / "system.txt"})
    one.wait_ready()
    yield one
    one.end()


def converse(cluster: Cluster, messages: list[dict]) -> tuple[int, int]:
    """How many tokens its prompt has, and how many of them were kept."""
    body = {"messages": messages, "max_tokens": 8, "temperature": 0}
    status, answer = cluster.post("/v1/chat/completions", body)
    assert status == 200, answer
    usage = answer["usage"]
    return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


def test_a_conversation_of_a_model_with_states_computes_only_what_is_new(hybrid):
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "hello"}]
    prompt, cached = converse(hybrid, messages)
    assert cached >= len(SYSTEM), "it was computed before the server was ready"
    for turn in range(3):
        messages += [
            {"role": "assistant", "content": "hi"},
            {"role": "user", "content": f"say {turn}"},
        ]
        before, (prompt, cached) = prompt, converse(hybrid, messages)
        assert before - len("<think>\n") <= cached < prompt
    assert converse(hybrid, messages) == (prompt, prompt - 1)
    edited = [*messages[:-1], {"role": "user", "content": "other"}]
    prompt, cached = converse(hybrid, edited)
    assert prompt - cached <= len("other<|im_end|>assistant<think>") + 10
    assert "warmed 1 prefixes" in hybrid.log()
