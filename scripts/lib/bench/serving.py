"""Measure any server that speaks OpenAI's API: throughput, latencies, errors.

usage: bench_serving.py [--url URL | --port P] [--clients N | --rate R]
                        [--requests N | --seconds S] [--prompt-tokens L] [--output-tokens L]
                        [--shared-prefix N] [--sampling greedy|mixed|seeds]
                        [--api chat|completions] [--model NAME] [--ignore-eos auto|yes|no]
                        [--warmup N] [--ramp S] [--deadline S] [--seed N] [--json] [--help]

Every request is streamed. It needs Python 3.11 and nothing else, and runs on one thread of one
process. If the server wants a key, set API_KEY, in the environment or in cluster.env.

  --url URL           http://host:port, with or without /v1. https too. Without it: the server of
                      this checkout that runs.
  --port P            The server of this checkout on that port (HTTP_PORT).
  --clients N         Closed loop: N clients, each sends when its last answer is complete (8).
  --rate R            Open loop: R requests a second on average, at random (Poisson) times.
  --requests N        How many (4 for each client, or 10 seconds' worth, but at least 8).
  --seconds S         Send for so long instead; then wait for the last answers.
  --prompt-tokens L   As 256, or a range to draw from: 16-512 (128). Random words, as many as
                      make L tokens by the server's own count.
  --output-tokens L   The same for max_tokens (64).
  --shared-prefix N   The first N tokens are the same in all prompts (0). They come on top.
  --sampling MIX      greedy; mixed: temperature and top_p differ from client to client; seeds:
                      as mixed, and a seed for each request (greedy).
  --api API           chat or completions (chat).
  --model NAME        The model to ask for (the only one that /v1/models lists, else none: then a
                      server of several answers with its first). One that is not loaded yet is
                      before the counted requests begin.
  --ignore-eos WHEN   Whether to send ignore_eos: true, so that answers get their full length.
                      auto: unless the server refuses it (auto).
  --warmup N          Requests before the counted ones (as many as clients; 4 with --rate).
  --ramp S            Spread the clients' first requests over S seconds (0: all at once).
  --deadline S        For each request; one that takes longer has failed (600).
  --seed N            Of all that is random: prompts, lengths, arrivals. Without one it is made
                      up and told; the same seed twice would meet a prefix cache that knows it.
  --json              The last line is JSON, as ever.

It prints a table, then one line of JSON with the same numbers and more. Each number is defined in
docs/performance.md. Exit codes: 0 measured, 1 no or only failed answers, 2 usage (or
no server or several run, and none was named), 3 no server was started on that port.
"""

import argparse
import json
import random
import sys
import time

from scripts.lib.bench.gauge import Asker, Gauge, Unusable, find_model, knows_ignore_eos, take_gauge
from scripts.lib.bench.load import Load, run_closed, run_open, summarise
from scripts.lib.bench.swarm import Call, Swarm
from scripts.lib.bench.workload import MIXES, Lengths, poisson_arrivals, sampling, words
from scripts.lib.verbs.parser import Parser
from scripts.lib.verbs.running_server import add_server, find_server
from scripts.lib.verbs.shared import add, decimal, one_of, some, whole

PROGRAM = "bench_serving.py"
TELL_S = 5.0  # between two lines of progress where they cannot overwrite each other
BUSY_CLIENT = 0.7  # of a core: beyond, the client's own speed shows in the numbers
MOST_CLIENTS = 4096


def main() -> int:
    """Runs the benchmark; returns the exit code."""
    arguments = parse_arguments()
    try:
        swarm = Swarm(arguments.url, arguments.key or None)
    except ValueError as error:
        return say(f"--url {error}", 2)
    except OSError as error:
        return say(f"{arguments.url} does not answer: {error}", 1)
    try:
        asker, gauge = prepare(arguments, swarm)
    except Unusable as error:
        return say(f"{arguments.url} does not serve: {error}", 1)
    if arguments.warmup:
        make = Maker(arguments, asker, gauge, "warm-up")
        say(f"warming up with {arguments.warmup} requests")
        run_closed(swarm, arguments.clients or 4, make, requests=arguments.warmup)
    load = measure(arguments, swarm, Maker(arguments, asker, gauge, "run"))
    summary = summarise(load) | describe_run(arguments, asker, gauge)
    print(render(summary))
    print(json.dumps(summary))
    if not load.good:
        first = next((answer.detail for answer in load.answers if answer.detail), "")
        return say(f"no request was answered: {load.failures} {first}", 1)
    return 0


