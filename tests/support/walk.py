"""A random walk over scheduler, mailbox and engine, in one process, with an oracle.

    .venv/bin/python -m tests.support.walk --seconds 600 --seed 1

walks from episode 1 on until the time is up. `--seed N --episodes 1` walks episode N again, turn by
turn the same: what it does depends on its seed alone, and not on the clock. What an
episode is, walk_episode.py says.
"""

import argparse
import gc
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import mlx.core as mx

from tests.support.walk_episode import Episode
from tests.support.walk_parts import Broken, make_shards

LEFT_BYTES = 2**16  # that an idle engine may hold on to: its last step's few arrays


def walks(seed: int, shards: dict) -> Iterator[tuple[int, Counter]]:
    """Episodes from seed on, each with what has happened in it. Memory must come back, too."""
    gc.freeze()  # what other tests have left would be looked through twice an episode
    while True:
        gc.collect()
        before = mx.get_active_memory()
        seen = Episode(seed, shards).walk()
        gc.collect()
        left = mx.get_active_memory() - before
        if left > LEFT_BYTES:
            raise Broken(f"episode {seed}: {left} bytes are not given back")
        yield seed, seen
        seed += 1


def walk_for(
    seconds: float, seed: int, episodes: int = sys.maxsize, must_happen: Sequence[str] = ()
) -> Counter:
    """Walks until the time is up and everything has happened that must, which it soon has; all
    that has happened. Raises Broken."""
    end, total, shards = time.monotonic() + seconds, Counter(), make_shards()
    for _, seen in walks(seed, shards):
        total += seen
        total["episodes"] += 1
        enough = time.monotonic() > end and all(total[name] for name in must_happen)
        if enough or total["episodes"] >= episodes:
            return total
    raise AssertionError("unreachable")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--episodes", type=int, default=sys.maxsize)
    options = parser.parse_args()
    logging.disable(logging.ERROR)
    for name, count in walk_for(options.seconds, options.seed, options.episodes).most_common():
        print(f"{count:8} {name}")


if __name__ == "__main__":
    main()
