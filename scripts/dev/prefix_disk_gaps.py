"""What writing a kept prefix to disk costs those who decode: gaps between tokens, with and without.

usage: python -m scripts.dev.prefix_disk_gaps [--model DIR] [--tokens N] [--rounds N] [--gb N]

One request decodes on the engine in this process; every other time a prefix of so many GB is
written meanwhile. Prints both of each round, and last the medians of the ratios.
"""

import argparse
import logging
import statistics
import tempfile
import time
from pathlib import Path

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from scripts.dev.prefix_disk_times import DEMO
from server.disk.folder import Folder
from server.engine.kv_memory import row_bytes
from server.engine.prefix_disk import PrefixDisk
from server.scheduler.disk_index import DiskIndex
from server.startup.loading import load_shard
from server.wire.link import Link
from server.wire.messages import Abandon, Store
from tests.support.desk import Desk, ticket

ENTRY = 10**6  # a number that the index does not give out
WARM_UP = 6  # turns that do not count


class Bench:
    """An engine with a large prefix in memory, and a disk."""

    def __init__(self, shard, folder: Path, gb: float) -> None:
        link = Link(mx.distributed.init())
        own = Folder(folder, 0, "0" * 16, 10**13)
        self._disk = PrefixDisk(link, own, lambda: make_prompt_cache(shard.model), {})
        self._desk = Desk(shard, disk=(self._disk, DiskIndex()))
        self._length = int(gb * 1e9 / row_bytes(shard.model).token)
        caches = make_prompt_cache(shard.model)
        shard.model(mx.zeros((1, 1), dtype=mx.int32), cache=caches)
        for cache in caches:
            shape = (1, cache.keys.shape[1], self._length - 1, cache.keys.shape[3])
            more = mx.random.normal(shape).astype(cache.keys.dtype)
            cache.update_and_fetch(more, more)
            mx.eval(cache.state)
        self._desk.engine.prefixes.put(ENTRY, caches, self._length)
        self._desk.engine.prefixes.compute()
        self._jobs = 0

    def gaps(self, tokens: int, write: bool) -> tuple[float, float, float]:
        """Milliseconds, median and 95th percentile; GB that were written."""
        stamps: list[float] = []
        self._jobs += 1
        store = Store(self._jobs, ENTRY, f"{self._jobs:032x}", self._length)

        def act(turn: int) -> None:
            if turn == WARM_UP and write:
                self._disk.carry_out(store, self._desk.engine.prefixes)
            if turn >= WARM_UP:
                stamps.append(time.monotonic())

        prompt = list(range(100, 150))
        one = ticket(prompt=prompt, max_tokens=tokens, common={"ignore_eos": True})
        self._desk.run(one, act=act)
        written = self._disk._jobs[self._jobs].kib / 1e6 if write else 0
        self._disk.carry_out(Abandon((self._jobs,)), self._desk.engine.prefixes)
        gaps = sorted(1e3 * (b - a) for a, b in zip(stamps, stamps[1:], strict=False))
        return gaps[len(gaps) // 2], gaps[int(len(gaps) * 0.95)], written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gb", type=float, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    link = Link(mx.distributed.init())
    shard = load_shard(options.model, "auto", link, None, lambda stage: None)
    with tempfile.TemporaryDirectory(prefix="prefix-disk-") as scratch:
        bench = Bench(shard, Path(scratch), options.gb)
        bench.gaps(options.tokens // 2, write=False)
        ratios = []
        for _ in range(options.rounds):
            without, beside = (bench.gaps(options.tokens, write) for write in (False, True))
            ratios.append((beside[0] / without[0], beside[1] / without[1]))
            print(
                f"without: p50 {without[0]:.1f} ms, p95 {without[1]:.1f} ms; while "
                f"{beside[2]:.2f} GB are written: p50 {beside[0]:.1f} ms, p95 {beside[1]:.1f} ms",
                flush=True,
            )
        p50, p95 = (statistics.median(some) for some in zip(*ratios, strict=True))
        print(f"ratio: p50 {p50:.2f}, p95 {p95:.2f}")


if __name__ == "__main__":
    main()
