"""The demo model on two real ranks: text that means something."""

import openai
import pytest

from tests.support.cluster import Cluster

pytestmark = pytest.mark.ranks

CAPITAL = "What is the capital of France? Answer in one sentence."


@pytest.fixture(scope="module")
def demo(demo_model_dir, tmp_path_factory):
    one = Cluster(2, demo_model_dir, tmp_path_factory.mktemp("demo"), {})
    one.wait_ready()
    yield one
    one.end()


@pytest.fixture
def client(demo) -> openai.OpenAI:
    return openai.OpenAI(base_url=demo.url + "/v1", api_key="none", max_retries=0)


def test_the_demo_model_tells_the_capital_on_two_ranks(demo):
    assert demo.chat(CAPITAL, max_tokens=20) == "The capital of France is Paris."


def test_stop_strings_and_limits_end_an_answer(demo, client):
    ask = {"model": "demo", "messages": [{"role": "user", "content": CAPITAL}], "temperature": 0}
    cut = client.chat.completions.create(**ask, stop=["France is"])
    assert cut.choices[0].message.content == "The capital of "
    assert cut.choices[0].finish_reason == "stop"
    short = client.chat.completions.create(**ask, max_completion_tokens=3, max_tokens=50)
    assert short.choices[0].finish_reason == "length"
    assert short.usage.completion_tokens == 3
    endless = client.chat.completions.create(**ask, max_tokens=12, extra_body={"ignore_eos": True})
    assert endless.usage.completion_tokens == 12
    demo.wait_idle()


def test_completions_take_text_and_token_ids(client):
    by_text = client.completions.create(
        model="demo", prompt="One, two, three, four,", max_tokens=4, temperature=0
    )
    assert by_text.choices[0].text.startswith(" five, six")
    by_ids = client.completions.create(model="demo", prompt=[1, 2, 3], max_tokens=2, temperature=0)
    assert by_ids.usage.prompt_tokens == 3


def test_a_prompt_beyond_the_context_is_refused_before_any_work(demo):
    status, body = demo.post("/v1/completions", {"prompt": [5] * 8192})
    assert (status, body["error"]["code"]) == (400, "context_length_exceeded")
