#!/usr/bin/env python3
"""Our engine's own loop without HTTP, line, scheduler or text, as a measure for the server.

usage: bare_engine.py --run-dir DIR --run-id ID

A rank program, with the server's settings (MODEL_DIR, MAX_BATCH, PREFILL_STEP, ...). It waits for
orders: a file DIR/order.json {"number", "clients", "requests", "prompt", "output"} with a number
that it has not seen makes it run the same closed loop as that many clients would, greedily, and
write DIR/result-NUMBER.json {"tokens", "seconds"}. Prefill is paced as in the server. While it
waits it naps, all ranks together.
"""

import argparse
import json
import os
import random
import time
from pathlib import Path

from server.lifecycle.pidfile import write_pidfile
from server.observe.status import Status
from server.protocol.events import Token
from server.protocol.requests import Common, Sampling
from server.protocol.settings import read_settings
from server.rank import greet
from server.ready import Maker, Ready
from server.sampling.choosers import ChoosesForAll, Follows
from server.sampling.row_state import Row
from server.scheduler.pacing import PrefillPace
from server.scheduler.scheduler import SLOW_S
from server.startup.joining import join, meet
from server.wire.messages import Submit

NAP_S = 0.05
ORDER = ("number", "clients", "requests", "prompt", "output")
GREEDY = Common(sampling=Sampling(temperature=0))


def main() -> None:
    """Loads, then obeys until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--run-id", required=True)
    arguments = parser.parse_args()
    rank = int(os.environ.get("MLX_RANK") or 0)
    write_pidfile(arguments.run_dir, rank, arguments.run_id)
    link = join(os.environ)
    settings = read_settings(os.environ, rank)
    status = Status(settings.model_id, arguments.run_id)
    pairs = meet(link, os.environ, arguments.run_id)
    met = greet(settings, link, pairs, status, lambda stage: None)
    ready = Maker(settings, link, met, status).first(lambda stage: None)
    if rank == 0:
        (arguments.run_dir / "ready").touch()
    # Kept from one order to the next, as the server's is.
    pace = PrefillPace(settings.prefill_pause_ms / 1000, settings.prefill_step)
    seen = 0
    while True:
        order = read_order(arguments.run_dir) if rank == 0 else None
        # Rank 0 alone reads the file; what it read is shared, or the ranks would part ways.
        number, *shape = link.share_ints(order or [0] * len(ORDER))
        if number <= seen:
            time.sleep(NAP_S)
            continue
        seen = number
        tokens, seconds = run(ready, link.rank, pace, *shape)
        if rank == 0:
            written = arguments.run_dir / "result.part"
            written.write_text(json.dumps({"tokens": tokens, "seconds": seconds}))
            written.rename(arguments.run_dir / f"result-{number}.json")


def read_order(run_dir: Path) -> list[int] | None:
    """The order's numbers; None while there is none."""
    try:
        order = json.loads((run_dir / "order.json").read_text())
    except (OSError, ValueError):
        return None
    return [int(order[name]) for name in ORDER]


def run(
    ready: Ready,
    rank: int,
    pace: PrefillPace,
    clients: int,
    requests: int,
    prompt: int,
    output: int,
) -> tuple[int, float]:
    """Generated tokens and seconds. Every rank calls it alike."""
    rows: dict[int, Row] = {}

    def fail(row: Row, error: Exception) -> None:
        raise error

    if rank == 0:
        # No news but how to take the next turn, by the clock, as from the scheduler.
        chooser = ChoosesForAll(rows.__getitem__, lambda: [0, 0, pace.tokens, int(slow), 0], fail)
    else:
        chooser = Follows()
    engine = ready.engine(chooser)
    chance = random.Random(requests)  # the same on every rank
    eos = tuple(ready.shard.tokenizer.eos_token_ids)
    sent = tokens = 0
    slow = False  # MLX, to take in a step

    def submit() -> None:
        nonlocal sent
        sent += 1
        ids = [chance.randrange(256, ready.shard.vocab) for _ in range(prompt)]
        rows[sent] = Row(GREEDY, ids, ready.shard.vocab, eos)
        engine.submit(Submit(sent, ids, output, ignore_eos=True))

    began = time.perf_counter()
    for _ in range(min(clients, requests)):
        submit()
    while engine.busy:
        turn = engine.step()
        pace.observe(turn.computed, turn.chunk_s, turn.step_s)
        if turn.header is not None:
            slow = turn.launch_s > SLOW_S
            engine.steer(turn.header)
        for uid, event in turn.events:
            if not isinstance(event, Token):
                continue
            tokens += 1
            if event.finish is not None:
                del rows[uid]
                if sent < requests:
                    submit()
    return tokens, time.perf_counter() - began


if __name__ == "__main__":
    main()
