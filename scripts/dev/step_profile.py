"""Where the time of a decode step goes: in our engine, and in mlx-lm's own batches.

usage: python -m scripts.dev.step_profile --model DIR [--batch N...] [--mix greedy|mixed]
                                          [--steps N] [--prefill-step N] [--json] [--help]
                                          [--draft DIR [--drafts K]]

Decodes batches of N requests (1 8 32) without HTTP, ours and mlx-lm's BatchGenerator in turn, and
prints milliseconds of a step, medians over the steps:

  step       as it really runs: the parts overlap, as the next step is computed while the last
             one's tokens are handed on
  forward    the model's forward pass
  choose     from the logits to the tokens. Ours: what the requests ask for, for the rows that fall
             to rank 0. mlx-lm's: log-softmax, then one sampler a request, as mlx_lm.server makes
             them
  collective the one all_sum that carries our tokens and messages; mlx-lm has none
  draft      what a draft model says of the next tokens; with --draft
  deliver    each token to its request. mlx-lm's: with its log-probability, as mlx_lm.server reads
             it for every token, wanted or not
  rest       bookkeeping in Python

With --draft ours runs once more, as "ours+K": rank 0 has the draft model of that folder say K (4)
tokens for each request, whatever they are worth. The model's own folder is right each time.

Parts are timed in a run of their own, in which each is waited for, so they add up to more than a
step. The model is loaded twice, since our shards of it differ from mlx-lm's. For several ranks
start it as every rank program; rank 0 prints:

  python scripts/lib/module.py lib.launch.mlx_launch -n 2 --backend ring --python PYTHON -- \\
      scripts/lib/module.py dev.step_profile --model DIR

The model should be one that does not end by itself, as models.py makes them.
"""

import os
import sys

from scripts.lib.right_python import ensure

if __name__ == "__main__":  # before what an older one cannot even read
    ensure(os.getcwd(), "scripts.dev.step_profile")

import argparse
import copy
import json
import queue
import statistics
import time
from collections import defaultdict
from pathlib import Path

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, StopSequences
from mlx_lm.sample_utils import make_sampler
from mlx_lm.utils import load_model

from scripts.lib.bench.workload import sampling
from scripts.lib.verbs.parser import Parser
from scripts.lib.verbs.shared import one_of, whole
from server.engine.draft_model import DraftModel
from server.engine.engine import Engine
from server.engine.kv_memory import row_bytes
from server.protocol.events import Token
from server.protocol.requests import Common, Sampling
from server.sampling.choosers import ChoosesForAll, Drafter, Follows, Wanting, no_drafts
from server.sampling.row_state import Row
from server.scheduler.guesses import Guess
from server.scheduler.model_drafts import Ask, ModelDrafts
from server.scheduler.pacing import PrefillPace
from server.startup.joining import join
from server.startup.loading import context_length, load_shard
from server.wire.link import Link
from server.wire.mailbox import DRAFTS_MOST, Header
from server.wire.messages import Submit

PROMPT = 64  # tokens
WARM_STEPS = 6
PARTS = ("forward", "choose", "collective", "draft", "deliver", "rest")


class Clock:
    """Sums the time of each part within a step. Parts are timed only while it is on."""

    def __init__(self, on: bool) -> None:
        self.on = on
        self.parts: dict[str, float] = defaultdict(float)

    def timed(self, part: str, compute):
        """compute() with its result evaluated, added to part."""
        if not self.on:
            return compute()
        began = time.perf_counter()
        result = compute()
        mx.eval(result)
        self.parts[part] += time.perf_counter() - began
        return result


class Timed:
    """Any object with one method replaced; all else is the object's."""

    def __init__(self, inner, clock: Clock, part: str, method: str) -> None:
        self._inner = inner

        def replaced(*args, **kwargs):
            return clock.timed(part, lambda: getattr(inner, method)(*args, **kwargs))

        self._replaced = replaced
        setattr(self, method, replaced)

    def __call__(self, *args, **kwargs):
        return self._replaced(*args, **kwargs)

    def __getattr__(self, name: str):
        return getattr(self._inner, name)


