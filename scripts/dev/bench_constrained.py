"""What one request with a grammar costs the others in its batch.

usage: python -m scripts.dev.bench_constrained --model DIR [--batch N] [--steps N] [--repeats N]
                                               [--help]

Decodes a batch of N requests on one rank with the server's own engine, without HTTP: once with no
grammar in it, once with one request that must match a JSON schema, in turn. Prints medians over
the repeats, one name=value a line:

  step_ms              time of one step of the whole batch, no grammar in it
  constrained_step_ms  the same with one constrained request
  mask_ms              of these, spent in asking the grammar and applying its mask, measured apart
  ratio                constrained_step_ms / step_ms
"""

import os
import sys

from scripts.lib.right_python import ensure

if __name__ == "__main__":  # before what an older one cannot even read
    ensure(os.getcwd(), "scripts.dev.bench_constrained")

import argparse
import statistics
import time
from pathlib import Path

import mlx.core as mx
import numpy as np

from scripts.lib.verbs.parser import Parser
from scripts.lib.verbs.shared import whole
from server.engine.engine import Engine
from server.grammar.grammars import Grammars
from server.protocol.requests import Common, Format, Sampling
from server.sampling.choosers import ChoosesForAll
from server.sampling.row_state import Row
from server.sampling.token_masks import apply_mask
from server.startup.loading import load_shard
from server.wire.link import Link
from server.wire.mailbox import Header
from server.wire.messages import Submit

WARM_STEPS = 5
# Long enough that it does not end within a run.
SCHEMA = {"type": "array", "items": {"type": "integer"}, "minItems": 10_000}
COMMON = Common(sampling=Sampling(temperature=0.7, seed=1))


def main() -> None:
    """Alternates both kinds of batch and prints the medians."""
    arguments = parse_arguments()
    link = Link(mx.distributed.init())
    shard = load_shard(arguments.model.resolve(), "tensor", link, None, lambda stage: None)
    eos = sorted(shard.tokenizer.eos_token_ids)
    grammars = Grammars(shard.tokenizer._tokenizer, shard.vocab, eos)
    grammar = grammars.compile(Format("json_schema", SCHEMA, True))
    free, constrained = [], []
    for i in range(arguments.repeats):
        print(f"repeat {i + 1} of {arguments.repeats}", file=sys.stderr)
        free.append(time_steps(arguments, link, shard, eos, None))
        constrained.append(time_steps(arguments, link, shard, eos, grammar))
    step, with_grammar = statistics.median(free), statistics.median(constrained)
    print(f"step_ms={1e3 * step:.3f}")
    print(f"constrained_step_ms={1e3 * with_grammar:.3f}")
    print(f"mask_ms={1e3 * time_mask(arguments, shard.vocab, grammar):.3f}")
    print(f"ratio={with_grammar / step:.3f}")
    grammars.close()


def time_steps(arguments, link: Link, shard, eos: list[int], grammar) -> float:
    """Seconds of one decode step of a full batch, the median of the steps."""

    def row(uid: int) -> Row:
        return Row(
            COMMON, [5, 6, 7], shard.vocab, tuple(eos), grammar=grammar if uid == 1 else None
        )

    def fail(row: Row, error: Exception) -> None:
        raise error

    chooser = ChoosesForAll(row, lambda: [0] * Header.SIZE, fail)
    engine = Engine(shard.last, link, chooser, max_batch=arguments.batch, prefill_step=64, eos=eos)
    for uid in range(1, arguments.batch + 1):
        engine.submit(Submit(uid, [5, 6, 7], arguments.steps + 100, ignore_eos=True))
    times = []
    for _ in range(WARM_STEPS + arguments.steps):
        start = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - start)
    for uid in range(1, arguments.batch + 1):
        engine.cancel(uid)
    return statistics.median(times[WARM_STEPS:])


def time_mask(arguments, vocab: int, grammar) -> float:
    """Seconds to ask a matcher once and apply its mask to one row of the batch."""
    logits = mx.random.normal((arguments.batch, vocab))
    mx.eval(logits)
    times = []
    for _ in range(arguments.steps):
        matcher = grammar.matcher()
        start = time.perf_counter()
        mx.eval(apply_mask(logits, [0], np.stack([matcher.mask()])))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser("bench_constrained.py", __doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a local MLX model")
    parser.add_argument("--batch", type=whole(1, 1024), default=8, help="requests (8)")
    parser.add_argument("--steps", type=whole(1, 10**6), default=40, help="counted, a repeat (40)")
    parser.add_argument("--repeats", type=whole(1, 10**6), default=5, help="(5)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
