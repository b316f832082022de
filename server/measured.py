"""What a loaded model takes of each rank's memory, and what there is. Main thread of every rank."""

import json
from typing import NamedTuple

from server.engine.kv_memory import row_bytes, spare_memory
from server.engine.prefix_store import reuse_kind
from server.scheduler.kv_pool import Need, RankPart
from server.startup.loading import Shard
from server.wire.link import Link


class Measured(NamedTuple):
    """What one rank says of a model that it has loaded, in bytes but for reuse (prefix_store)."""

    reuse: int
    caches: int
    fixed: int
    token: int
    whole: int
    weights: int
    spare: int


def measure(shard: Shard, link: Link, caches: int, weights: int, here: int) -> list[Measured]:
    """What every rank says, on every rank. caches, weights: bytes on this one; here: how many ranks
    this host has."""
    ways = shard.last.ways
    row = row_bytes(shard.model, ways.quantised)
    reuse = reuse_kind(shard.model, ways)
    spare = spare_memory() // here
    mine = Measured(reuse, caches, row.fixed, row.token, row.whole, weights, spare)
    return [Measured(*json.loads(one)) for one in link.gather_bytes(json.dumps(mine).encode())]


def need_of(shard: Shard, ranks: list[Measured]) -> Need:
    """What a model takes, as the ranks have measured it."""
    parts = tuple(RankPart(one.weights, one.fixed, one.token, one.whole) for one in ranks)
    quantised = shard.last.ways.quantised
    start = quantised.start if quantised else 0
    return Need(parts, shard.context, shard.last.ways.apart, start)
