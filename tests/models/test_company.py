"""On two real ranks, too, a request gets the same text on shelves as in mlx-lm's caches, with others
that come, leave, are paused, have several choices and go on from each other, in any order."""

import pytest

from tests.models.split import on_ranks

pytestmark = pytest.mark.ranks

TENSOR = [
    "llama", "gemma3_text", "qwen3_next", "deepseek_v3", "deepseek_v32", "kimi_linear", "mixtral",
]  # fmt: skip
PIPELINE = ["gpt_oss", "glm4"]


def check(names, *options: str) -> list[dict]:
    found = list(on_ranks(["tests.models.company_rank", *options, *names], 2))
    assert [one["name"] for one in found] == [*names]
    for one in found:
        assert not one["differs"], one
        assert one["pauses"] and one["ways"].startswith("together")
    return found


@pytest.mark.parametrize("names, parallel", [(TENSOR, "tensor"), (PIPELINE, "pipeline")])
def test_shelves_give_the_text_that_one_rectangle_gives(names, parallel):
    check(names, "--parallel", parallel)


def test_shelves_of_fewer_bits_give_the_text_that_rows_apart_give():
    names = ["llama, heads of 64", "qwen3_next, heads of 64"]
    found = check(names, "--parallel", "tensor", "--kv-bits", "8", "--kv-bits-from", "70")
    assert {one["precision"] for one in found} == {"8 bits from 70 tokens on"}
