"""One rank of a few that play the same requests in mlx-lm's caches and on shelves, and there with drafts.

Started by test_company.py, once for each rank. Rank 0 writes a line of JSON for each model: what
differs, if anything, and what has happened.
"""

import argparse
import json
import logging
import tempfile
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx

from server.engine.last_logits import LastLogits, put_heads
from server.startup.batching import prove_ways
from server.startup.piece_pace import at_once
from server.startup.splitting import load_split
from server.wire.link import Link
from tests.models.architectures import write
from tests.models.company import differences, follow, play, rectangle
from tests.support.tiny_models import VOCAB


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parallel", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--kv-bits", type=int, default=0)
    parser.add_argument("--kv-bits-from", type=int, default=0)
    parser.add_argument("names", nargs="+")
    options = parser.parse_args()
    logging.disable()
    link = Link(mx.distributed.init(strict=True))
    for name in options.names:
        shard = load(name, options, link)
        if link.rank:
            for one in (rectangle(shard), shard, shard):
                follow(one)
            continue
        right = play(rectangle(shard), options.seed)
        shelved = play(shard, options.seed, right.plan)
        drafted = play(shard, options.seed, right.plan, right)
        differs = [*differences(right, shelved), *differences(right, drafted)]
        found = {"name": name, "ways": str(shard.last.ways), "differs": differs}
        found |= {"pauses": shelved.pauses, "drafted": drafted.drafted}
        print(json.dumps(found | {"precision": shard.last.ways.precision}), flush=True)


def load(name: str, options: argparse.Namespace, link: Link) -> SimpleNamespace:
    """This rank's part of a small model, as a server has it."""
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), name)
        memories = [None] * link.size
        split = at_once(load_split(path, options.parallel, link, memories, lambda stage: None))
        last = LastLogits(split.model, put_heads(split.model))
        last.alike = "pipeline" not in split.arrangement.kind
        mx.eval(split.model.parameters())
    last.prove(link)
    bits = options.kv_bits, options.kv_bits_from
    at_once(prove_ways(last, VOCAB, link, lambda stage: None, *bits))
    return SimpleNamespace(model=split.model, last=last, vocab=VOCAB)


if __name__ == "__main__":
    main()
