"""Before it serves, the cluster proves itself: the link with numbers, the model with a prompt.

Runs on the main thread of every rank. First a sum of known integers, as long as the longest
message that serving will send: a link that garbles long messages is caught whatever the model
makes of them. Then a prompt longer than one prefill chunk, on which every rank looks how it would
have judged rank 0's tokens.
"""

import json
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx

from server.engine.engine import Engine
from server.engine.turn import Turn
from server.protocol.events import Token
from server.sampling.random_state import RandomState
from server.startup.handshake import Mismatch
from server.wire.link import Link
from server.wire.mailbox import Header
from server.wire.messages import Draw, Submit
from server.wire.seal import Garbled

UID = 0  # real tickets count from 1
TOKENS = 4
# How far below a rank's own best logit rank 0's choice may be. Different chips round differently,
# by tenths in half precision; a garbled message or a wrong shard is off by whole units.
TOLERANCE = 0.5
ROUND = 8191  # prime: a shifted or repeated part of a message does not add up


def check_link(link: Link, values: int) -> None:
    """Sums values integers over the ranks. Raises Garbled where the result is wrong."""
    pattern = mx.arange(values, dtype=mx.int32) % ROUND
    total = link.sum(pattern + link.rank)
    right = pattern * link.size + link.size * (link.size - 1) // 2
    wrong = mx.sum(total != right).item()
    reports = [int(data) for data in link.gather_bytes(str(wrong).encode())]
    bad = [f"rank {rank} got {n} of {values} wrong" for rank, n in enumerate(reports) if n]
    if bad:
        raise Garbled("check of the link", f"a sum of {4 * values} bytes: {', '.join(bad)}")


class EachJudges:
    """A chooser for the canary: rank 0 chooses, and every rank keeps its own logits."""

    def __init__(self, leads: bool) -> None:
        self._leads = leads
        self.logits: list[mx.array] = []  # [1, V] a step

    def row(self, uid: int, draw: Draw | None) -> RandomState:
        return RandomState.told(draw)

    def header(self) -> list[int]:
        return [0] * Header.SIZE

    def propose(self, logits: mx.array, rows: list, inputs: mx.array, mine: list[int]):
        self.logits.append(logits.astype(mx.float32))
        return mx.argmax(logits, axis=-1).astype(mx.int32) * self._leads, []

    def score(self, uid: int, logits: mx.array, tokens: list[int]) -> list[mx.array]:
        return [logits]


class Pace(Protocol):
    """scheduler.pacing.PrefillPace."""

    tokens: int

    def observe(self, computed: int, chunk_s: float, step_s: float) -> None: ...


@dataclass(frozen=True)
class Others:
    """Who waits for each turn of a canary. decoding: their rows, the same on every rank; pace: how
    large the chunks may be that they bear, of which rank 0's counts."""

    decoding: Callable[[], int]
    pace: Pace


def check_model(
    make_engine: Callable[[EachJudges], Engine],
    link: Link,
    prompt: list[int],
    progress: Callable[[str], None],
    observe: Callable[[Turn], None] = lambda turn: None,
    others: Others | None = None,
) -> Generator[None, None, list[int]]:
    """Generates from prompt on all ranks; returns the tokens. observe hears of every turn. Gives
    way after each turn. Raises Mismatch if a rank would have chosen clearly otherwise."""
    judge = EachJudges(leads=link.rank == 0)
    engine = make_engine(judge)
    engine.submit(Submit(UID, prompt, TOKENS, ignore_eos=True))
    tokens: list[int] = []
    while engine.busy:
        progress("canary")
        if others is not None:
            engine.beside = others.decoding()
            (chunk,) = link.share_ints([others.pace.tokens])
            engine.steer(Header(chunk=chunk))
        turn = engine.step()
        observe(turn)
        if others is not None:
            others.pace.observe(turn.computed, turn.chunk_s, turn.step_s)
        tokens += [event.id for _, event in turn.events if isinstance(event, Token)]
        yield
    gaps = [
        (mx.max(logits) - logits[0, token]).item()
        for logits, token in zip(judge.logits, tokens, strict=False)
    ]
    reports = [json.loads(data) for data in link.gather_bytes(json.dumps(gaps).encode())]
    for rank, theirs in enumerate(reports):
        # Written so that NaN fails too.
        if not all(gap <= TOLERANCE for gap in theirs):
            raise Mismatch(
                f"rank {rank} does not agree with rank 0 on the tokens {tokens} after a prompt of "
                f"{len(prompt)}: its own best logits are higher by {theirs} (at most {TOLERANCE})"
            )
    return tokens
