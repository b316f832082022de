"""A small model in the engine, beside what mlx-lm makes of each prompt alone."""

import random
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from server.engine.last_logits import LastLogits, put_heads
from server.engine.prefix_store import REUSE_CUT, reuse_kind
from server.protocol.events import Scored
from server.scheduler.queue import Ticket
from server.startup.batching import prove_ways
from server.startup.piece_pace import at_once
from server.wire.link import Link
from tests.models.architectures import build, quantize
from tests.support.desk import Desk, choices, ids_of, ticket
from tests.support.ticket_events import all_events

LENGTHS = (70, 5, 31, 1, 2, 18)  # tokens of prompts: alone and beside each other, in several chunks
TOKENS = 12
CLOSE = 1e-3  # of a logit: that much and no more may lie between two tokens that rounding swaps
SEEDED = {"temperature": 0.8, "seed": 7, "top_p": 0.9}


def serve(
    name: str, bits: int | None = None, kv_bits: int = 0, kv_bits_from: int = 0
) -> SimpleNamespace:
    """As a rank has it. bits: of its weights, quantized where their widths allow it; kv_bits and
    kv_bits_from: of keys and values."""
    model = build(name)
    quantize(model, bits)
    last, link = LastLogits(model, put_heads(model)), Link(mx.distributed.init())
    last.prove(link)
    vocab = model(mx.zeros((1, 1), dtype=mx.int32)).shape[-1]
    at_once(prove_ways(last, vocab, link, lambda stage: None, kv_bits, kv_bits_from))
    return SimpleNamespace(model=model, last=last, vocab=vocab)


def desk_of(shard: SimpleNamespace, **options) -> Desk:
    return Desk(shard, **{"max_batch": 8} | keeping(shard, 10**6) | options)


def keeping(shard: SimpleNamespace, room: int) -> dict[str, Any]:
    """A desk's options for prefixes, of so many tokens if the model bears any."""
    reuse = reuse_kind(shard.model, shard.last.ways)
    return {"room": room if reuse else 0, "cuttable": reuse == REUSE_CUT}


def prompt(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(3, 250), k=length)


def check_all(shard: SimpleNamespace) -> None:
    """Raises AssertionError where something is not as alone."""
    for check in (check_neighbours, check_choices, check_echo, check_reuse):
        check(shard)


def check_neighbours(shard: SimpleNamespace) -> None:
    """Prompts of unequal lengths at once and later, answers that end at different times."""
    desk = desk_of(shard)
    asked = [
        ticket(prompt=prompt(n, length), max_tokens=TOKENS - n) for n, length in enumerate(LENGTHS)
    ]
    seeded = ticket(prompt=prompt(9, 24), max_tokens=TOKENS, **SEEDED)
    late = {3: asked[3], 4: seeded, 6: asked[5]}
    first = [one for one in asked if one not in late.values()]

    def join(turn: int) -> None:
        if turn in late:
            desk.line.admit([late[turn]])

    answers = dict(zip((one.uid for one in first), desk.run(*first, act=join), strict=True))
    for one in late.values():
        answers[one.uid] = ids_of(event for _, event in all_events(one))
    for one in asked:
        check_greedy(shard, one, answers[one.uid])
    again = ticket(prompt=seeded.prompt, max_tokens=TOKENS, **SEEDED)
    assert [answers[seeded.uid]] == desk_of(shard).run(again), "seeded"


def check_choices(shard: SimpleNamespace) -> None:
    """Several choices of a prompt, beside another one."""
    three = choices(3, prompt=prompt(11, 40), max_tokens=6)
    other = ticket(prompt=prompt(12, 9), max_tokens=8)
    *answers, its = desk_of(shard).run(three, other)
    for answer in answers:
        check_greedy(shard, three, answer)
    check_greedy(shard, other, its)


def check_echo(shard: SimpleNamespace) -> None:
    """A prompt with log-probabilities, beside another one."""
    echoed, other = (
        ticket(prompt=prompt(n, length), max_tokens=6, common={"logprobs": 2}, score_prompt=n == 13)
        for n, length in ((13, 40), (14, 11))
    )
    scored, its = desk_of(shard).events(echoed, other)
    check_greedy(shard, echoed, ids_of(scored))
    check_greedy(shard, other, ids_of(its))
    if shard.last.ways.whole:
        return  # its prompts' logits are others in every cut, and here they are computed as cut
    logits = alone(shard.model, echoed.prompt, len(echoed.prompt))
    scores = [one for event in scored if isinstance(event, Scored) for one in event.scores]
    assert len(scores) == len(echoed.prompt) - 1
    for place, (one, row) in enumerate(zip(scores, logits, strict=False), 1):
        row = row.astype(mx.float32)
        right = (row[one.id] - mx.logsumexp(row)).item()
        assert abs(one.logprob - right) < 1e-2, f"log-probability at {place}"


def check_reuse(shard: SimpleNamespace) -> None:
    """A conversation's second turn, and others that begin alike, beside one another."""
    desk, system = desk_of(shard), prompt(15, 40)
    one = ticket(prompt=system + prompt(16, 9), max_tokens=6)
    (answer,) = desk.run(one)
    turn = ticket(prompt=one.prompt + answer + prompt(17, 5), max_tokens=6)
    others = [ticket(prompt=system + prompt(n, n), max_tokens=6) for n in (18, 3)]
    for ticket_, ids in zip([turn, *others], desk.run(turn, *others), strict=True):
        check_greedy(shard, ticket_, ids)
    if reuse_kind(shard.model, shard.last.ways):
        assert turn.cached >= len(one.prompt), "nothing is reused"


def check_greedy(shard: SimpleNamespace, one: Ticket, ids: list[int]) -> None:
    """Each token of an answer is the likeliest at its place, by the model alone."""
    assert isinstance(ids, list) and len(ids) == one.max_tokens, f"{ids}"
    rows = alone(shard.model, one.prompt + ids[:-1], len(ids))
    for place, (token, row) in enumerate(zip(ids, rows, strict=True)):
        behind = (mx.max(row) - row[token]).item()
        assert behind <= CLOSE, (
            f"token {place} after {len(one.prompt)}: {token} is {behind:.3g} behind "
            f"{mx.argmax(row).item()}"
        )


def alone(model: nn.Module, text: list[int], places: int) -> list[mx.array]:
    """The logits after each of a text's last tokens. Computed token by token from there on: some
    models see how a text is cut."""
    cache, start = make_prompt_cache(model), len(text) - places + 1
    rows = []
    for piece in [text[: start - 1], *([token] for token in text[start - 1 :])]:
        if piece:
            rows.append(model(mx.array([piece]), cache=cache)[0, -1])
            mx.eval(rows[-1], [layer.state for layer in cache])
    return rows[-places:]
