"""On two real ranks, too, a request gets the same text on shelves as in mlx-lm's caches, and with
drafts, with others that come, leave, are paused, have several choices and go on from each other, in
any order."""

import pytest

from tests.models.split import on_ranks

pytestmark = pytest.mark.ranks

# Windows, and states beside attention; a pipeline.
PLAYED = [(["gemma3_text", "qwen3_next"], "tensor", "1"), (["gpt_oss"], "pipeline", "1")]
MORE = [
    (["llama", "deepseek_v3", "deepseek_v32", "kimi_linear", "mixtral"], "tensor", "3"),
    (["glm4"], "pipeline", "3"),
]


def check(names, *options: str) -> list[dict]:
    command = ["tests.models.company_rank", *options, *names]
    found = list(on_ranks(command, 2))
    assert [one["name"] for one in found] == [*names]
    for one in found:
        assert not one["differs"], one
        assert one["drafted"] and one["pauses"] and one["ways"].startswith("together")
    return found


@pytest.mark.parametrize(
    "names, parallel, seed",
    [*PLAYED, *(pytest.param(*more, marks=pytest.mark.thorough) for more in MORE)],
)
def test_shelves_give_the_text_that_one_rectangle_gives(names, parallel, seed):
    check(names, "--parallel", parallel, "--seed", seed)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", ["llama, heads of 64", "qwen3_next, heads of 64"])
def test_shelves_of_fewer_bits_give_the_text_that_rows_apart_give(name):
    bits = "--kv-bits", "8", "--kv-bits-from", "70"
    found = check([name], "--parallel", "tensor", "--seed", "1", *bits)
    assert {one["precision"] for one in found} == {"8 bits from 70 tokens on"}
