"""Drafts where caches cannot be cut: windows, recurrent states, and mixtures of them. Each request
gets what it gets without drafts, and what is kept of it is what it was computed from."""

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

from server.engine import rewind
from server.engine.prefix_store import REUSE_CUT, leaves, reuse_kind
from server.protocol.events import Token
from tests.engine.test_drafts import KINDS, Asked, check_same
from tests.models.served import serve
from tests.support.desk import shapes_of, ticket

# Windows; with sinks; states beside full layers, alone, beside windows, and beside latents.
NAMES = ["gemma3_text", "gpt_oss", "qwen3_next", "mamba2", "recurrent_gemma", "kimi_linear"]
FEW = ("gemma3_text", "qwen3_next")


def prompts(*lengths: int) -> list[list[int]]:
    return [[3 + i * (n + 3) % 90 for i in range(length)] for n, length in enumerate(lengths)]


def asked_of(shard, lengths=(40, 9, 70), tokens=40) -> Asked:
    """Greedy ones, drawn ones, and one with log-probabilities."""
    kinds = (KINDS[0], KINDS[2], KINDS[6])
    return Asked(
        shard,
        *[
            lambda own=own, kind=kind: ticket(own, max_tokens=tokens, **kind)
            for own, kind in zip(prompts(*lengths), kinds, strict=True)
        ],
    )


def tokens_of(desk) -> list[Token]:
    return [event for events in desk.got for event in events if isinstance(event, Token)]


@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=() if one in FEW else pytest.mark.thorough) for one in NAMES],
)
@pytest.mark.parametrize("wrong", [0.0, 0.3, 1.0])
def test_answers_are_the_same_with_and_without_drafts(name, wrong):
    shard = serve(name)
    assert reuse_kind(shard.model, shard.last.ways) != REUSE_CUT
    asked = asked_of(shard)
    for seed, batch in enumerate((1, 4)):
        desk = asked.with_drafts(batch, seed=seed, wrong=wrong)
        asked.check(desk.got)
        right, not_right = (
            sum(getattr(t, what) for t in tokens_of(desk)) for what in ("drafted", "wrong")
        )
        if batch == 1:
            assert (right > 20) == (wrong < 1.0)
            assert (not_right > 20) == (wrong > 0.0)
        assert not desk.engine.busy and desk.line.held() == 0


@pytest.mark.parametrize("name", FEW)
def test_right_drafts_save_steps(name, monkeypatch):
    shard = serve(name)
    asked = Asked(shard, lambda: ticket(prompts(9)[0], max_tokens=60))
    calls = shapes_of(shard, monkeypatch)
    asked.check(asked.with_drafts(wrong=0.0).got)
    assert len(calls) < 40


def test_what_is_owed_has_an_end(monkeypatch):
    """Where drafts are wrong again and again, each step would be wider than the one before."""
    shard = serve("mamba2")
    owing = []
    begin = rewind.begin

    def noted(row, token, drafts):
        owing.append((row.owing, len(drafts)))
        return begin(row, token, drafts)

    monkeypatch.setattr(rewind, "begin", noted)
    monkeypatch.setattr(rewind, "OWED_MOST", 4)
    asked = Asked(shard, lambda: ticket(prompts(9)[0], max_tokens=120))
    desk = asked.with_drafts(1, wrong=1.0)
    asked.check(desk.got)
    assert max(owed for owed, _ in owing) > rewind.OWED_MOST
    assert all(owed <= rewind.OWED_MOST or not drafts for owed, drafts in owing)
    assert max(owed for owed, _ in owing) <= rewind.OWED_MOST + 7  # a step's own places


@pytest.mark.parametrize("name", FEW)
def test_what_is_kept_of_an_answer_is_what_it_was_computed_from(name):
    """Of one that ends among its drafts, and of one whose client leaves while some run."""
    shard = serve(name)
    asked = asked_of(shard)
    kept = 0
    for seed in range(6):

        def leave(now: int, desk, seed=seed) -> None:
            if now == 5 + seed:
                desk.line.cancel(desk.tickets[0])

        desk = asked.with_drafts(1, act=leave, seed=seed, wrong=0.3)
        for n in (1, 2):
            check_same(desk.got[n], asked.right[n])
        index, lengths = desk.scheduler._prefixes._entries, desk.engine.prefixes.lengths()
        for number, caches in desk.engine.prefixes._entries.items():
            if number in index:
                kept += 1
                check_caches(
                    shard, caches, [int(t) for t in index[number].tokens][: lengths[number]]
                )
    assert kept > 8


def check_caches(shard, caches, tokens: list[int]) -> None:
    """That the model goes on from them as from the text."""
    right = make_prompt_cache(shard.model)
    shard.model(mx.array([tokens]), cache=right)
    assert len(list(leaves(caches))) == len(list(leaves(right)))
    follows = mx.array([[7, 8, 9]])
    mine, its = (shard.model(follows, cache=one) for one in (caches, right))
    assert mx.allclose(mine, its, atol=1e-3)