def prepare(arguments: argparse.Namespace, swarm: Swarm) -> tuple[Asker, Gauge]:
    """Which model, which fields it knows, and how long words are to it. Raises Unusable."""
    model = arguments.model
    if model is None:
        model, names = find_model(swarm)
        if len(names) > 1:
            some = ", ".join(names[:5]) + ", ..." * (len(names) > 5)
            say(
                f"{len(names)} models are listed ({some}), so none is named in the requests, and "
                "the server's first is measured; see --model"
            )
    asker = Asker(arguments.api, model, ignore_eos=arguments.ignore_eos == "yes")
    if arguments.ignore_eos == "auto":
        knows = knows_ignore_eos(swarm, asker, arguments.deadline)
        asker = Asker(arguments.api, model, knows)
    gauge = take_gauge(swarm, asker, arguments.seed, arguments.deadline)
    if not gauge.counted:
        say("the server does not count prompt tokens: prompts are made by words, lengths a guess")
    return asker, gauge


class Maker:
    """Makes the calls of a phase; phases differ in all their prompts."""

    def __init__(self, arguments: argparse.Namespace, asker: Asker, gauge: Gauge, phase: str):
        self._arguments, self._asker, self._gauge = arguments, asker, gauge
        self._phase = f"{phase} {arguments.seed}"
        count = arguments.shared_prefix and max(1, round(arguments.shared_prefix / gauge.per_word))
        self._prefix = words(count, f"prefix {arguments.seed}") + " " if count else ""

    def __call__(self, client: int, number: int) -> Call:
        chance = random.Random(f"{self._phase} {number}")
        count = self._gauge.words_for(self._arguments.prompt_tokens.draw(chance))
        text = self._prefix + words(count, f"{self._phase} {number}")
        fields = self._asker.fields(
            text,
            self._arguments.output_tokens.draw(chance),
            sampling(self._arguments.sampling, client, number),
        )
        return Call(self._asker.path, fields, self._arguments.deadline)


def measure(arguments: argparse.Namespace, swarm: Swarm, make: Maker) -> Load:
    """The counted part, with progress on stderr."""
    swarm.on_tick = Progress(swarm)
    limits = {"requests": arguments.requests, "seconds": arguments.seconds}
    if arguments.rate is None:
        load = run_closed(swarm, arguments.clients, make, ramp_s=arguments.ramp, **limits)
    else:
        load = run_open(swarm, poisson_arrivals(arguments.rate, arguments.seed), make, **limits)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return load


class Progress:
    """A line now and then."""

    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm
        self._begin = self._told = time.perf_counter()

    def __call__(self) -> None:
        now = time.perf_counter()
        if sys.stderr.isatty() or now - self._told >= TELL_S:
            self._told = now
            line = f"{now - self._begin:6.0f} s  {self._swarm.ended} ended  "
            line += f"{self._swarm.running} running"
            print(f"\r{line}" if sys.stderr.isatty() else f"bench_serving: {line}",
                  end="" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)  # fmt: skip


def describe_run(arguments: argparse.Namespace, asker: Asker, gauge: Gauge) -> dict:
    """What was asked for, to stand beside the numbers."""
    return {
        "url": arguments.url,
        "api": asker.api,
        "model": asker.model,
        "loop": "closed" if arguments.rate is None else "open",
        "clients": arguments.clients,
        "rate": arguments.rate,
        "asked_prompt_tokens": str(arguments.prompt_tokens),
        "asked_output_tokens": str(arguments.output_tokens),
        "shared_prefix": arguments.shared_prefix,
        "sampling": arguments.sampling,
        "ignore_eos": asker.ignore_eos,
        "tokens_per_word": gauge.per_word if gauge.counted else None,
        "seed": arguments.seed,
    }


