"""The same on two real ranks: rows that are computed apart meet in each layer's collectives, and in
a pipeline's sends, and nothing else gives these an order."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.models.architectures import write

pytestmark = pytest.mark.ranks

PROMPTS = [[40 + i % 200 for i in range(n)] for n in (400, 5, 31, 1)]  # on two shelves


def ask(one, prompt):
    body = {"prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    status, answer = one.post("/v1/completions", body)
    assert status == 200, answer
    return answer["choices"][0]["text"]


@pytest.mark.sweep(4)
@pytest.mark.parametrize(
    ("name", "parallel"),
    [
        ("minimax_m3_vl", "pipeline"),
        ("deepseek_v41", "tensor"),
        ("deepseek_v3", "tensor"),  # latents
        ("deepseek_v32", "tensor"),  # attention that is called for one shelf after another
        ("qwen3_next", "pipeline"),
        ("glm4", "pipeline"),  # a generic one
        ("gemma3", "auto"),  # a generic tensor split
    ],
)
def test_prompts_at_once_get_what_each_gets_alone(cluster, tmp_path, name, parallel):
    one = cluster(2, write(tmp_path / name, name), PARALLEL=parallel, PREFIX_CACHE_PERCENT=0)
    alone = [ask(one, prompt) for prompt in PROMPTS]
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        for _ in range(3):
            assert list(pool.map(lambda prompt: ask(one, prompt), PROMPTS)) == alone
    assert one.get("/health")[1]["restarts"] == 0
    apart = "a row at a time" if name in ("minimax_m3_vl", "deepseek_v41") else "together"
    assert one.log().count(f"rows are computed {apart}") == 2
    assert one.get("/cluster")[1]["batching"].startswith(apart)


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    ("name", "parallel", "bits"),
    [
        ("llama, heads of 64", "tensor", "8"),
        ("qwen3_next, heads of 64", "pipeline", "4"),
        ("gemma3_text, heads of 64", "pipeline", "8"),  # a generic one; on a rank only windows grow
    ],
)
def test_keys_and_values_in_fewer_bits_are_the_same_in_any_company(
    cluster, tmp_path, name, parallel, bits
):
    one = cluster(
        2, write(tmp_path / "model", name), PARALLEL=parallel, KV_BITS=bits, KV_BITS_FROM=35
    )
    state = one.get("/cluster")[1]
    assert state["kv_precision"] == f"{bits} bits from 35 tokens on"
    alone = [ask(one, prompt) for prompt in PROMPTS]
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        for _ in range(3):
            assert list(pool.map(lambda prompt: ask(one, prompt), PROMPTS)) == alone
    assert one.get("/cluster")[1]["prefix_cache"]["hit_tokens"] > 0
    assert one.get("/health")[1]["restarts"] == 0