def main() -> None:
    """Profiles both at each batch size; rank 0 prints."""
    arguments = parse_arguments()
    link = join(os.environ)
    shard = load_shard(arguments.model.resolve(), "tensor", link, None, lambda *_: None)
    model, _ = load_model(arguments.model.resolve())
    if link.size > 1:
        model.shard(link.group)
    runs = [("ours", run_ours, shard), ("mlx-lm", run_theirs, model)]
    if arguments.draft is not None:
        runs.insert(1, (f"ours+{arguments.drafts}", run_drafted, shard))
    rows = []
    for batch in arguments.batch:
        for name, run, of in runs:
            whole = run(arguments, link, of, batch, Clock(False))
            apart = run(arguments, link, of, batch, Clock(True))
            apart["step"] = whole["step"]
            rows.append({"ranks": link.size, "batch": batch, "engine": name, "mix": arguments.mix}
                        | {"tokens": whole["tokens"]}
                        | {part: 1e3 * apart[part] for part in ("step", *PARTS)})  # fmt: skip
            if link.rank == 0:
                print(f"batch {batch}, {name}: done", file=sys.stderr, flush=True)
    if link.rank == 0:
        print(render(rows))
        if arguments.json:
            print(json.dumps(rows))


def run_drafted(arguments, link: Link, shard, batch: int, clock: Clock) -> dict[str, float]:
    """The same with drafts."""
    if link.rank:
        return run_ours(arguments, link, shard, batch, clock, drafts=arguments.drafts)
    model, config = load_model(arguments.draft.resolve())
    small = DraftModel(
        model,
        vocab=shard.vocab,
        context=context_length(config),
        token_bytes=row_bytes(model).token,
    )
    asks = ModelDrafts(small, PrefillPace(1.0, arguments.prefill_step))

    def draft(wanting: list[Wanting], most: int) -> list[list[int]]:
        heard = [one.row.guess.hear(one.newest, one.drawn) for one in wanting]
        if not all(heard):
            return [()] * len(wanting)  # those before were not delivered yet
        asks.keep([one.row for one in wanting])
        asked = [Ask(one.row, one.drawn, most // batch) for one in wanting]
        return clock.timed("draft", lambda: asks.draft(asked, reads=True))

    return run_ours(arguments, link, shard, batch, clock, draft, arguments.drafts)


def run_ours(
    arguments,
    link: Link,
    shard,
    batch: int,
    clock: Clock,
    drafter: Drafter = no_drafts,
    drafts: int = 0,
) -> dict[str, float]:
    """Seconds of a step and its parts, and its tokens, medians. drafts: of each request."""
    eos = sorted(shard.tokenizer.eos_token_ids)
    guesses: dict[int, Guess] = {}
    counts: dict[int, int] = defaultdict(int)  # of the tokens that each has

    def row(uid: int) -> Row:
        fields = sampling(arguments.mix, uid, 0) | {"seed": uid}  # the same on every rank
        one = Row(Common(sampling=Sampling(**fields)), prompt(uid), shard.vocab, tuple(eos))
        one.guess = guesses[uid] = Guess(prompt(uid))
        return one

    def fail(row: Row, error: Exception) -> None:
        raise error

    room = min(DRAFTS_MOST, batch * drafts)
    news = list(vars(Header(chunk=arguments.prefill_step, drafts=room)).values())
    chooser = ChoosesForAll(row, lambda: news, fail, drafter) if link.rank == 0 else Follows()
    model = copy.copy(shard.last)
    model.model = Timed(shard.model, clock, "forward", "__call__")
    engine = Engine(
        model,
        Timed(link, clock, "collective", "sum"),
        Timed(chooser, clock, "choose", "propose"),
        max_batch=batch,
        prefill_step=arguments.prefill_step,
        eos=eos,
    )
    for uid in range(1, batch + 1):
        draw = row(uid).draw(uid)
        draws = () if draw is None else (draw,)
        engine.submit(Submit(uid, prompt(uid), 10**6, ignore_eos=True, draws=draws))
    queues: dict[int, queue.SimpleQueue] = defaultdict(queue.SimpleQueue)

    def step() -> int:
        turn = engine.step()
        if turn.header is not None:
            engine.steer(turn.header)
        events = turn.events
        began = time.perf_counter()
        for uid, event in events:
            queues[uid].put((0, event))
            if isinstance(event, Token) and uid in guesses:
                counts[uid] += 1
                guesses[uid].hear([event.id], counts[uid])
        clock.parts["deliver"] += time.perf_counter() - began
        return sum(isinstance(event, Token) for _, event in events)

    times = time_steps(arguments, clock, step, batch)
    for uid in range(1, batch + 1):
        engine.cancel(uid)
    return times


def run_theirs(arguments, link: Link, model, batch: int, clock: Clock) -> dict[str, float]:
    """The same for mlx-lm's batches, driven as mlx_lm.server does."""
    generator = BatchGenerator(
        Timed(model, clock, "forward", "__call__"),
        completion_batch_size=batch,
        prefill_batch_size=batch,
        prefill_step_size=arguments.prefill_step,
        stream=mx.default_stream(mx.default_device()),
    )
    # All ranks draw for themselves and must draw the same.
    mx.random.seed(7)
    samplers = []
    for uid in range(1, batch + 1):
        fields = sampling(arguments.mix, uid, 0)
        sampler = make_sampler(fields["temperature"], top_p=fields.get("top_p", 1.0))
        samplers.append(lambda logprobs, s=sampler: clock.timed("choose", lambda: s(logprobs)))
    uids = generator.insert_segments(
        [[prompt(uid)] for uid in range(1, batch + 1)],
        max_tokens=[10**6] * batch,
        samplers=samplers,
        stop_sequences=[StopSequences([])] * batch,
    )
    queues: dict[int, queue.SimpleQueue] = defaultdict(queue.SimpleQueue)

    def step() -> int:
        _, responses = generator.next()
        began = time.perf_counter()
        for one in responses:
            queues[one.uid].put((one.token, one.logprobs[one.token].item()))
        clock.parts["deliver"] += time.perf_counter() - began
        return len(responses)

    times = time_steps(arguments, clock, step, batch)
    generator.remove(uids)
    generator.close()
    return times


def time_steps(arguments, clock: Clock, step, batch: int) -> dict[str, float]:
    """Medians over the steps in which the whole batch decodes."""
    whole: list[float] = []
    tokens: list[int] = []
    parts: dict[str, list[float]] = defaultdict(list)
    full = 0
    while len(whole) < arguments.steps:
        clock.parts.clear()
        began = time.perf_counter()
        count = step()
        took = time.perf_counter() - began
        full += count >= batch
        if full <= WARM_STEPS:
            continue
        whole.append(took)
        tokens.append(count)
        for part in PARTS[:-1]:
            parts[part].append(clock.parts[part])
        parts["rest"].append(took - sum(clock.parts.values()))
    medians = {part: statistics.median(values) for part, values in parts.items()}
    return medians | {"step": statistics.median(whole), "tokens": statistics.mean(tokens)}


def prompt(uid: int) -> list[int]:
    """Different for each request, the same on every rank."""
    return [1000 + (uid * 7919 + i * 104_729) % 20_000 for i in range(PROMPT)]


def render(rows: list[dict]) -> str:
    """The table, with what a step of ours takes of one of theirs."""
    names = ("step", *PARTS)
    head = f"{'ranks':>5} {'batch':>5} {'engine':<7}" + "".join(f"{name:>11}" for name in names)
    lines = [head + f"{'tokens/s':>11}"]
    for row in rows:
        cells = "".join(f"{row[name]:11.2f}" for name in names)
        speed = 1e3 * row["tokens"] / row["step"]
        lines.append(f"{row['ranks']:>5} {row['batch']:>5} {row['engine']:<7}{cells}{speed:11.1f}")
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser("step_profile.py", __doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a local MLX model")
    parser.add_argument("--batch", type=whole(1, 1024), nargs="+", default=[1, 8, 32])
    parser.add_argument("--mix", type=one_of("greedy", "mixed"), default="greedy")
    parser.add_argument("--steps", type=whole(1, 10**6), default=40, help="counted, a run (40)")
    parser.add_argument("--prefill-step", type=whole(16, 65_536), default=512, help="tokens (512)")
    parser.add_argument("--draft", type=Path, help="folder of a draft model")
    parser.add_argument("--drafts", type=whole(1, 15), default=4, help="tokens of a request (4)")
    parser.add_argument("--json", action="store_true", help="one line of JSON at the end")
    return parser.parse_args()


if __name__ == "__main__":
    main()