def render(summary: dict) -> str:
    """The table for people."""
    loop = f"{summary['clients']} clients" if summary["loop"] == "closed" else (
        f"{summary['rate']:g} requests a second, open loop")  # fmt: skip
    failures = ", ".join(f"{count} {kind}" for kind, count in summary["failures"].items())
    mean = summary["prompt_tokens_mean"]
    lines = [
        f"{summary['model'] or 'model not named'}, {summary['api']}, {loop}, "
        f"{summary['sampling']}, seed {summary['seed']}",
        f"requests         {summary['requests']}, answered {summary['answered']}"
        f" in {summary['seconds']:.2f} s ({summary['requests_per_s']:.2f} a second)",
        f"failures         {failures or 'none'}",
        f"prompt tokens    {summary['prompt_tokens']}"
        + ("" if mean is None else f" ({mean:.1f} a request)")
        + f", from cache {summary['cached_tokens']}",
        f"output tokens    {summary['completion_tokens']}, counted by "
        f"{'the server' if summary['tokens_counted_by'] == 'server' else 'events: a guess'}; "
        f"{summary['ended_early']} answers ended by themselves",
        f"tokens a second  {summary['tokens_per_s']:.1f}",
        f"tokens a step    {tell_drafts(summary)}",
        "",
        f"{'milliseconds':<24}{'p50':>10}{'p95':>10}{'p99':>10}{'mean':>10}{'most':>10}",
    ]
    names = {"ttft_s": "time to first token", "itl_s": "inter-token latency",
             "request_s": "whole request"}  # fmt: skip
    if summary["loop"] == "open":
        names["lag_s"] = "sent too late by"
    for name, words_for_it in names.items():
        values = (summary[name][column] for column in ("p50", "p95", "p99", "mean", "most"))
        cells = "".join(f"{'-' if v is None else format(1e3 * v, '.1f'):>10}" for v in values)
        lines.append(f"{words_for_it:<24}{cells}")
    busy = summary["client_cpu"]
    warning = ": too much, its own speed shows in these numbers" if busy > BUSY_CLIENT else ""
    lines += ["", f"this client used {busy:.0%} of a core{warning}"]
    return "\n".join(lines)


def tell_drafts(summary: dict) -> str:
    """What came of drafts, where the server tells."""
    if summary["drafted"] is None:
        return "not told"
    right, drafted = summary["drafts_right"], summary["drafted"]
    return f"{summary['tokens_per_step']:.2f}; {drafted} drafted, {right} of them right"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(PROGRAM, __doc__)
    add_server(parser)
    loop = parser.add_mutually_exclusive_group()
    loop.add_argument("--clients", type=whole(1, MOST_CLIENTS))
    loop.add_argument("--rate", type=decimal(0.001, 10_000))
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--requests", type=whole(1, 10_000_000))
    length.add_argument("--seconds", type=decimal(0.1, 1_000_000))
    parser.add_argument("--prompt-tokens", type=lengths, default=Lengths(128, 128))
    parser.add_argument("--output-tokens", type=lengths, default=Lengths(64, 64))
    parser.add_argument("--shared-prefix", type=whole(0, 1_000_000), default=0)
    parser.add_argument("--sampling", type=one_of(*MIXES), default="greedy")
    parser.add_argument("--api", type=one_of("chat", "completions"), default="chat")
    parser.add_argument("--model", type=some)
    parser.add_argument("--ignore-eos", type=one_of("auto", "yes", "no"), default="auto")
    parser.add_argument("--warmup", type=whole(0, 100_000))
    parser.add_argument("--ramp", type=decimal(0, 3600), default=0.0)
    parser.add_argument("--deadline", type=decimal(0.1, 86_400), default=600.0)
    parser.add_argument("--seed", type=whole(0, 2**31 - 1), default=random.randrange(10**6))
    add(parser, "--json")
    arguments = parser.parse_args()
    find_server(parser, arguments)
    if arguments.rate is None:
        arguments.clients = arguments.clients or 8
    if arguments.requests is None and arguments.seconds is None:
        wanted = 4 * arguments.clients if arguments.rate is None else round(10 * arguments.rate)
        arguments.requests = max(8, wanted)
    if arguments.warmup is None:
        arguments.warmup = arguments.clients or 4
    return arguments


def lengths(text: str) -> Lengths:
    """Lengths.parse with argparse's error."""
    try:
        return Lengths.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def say(text: str, code: int = 0) -> int:
    """To stderr; returns code."""
    print(f"bench_serving: {text}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
