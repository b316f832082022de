"""What a batch's rows cost each other: decode steps by themselves, in pairs that take turns.

usage: python -m scripts.dev.batch_profile --model DIR [--rows N] [--long TOKENS] [--short TOKENS]
                                           [--rounds N] [--json] [--help]

Prints, one a line, medians over the rounds in milliseconds, and their ratio:

  leave      a step at which one of N rows has left (15), beside the plain step before it
  join       one at which a row has come to an empty place of a shelf, or has made it be built anew,
             beside the plain step behind it. The row's prompt is computed before, and not counted
  equal      a step of 8 and of 32 rows of the short length (50) on shelves, beside one of the same
             rows in mlx-lm's own caches of a batch
  bits 8, 4  a step of one row of the long length (6000) with keys and values in so many bits,
             beside one with whole ones
and, in MB
  memory     the most that is active beyond the weights while one row of the long length and seven
             of the short one decode, beside what these rows' own caches take

Rows get caches of made-up numbers, so nothing waits for prompts. One rank. The two sides of a ratio
take turns step by step, so what else the machine does weighs on both; and where a CPU computes, CPU
seconds of the process are counted, which others delay less than the clock's.
"""

import os

from scripts.lib.right_python import ensure

if __name__ == "__main__":  # before what an older one cannot even read
    ensure(os.getcwd(), "scripts.dev.batch_profile")

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import mlx.core as mx
from mlx_lm.models.cache import KVCache, make_prompt_cache
from mlx_lm.utils import load_model

from scripts.lib.verbs.parser import Parser
from scripts.lib.verbs.shared import whole
from server.engine.attention import put_attention
from server.engine.batch_caches import BatchCaches, states
from server.engine.quantised_kv import Quantised, fits
from server.engine.rows_apart import TOGETHER, Ways
from server.engine.shelves import Build, Move, Shelves

SHELVES = Ways(shelves=True)
EQUAL = (8, 32)  # rows
BESIDE = 7  # short rows beside a long one
BITS = (8, 4)
WARM_STEPS = 2
STEPS = 20  # while memory is looked at


@dataclass(frozen=True)
class Pair:
    """Two numbers of a kind, one for each round: what is looked at, and what it is held to."""

    what: str
    unit: str
    mine: Sequence[float]
    other: Sequence[float]

    @property
    def ratio(self) -> float:
        """Of the medians."""
        return statistics.median(self.mine) / statistics.median(self.other)

    def __str__(self) -> str:
        mine, other = statistics.median(self.mine), statistics.median(self.other)
        rounds = sorted(a / b for a, b in zip(self.mine, self.other, strict=True))
        return (
            f"{self.what:<22}{mine:9.1f} {self.unit} beside {other:9.1f}: {self.ratio:5.2f}x, "
            f"{len(rounds)} rounds of {rounds[0]:.2f} to {rounds[-1]:.2f}"
        )


class Batch:
    """Rows that decode. length: tokens of one that comes."""

    def __init__(self, model: Any, lengths: Sequence[int], ways: Ways = SHELVES) -> None:
        self._model = model
        self._caches = BatchCaches(ways)
        self._caches.join([made_up(model, length) for length in lengths])
        self.count = len(lengths)

    def join(self, caches: list) -> None:
        self._caches.join([caches])
        self.count += 1

    def leave(self, place: int) -> None:
        self._caches.keep([i for i in range(self.count) if i != place])
        self.count -= 1

    def step(self) -> None:
        """One token for each row, as Decoding has it; waits for it."""
        inputs = mx.ones((self.count, 1), dtype=mx.int32)
        logits = self._caches.step(
            lambda layers: self._model(inputs, cache=layers), [1] * self.count
        )
        mx.eval(mx.argmax(logits[:, -1], axis=-1), states(self._caches.layers))


def made_up(model: Any, length: int) -> list:
    """A row's caches, of so many tokens that nobody has computed. Every layer must keep keys and
    values of all tokens."""
    caches = make_prompt_cache(model)
    model(mx.zeros((1, 1), dtype=mx.int32), cache=caches)  # for the shapes; nothing is computed
    for cache in caches:
        if type(cache) is not KVCache:
            raise ValueError(f"a layer of this model has a {type(cache).__name__}")
        shapes = [
            (1, array.shape[1], length, array.shape[3]) for array in (cache.keys, cache.values)
        ]
        own = [mx.random.normal(shape, cache.keys.dtype) for shape in shapes]
        cache.keys = cache.values = None
        cache.offset = 0
        cache.update_and_fetch(*own)  # with room, as a prompt's have
    mx.eval(states(caches))
    return caches


def seconds(act: Callable[[], None]) -> float:
    """Of this process, all of its threads, where a CPU computes; else by the clock."""
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    clock = time.process_time if on_cpu else time.perf_counter
    began = clock()
    act()
    return clock() - began


