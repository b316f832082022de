"""Distributed tokens/sec of one request, without HTTP: the server's own engine on every rank.

usage: mlx.launch ... -- scripts/jaccl_tps_bench.py --model DIR [--parallel KIND]
                         [--prompt TEXT] [--raw] [--max-tokens N] [--ignore-eos]
                         [--prefill-step N] [--warmup N] [--repeats N] [--speculate] [--json]

scripts/bench.sh starts it, and its --help has the options with their defaults. Rank 0 prints one
name=value a line; times and rates are medians over the repeats, after warm-up runs that are not
counted:

  model                   the folder that was loaded
  world_size              ranks that took part, counted by the ranks themselves
  prompt_tokens           token ids of the prompt, chat template included unless --raw
  gen_tokens              generated token ids, the end-of-text id included (never re-encoded text)
  seconds                 from handing the prompt to the engine to the last token on rank 0
  tokens_per_sec          gen_tokens / seconds, so it includes the prefill
  ttft_seconds            time to first token: from handing over the prompt to the first token
  prefill_tokens_per_sec  prompt_tokens / ttft_seconds
  decode_tokens_per_sec   (gen_tokens - 1) / (seconds - ttft_seconds); 0 for a single token
  drafted, drafts_right   with --speculate: tokens that were drafted, and those that were right
  tokens_per_step         (gen_tokens - 1) / decode steps: 1 without drafts
  repeats                 counted runs

Decoding is greedy and ends at the end-of-text token or at --max-tokens; --ignore-eos makes every
run as long as asked. With --json the last line is one JSON object with the same names, the single
runs and the versions.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx

from scripts.lib.bench.tps_drafts import Drafting, speculate
from scripts.lib.bench.tps_options import add_options
from scripts.lib.verbs.parser import Parser
from scripts.lib.verbs.shared import one_of
from server.engine.engine import Engine, Turn
from server.lifecycle.watchdog import Watchdog
from server.protocol.events import Token
from server.protocol.exit_codes import NOT_JOINED
from server.protocol.requests import Common, Sampling
from server.protocol.settings_table import BY_NAME
from server.sampling.choosers import ChoosesForAll, Follows
from server.sampling.row_state import Row
from server.scheduler.speculation import Speculation
from server.startup.arrangement import KINDS
from server.startup.handshake import Mismatch
from server.startup.joining import NotJoined, ToBeMended, join, meet
from server.startup.loading import Shard, Unloadable, load_shard
from server.startup.pairs import WHAT_TO_DO
from server.wire.link import Link
from server.wire.messages import Submit, decode, encode

STALL_S = 900.0
TELL_S = 2.0  # between two lines of a stage that counts
JOIN_S, HANDSHAKE_S = (float(BY_NAME[f"{of}_TIMEOUT"].default) for of in ("JOIN", "HANDSHAKE"))


def main() -> None:
    """Runs the benchmark on this rank; only rank 0 prints results."""
    arguments = parse_arguments()
    watchdog = Watchdog(STALL_S, on_stall=lambda reason: None)
    watchdog.start()
    try:
        link = join(os.environ, JOIN_S, lambda text: print(text, file=sys.stderr, flush=True))
        with watchdog.within(HANDSHAKE_S, NOT_JOINED, WHAT_TO_DO):
            meet(link, os.environ, "", lambda stage, extra_s: watchdog.progress(stage))
        tell = Teller(link.rank == 0, watchdog.progress)
        tell(f"loading {arguments.model.name} on {link.size} ranks")
        shard = load_shard(arguments.model.resolve(), arguments.parallel, link, None, tell)
    except (Mismatch, NotJoined, ToBeMended, Unloadable) as error:
        sys.exit(f"jaccl_tps_bench: {error}")
    request = share_request(arguments, link, shard)
    speculation = speculate(link, shard, tell) if arguments.speculate else Speculation()
    drafting = Drafting(speculation)
    engine = make_engine(arguments, link, shard, request, drafting)
    runs = []
    for i in range(arguments.warmup + arguments.repeats):
        kind = "warming up" if i < arguments.warmup else "run"
        number = i + 1 if i < arguments.warmup else i + 1 - arguments.warmup
        of = arguments.warmup if i < arguments.warmup else arguments.repeats
        tell(f"{kind} {number} of {of}")
        run = time_request(engine, link, request, watchdog, drafting)
        if i >= arguments.warmup:
            runs.append(run)
    if link.rank == 0:
        report(summarise(arguments, link, request, runs), runs, arguments.json)


class Teller:
    """How far it has come, on rank 0's stderr: a line for each stage, and every few seconds where
    one counts ("loading: 3 of 9"). The watchdog hears of all."""

    def __init__(self, leads: bool, progress: Callable[[str], None]) -> None:
        self._leads, self._progress = leads, progress
        self._told, self._told_at = "", 0.0

    def __call__(self, stage: str) -> None:
        self._progress(stage)
        now = time.monotonic()
        counts = ":" in stage and stage.split(":")[0] == self._told.split(":")[0]
        if self._leads and (not counts or now - self._told_at >= TELL_S):
            self._told, self._told_at = stage, now
            print(f"jaccl_tps_bench: {stage}", file=sys.stderr, flush=True)


def share_request(arguments: argparse.Namespace, link: Link, shard: Shard) -> Submit:
    """The request on every rank, tokenized by rank 0 alone."""
    data = b""
    if link.rank == 0:
        ids = tokenize(arguments, shard.tokenizer)
        data = encode([Submit(1, ids, arguments.max_tokens, arguments.ignore_eos)])
    (length,) = link.share_ints([len(data)])
    (request,) = decode(link.share_bytes(data, length))
    return request


def tokenize(arguments: argparse.Namespace, tokenizer) -> list[int]:
    """Ids of the prompt, as one user turn where the model has a chat template."""
    if arguments.raw or not tokenizer.has_chat_template:
        return list(tokenizer.encode(arguments.prompt))
    turn = [{"role": "user", "content": arguments.prompt}]
    return list(tokenizer.apply_chat_template(turn, add_generation_prompt=True))


def make_engine(arguments, link: Link, shard: Shard, request: Submit, drafting: Drafting) -> Engine:
    """The server's engine, with nobody to send messages."""

    def fail(row: Row, error: Exception) -> None:
        raise error

    def greedy_row(uid: int) -> Row:
        row = Row(Common(sampling=Sampling(temperature=0)), list(request.prompt), shard.vocab)
        return drafting.begin(row, list(request.prompt))

    leads = ChoosesForAll(greedy_row, drafting.header, fail, drafting.speculation.draft)
    return Engine(
        shard.last,
        link,
        leads if link.rank == 0 else Follows(),
        max_batch=1,
        prefill_step=arguments.prefill_step,
        eos=sorted(shard.tokenizer.eos_token_ids),
    )


