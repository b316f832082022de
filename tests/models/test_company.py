"""On two real ranks, too, a request gets the same text on shelves as in mlx-lm's caches, and with
drafts, with others that come, leave, are paused, have several choices and go on from each other, in
any order."""

import pytest

from tests.models.split import on_ranks
from tests.support import sweeps

pytestmark = pytest.mark.ranks

# Windows, and states beside attention; a pipeline.
PLAYED = [(["gemma3_text", "qwen3_next"], "tensor"), (["gpt_oss"], "pipeline")]
MORE = [
    (["llama", "deepseek_v3", "deepseek_v32", "kimi_linear", "mixtral"], "tensor"),
    (["glm4"], "pipeline"),
]


def check(names, *options: str) -> list[dict]:
    games = "2" if sweeps.whole else "1"
    command = ["tests.models.company_rank", "--games", games, *options, *names]
    found = list(on_ranks(command, 2))
    assert [one["name"] for one in found] == [*names]
    for one in found:
        assert not one["differs"], one
        assert one["drafted"] and one["pauses"] and one["ways"].startswith("together")
    return found


@pytest.mark.parametrize(
    "names, parallel",
    [*PLAYED, *(pytest.param(*more, marks=pytest.mark.thorough) for more in MORE)],
)
def test_shelves_give_the_text_that_one_rectangle_gives(names, parallel):
    check(names, "--parallel", parallel)


def test_shelves_of_fewer_bits_give_the_text_that_rows_apart_give():
    names = ["llama, heads of 64", "qwen3_next, heads of 64"]
    found = check(names, "--parallel", "tensor", "--kv-bits", "8", "--kv-bits-from", "70")
    assert {one["precision"] for one in found} == {"8 bits from 70 tokens on"}