class Changes:
    """Batches whose rows come and go; the seconds of such a step, and of a plain one, by what has
    happened to their shelf."""

    def __init__(self, model: Any, rows: int, short: int) -> None:
        self._model, self._rows, self._short = model, rows, short
        self.times: dict[str, list[tuple[float, float]]] = {
            "leave": [], "join": [], "join, shelf built": []
        }  # fmt: skip

    def round(self, number: int) -> None:
        """One row leaves and one comes to its place; more come until the shelf is built anew."""
        batch = Batch(self._model, [self._short] * self._rows)
        for _ in range(WARM_STEPS):
            batch.step()
        plain = seconds(batch.step)
        gone = number % (batch.count - 1)  # at the end there would be no empty place

        def leave() -> None:
            batch.leave(gone)
            batch.step()

        self.times["leave"].append((seconds(leave), plain))
        while not self._comes(batch):
            pass

    def _comes(self, batch: Batch) -> bool:
        """Whether the shelf is built for it."""
        newcomer = made_up(self._model, self._short)
        built: list[Move] = []
        join = Shelves.join

        def noted(shelves: Shelves, *arguments: Any) -> list[Move]:
            moves = join(shelves, *arguments)
            built.extend(move for move in moves if isinstance(move, Build))
            return moves

        def come() -> None:
            batch.join(newcomer)
            batch.step()

        with mock.patch.object(Shelves, "join", noted):
            took = seconds(come)
        what = "join, shelf built" if built else "join"
        self.times[what].append((took, seconds(batch.step)))
        return bool(built)

    def pairs(self) -> Iterator[Pair]:
        for what, times in self.times.items():
            mine, other = zip(*times, strict=True)
            yield Pair(what, "ms", [1e3 * t for t in mine], [1e3 * t for t in other])


def side_by_side(what: str, first: Batch, second: Batch, rounds: int) -> Pair:
    """Steps of two batches in turn; who goes first changes from round to round."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(WARM_STEPS + rounds):
        for side in (0, 1) if number % 2 else (1, 0):
            took = 1e3 * seconds((first, second)[side].step)
            if number >= WARM_STEPS:
                times[side].append(took)
    return Pair(what, "ms", *times)


def equal(model: Any, count: int, short: int, rounds: int) -> Pair:
    lengths = [short] * count
    first, second = (Batch(model, lengths, ways) for ways in (SHELVES, TOGETHER))
    return side_by_side(f"equal, {count} rows", first, second, rounds)


def in_bits(model: Any, bits: int, long: int, rounds: int) -> Pair:
    layers, why = fits(model, bits)
    if not layers:
        raise ValueError(why)
    fewer = Ways(shelves=True, quantised=Quantised(bits, 0, layers))
    first, second = (Batch(model, [long], ways) for ways in (fewer, SHELVES))
    return side_by_side(f"bits {bits}, {long} tokens", first, second, rounds)


def memory(model: Any, long: int, short: int) -> Pair:
    lengths = [long] + [short] * BESIDE
    mx.eval(model.parameters())
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    own = sum(
        sum(cache.nbytes for cache in made_up(model, length)) for length in sorted(set(lengths))
        for _ in range(lengths.count(length))
    )  # fmt: skip
    batch = Batch(model, lengths)
    mx.reset_peak_memory()
    for _ in range(STEPS):
        batch.step()
    return Pair("memory", "MB", [(mx.get_peak_memory() - before) / 1e6], [own / 1e6])


def main() -> None:
    arguments = parse_arguments()
    model, _ = load_model(arguments.model.resolve())
    put_attention(model)
    rounds, long, short = arguments.rounds, arguments.long, arguments.short
    found = []

    def tell(pair: Pair) -> None:
        found.append(pair)
        print(pair, flush=True)

    tell(memory(model, long, short))
    changes = Changes(model, arguments.rows, short)
    for number in range(rounds):
        changes.round(number)
    for pair in changes.pairs():
        tell(pair)
    for count in EQUAL:
        tell(equal(model, count, short, rounds))
    for bits in BITS:
        tell(in_bits(model, bits, long, rounds))
    if arguments.json:
        print(json.dumps({pair.what: vars(pair) | {"ratio": pair.ratio} for pair in found}))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser("batch_profile.py", __doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a local MLX model")
    parser.add_argument("--rows", type=whole(5, 1024), default=15, help="that come and go (15)")
    parser.add_argument("--long", type=whole(1, 10**6), default=6000, help="tokens (6000)")
    parser.add_argument("--short", type=whole(1, 10**6), default=50, help="tokens (50)")
    parser.add_argument("--rounds", type=whole(1, 10**6), default=20, help="of each pair (20)")
    parser.add_argument("--json", action="store_true", help="one line of JSON at the end")
    return parser.parse_args()


if __name__ == "__main__":
    main()