def time_request(
    engine: Engine, link: Link, request: Submit, watchdog: Watchdog, drafting: Drafting
) -> dict:
    """One request from start to end. Times are in seconds, on this rank's clock."""
    link.share_ints([0])  # all ranks start together
    start = time.perf_counter()
    engine.submit(request)
    first, tokens = 0.0, 0
    before = drafting.speculation.look()

    def deliver(turn: Turn) -> None:
        nonlocal first, tokens
        tokens += sum(isinstance(event, Token) for _, event in turn.events)
        if tokens:
            first = first or time.perf_counter() - start
        drafting.hear(turn)

    while engine.busy:
        watchdog.progress("benchmark step")
        header = engine.step(deliver).header
        if header is not None:
            engine.steer(header)
    now = drafting.speculation.look()
    return {
        "gen_tokens": tokens,
        "seconds": time.perf_counter() - start,
        "ttft_seconds": first,
        "drafted": now.drafted - before.drafted,
        "drafts_right": now.right - before.right,
    }


def summarise(arguments, link: Link, request: Submit, runs: list[dict]) -> dict:
    """Medians of the runs, by the names that the module's docstring defines."""
    for run in runs:
        decoding = run["seconds"] - run["ttft_seconds"]
        run["tokens_per_sec"] = run["gen_tokens"] / run["seconds"]
        run["prefill_tokens_per_sec"] = len(request.prompt) / run["ttft_seconds"]
        run["decode_tokens_per_sec"] = (
            (run["gen_tokens"] - 1) / decoding if run["gen_tokens"] > 1 else 0.0
        )
        stepped = run["gen_tokens"] - 1
        run["tokens_per_step"] = stepped / max(1, stepped - run["drafts_right"]) if stepped else 1.0
    medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    return {
        "model": str(arguments.model),
        "world_size": link.size,
        "prompt_tokens": len(request.prompt),
        "gen_tokens": int(medians.pop("gen_tokens")),
        "seconds": medians.pop("seconds"),
        "tokens_per_sec": medians.pop("tokens_per_sec"),
        **medians,
        "repeats": len(runs),
    }


def report(summary: dict, runs: list[dict], as_json: bool) -> None:
    """name=value lines for people, one JSON line last for programs."""
    for name, value in summary.items():
        print(f"{name}={value:.4f}" if isinstance(value, float) else f"{name}={value}")
    if as_json:
        about = {
            "runs": runs,
            "device": str(mx.default_device()),
            "machine": platform.platform(),
            **{name: version(name) for name in ("mlx", "mlx-lm")},
        }
        print(json.dumps(summary | about))
    sys.stdout.flush()


def parse_arguments() -> argparse.Namespace:
    """The command line. Every rank gets the same."""
    parser = Parser("jaccl_tps_bench.py", __doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a local MLX model")
    parser.add_argument(
        "--parallel",
        type=one_of(*KINDS),
        default=os.environ.get("PARALLEL") or "auto",
    )
    add_options(parser)
    arguments = parser.parse_args()
    if not arguments.model.is_dir():
        parser.error(f"--model {str(arguments.model)!r}: no such folder on {platform.node()}")
    return arguments


if __name__ == "__main__":
    main()
