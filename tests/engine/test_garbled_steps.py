"""The engine's loop over a link that spoils one message: what was handed out and kept by then."""

import mlx.core as mx
import pytest

from server.protocol.events import Token
from server.startup.loading import load_shard
from server.wire.link import Link
from server.wire.seal import Garbled
from tests.support.desk import Desk, ticket
from tests.support.ticket_events import all_events
from tests.support.tiny_models import tiny_llama

PROMPTS = [list(range(1, 40)), [8] * 90, [3, 4]]


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    folder = tiny_llama(tmp_path_factory.mktemp("model") / "tiny", context=4096)
    return load_shard(folder, "tensor", Link(mx.distributed.init()), None, lambda stage: None)


def tickets() -> list:
    return [ticket(prompt, max_tokens=12) for prompt in PROMPTS]


def put(place: int, value: int):
    """Has the sum say something else at that place."""

    def spoil(total: mx.array) -> mx.array:
        return mx.where(mx.arange(len(total)) == place % len(total), value, total).astype(mx.int32)

    return spoil


SPOILS = {
    "a token of another place": put(0, 77),
    "a token beyond the vocabulary": put(0, 2**30),
    "a negative token": put(0, -9),
    "nothing": lambda total: mx.zeros_like(total),
    "a header or a number": put(-1, 5),
}


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("at", [*range(8), 11, 14])
def test_what_clients_and_kept_prefixes_have_by_then_is_right(shard, at, spoil):
    """Every message in turn: meetings, bundles, first tokens, steps. A prompt's end, a step and
    a kept prefix all come after the proof."""
    right = Desk(shard).run(*tickets())
    desk, asked, count = Desk(shard, room=4096), tickets(), 0
    bare, step = desk.link.sum, desk.engine.step
    turns = []

    def spoilt(values: mx.array) -> mx.array:
        nonlocal count
        count += 1
        total = bare(values)
        return SPOILS[spoil](total) if count == at + 1 else total

    def noted(*deliver):
        turns.append(step(*deliver))
        return turns[-1]

    desk.link.sum, desk.engine.step = spoilt, noted
    with pytest.raises(Garbled, match="the link lost or garbled a message: "):
        desk.run(*asked)
    assert count >= at + 1
    for one, answer in zip(asked, right, strict=True):
        got = [event.id for _, event in all_events(one) if isinstance(event, Token)]
        assert got == answer[: len(got)]
    texts = [[*prompt, *answer] for prompt, answer in zip(PROMPTS, right, strict=True)]
    kept = [tokens for turn in turns for _, tokens in turn.kept]
    assert all(any(text[: len(tokens)] == tokens for text in texts) for tokens in kept)
