"""One rank of a few that serve small models split, and compare each with the model as a whole.

Started by split.py, once for each rank. Rank 0 writes a line of JSON for each model.
"""

import argparse
import json
import logging
import os
import tempfile
from pathlib import Path

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from server.engine.last_logits import LastLogits, put_heads
from server.startup import mlx_lm_source, split_proof
from server.startup.batching import prove_ways
from server.startup.loading import NO_METAL
from server.startup.piece_pace import at_once
from server.startup.splitting import load_split
from server.wire.link import Link
from tests.models.architectures import write

PROMPT, CUT, TOKENS = [(7 * i) % 250 + 3 for i in range(37)], 20, 16
CLOSE = 1e-3  # of the largest logit


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parallel", required=True)
    parser.add_argument("--bits", type=int)
    parser.add_argument("--unknowing", action="store_true")
    parser.add_argument("--memories", type=json.loads)
    parser.add_argument("--as-large", action="store_true")
    parser.add_argument("names", nargs="+")
    options = parser.parse_args()
    if options.unknowing:
        mlx_lm_source.UNFIT = {}
    if options.as_large:
        split_proof.WHOLE_MOST = 0
    link = Link(mx.distributed.init(strict=True))
    if not os.environ.get("SPLIT_LOG"):
        logging.disable()
    for name in options.names:
        memories = options.memories or [None] * link.size
        try:
            found = try_one(name, options.parallel, options.bits, memories, link)
        except RuntimeError as error:
            if NO_METAL not in str(error):
                raise
            found = {"refused": str(error)}
        if link.rank == 0:
            print(json.dumps({"name": name, **found}), flush=True)


def try_one(
    name: str, parallel: str, bits: int | None, memories: list[int | None], link: Link
) -> dict[str, str]:
    """{"refused": why}, {"wrong": what}, or {"right": how}. Every rank calls it."""
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), name, bits=bits)
        try:
            split = at_once(load_split(path, parallel, link, memories, lambda stage: None))
        except ValueError as error:
            return {"refused": str(error)}
        model = split.model
        last = LastLogits(model, put_heads(model))
        last.alike = "pipeline" not in split.arrangement.kind
        mx.eval(model.parameters())
        try:
            last.prove(link)
            # Batches of unequal prompts, joins and leaves, as the engine computes them here.
            ways = at_once(prove_ways(last, 264, link, lambda stage: None))
            text = greedy(model)
        except ValueError as error:
            return {"wrong": str(error)}
        # From the same files: some models make something else of their weights as they are loaded.
        apart = behind(load_model(path)[0], text)
    if not apart <= CLOSE:
        return {"wrong": f"a token is {apart:.2g} of the largest logit behind the likeliest"}
    return {"right": f"{split.arrangement}, {ways}"}


def greedy(model) -> list[int]:
    """As a server would: the prompt in two pieces, of which the first gives caches alone."""
    caches = make_prompt_cache(model)
    model(mx.array([PROMPT[:CUT]]), cache=caches)
    mx.eval([cache.state for cache in caches])
    text, ids = [], PROMPT[CUT:]
    for _ in range(TOKENS):
        ids = [mx.argmax(model(mx.array([ids]), cache=caches)[0, -1]).item()]
        text += ids
    return text


def behind(whole, text: list[int]) -> float:
    """How far a token is behind the likeliest, by the whole model, at most. Some see how a prompt is
    cut."""
    caches, ids, worst = make_prompt_cache(whole), PROMPT[CUT:], 0.0
    whole(mx.array([PROMPT[:CUT]]), cache=caches)
    for token in text:
        logits = whole(mx.array([ids]), cache=caches)[0, -1]
        size = mx.max(mx.abs(mx.where(mx.isfinite(logits), logits, 0)))
        worst = max(worst, ((mx.max(logits) - logits[token]) / size).item())
        ids = [token]
    return worst


if __name__ == "__main__":
    main()
