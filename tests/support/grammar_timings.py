"""Measures what grammars cost rank 0: compiling, and the mask of each step. Not a test.

    python -m tests.support.grammar_timings MODEL_DIR [LOGITS]

Prints milliseconds, median / p99 / worst: of 20 compilations of a schema that is new each time
(the child's and rank 0's), of masks with the token's acceptance over random walks, and of applying
masks to float32 logits on the default device. LOGITS: sizes of the last axis, with commas.
"""

import random
import sys
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
from transformers import AutoTokenizer

from server.protocol.requests import Format, ToolChoice
from server.sampling.token_masks import apply_mask
from tests.support.grammar_walks import Walker, allowed_ids

RUNS, STEPS = 20, 100
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0},
        "mail": {"type": "string", "format": "email"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "zip": {"type": "string"}},
            "required": ["street", "zip"],
        },
    },
    "required": ["name", "age", "mail", "tags", "address"],
}
LARK = """
start: e
e: N | e "+" e | "(" e ")"
N: /[0-9]{1,MOST}/
"""
WIDE = {"type": "object", "properties": {f"field_{n}": {"type": "string"} for n in range(500)}}


def formats(run: int) -> dict[str, Format]:
    """One of each kind, new for each run, so that none is had from the cache."""
    return {
        "json_object": Format("json_object"),
        "schema": Format("json_schema", {**PERSON, "$comment": str(run)}, True),
        "wide schema": Format("json_schema", {**WIDE, "$comment": str(run)}),
        "regex": Format("regex", rf"\d{{3}}-\d{{4}}(, [a-z]{{3,{run + 20}}})*"),
        "choice": Format("choice", [f"choice {run} {n}" for n in range(100)]),
        "lark": Format(
            "lark", f'start: e\ne: N | e "+" e | "(" e ")"\nN: /[0-9]{{1,{run + 3}}}/\n'
        ),
    }


def tools(run: int) -> list[dict]:
    names = [f"tool_{run}_{n}" for n in range(20)]
    return [
        {"type": "function", "function": {"name": name, "parameters": PERSON}} for name in names
    ]


def show(name: str, times: list[float]) -> None:
    times = sorted(1e3 * t for t in times)
    p99 = times[min(len(times) - 1, int(len(times) * 0.99))]
    print(f"{name:28} {times[len(times) // 2]:9.3f} {p99:9.3f} {times[-1]:9.3f}")


def step_times(walker: Walker, matcher, seed: int) -> list[float]:
    rng, times = random.Random(seed), []
    for _ in range(STEPS):
        began = time.perf_counter()
        mask = matcher.mask()
        spent = time.perf_counter() - began
        token = int(rng.choice(allowed_ids(mask)))
        began = time.perf_counter()
        matcher.accept(token)
        times.append(spent + time.perf_counter() - began)
        if token == walker.eos:
            break
    return times


def measure_grammars(walker: Walker) -> None:
    began = time.perf_counter()
    walker.grammars.warm()
    print(f"the first compilation, with the tokenizers: {time.perf_counter() - began:.2f} s")
    makers = {
        name: lambda run, name=name: walker.grammars.compile(formats(run)[name])
        for name in formats(0)
    }
    makers["20 tools required"] = lambda run: walker.grammars.compile_calls(
        tools(run), ToolChoice("required"), True
    )
    for name, make in makers.items():
        compiled, steps, starts = [], [], []
        for run in range(RUNS):
            began = time.perf_counter()
            grammar = make(run)
            compiled.append(time.perf_counter() - began)
            began = time.perf_counter()
            matcher = grammar.matcher()
            starts.append(time.perf_counter() - began)
            steps += step_times(walker, matcher, run)
        show(f"{name}: compile", compiled)
        show(f"{name}: start", starts)
        show(f"{name}: step", steps)


def measure_masks(vocabs: list[int]) -> None:
    for vocab in vocabs:
        logits = mx.random.normal((8, vocab))
        for rows in ([0], list(range(8))):
            masks = np.random.randint(0, 2**32, (len(rows), -(-vocab // 32)), dtype=np.uint32)
            times = []
            for _ in range(50):
                mx.eval(logits)
                began = time.perf_counter()
                mx.eval(apply_mask(logits, rows, masks))
                times.append(time.perf_counter() - began)
            show(f"apply {len(rows)} of 8, {vocab}", times)
        times = []
        for _ in range(50):
            began = time.perf_counter()
            mx.eval(apply_mask(logits[:1], [0], masks[:1]))
            times.append(time.perf_counter() - began)
        show(f"apply 1 of 1, {vocab}", times)


def main() -> None:
    folder = Path(sys.argv[1])
    vocabs = [int(n) for n in (sys.argv[2] if len(sys.argv) > 2 else "49152,151936").split(",")]
    walker = Walker(folder, len(AutoTokenizer.from_pretrained(folder)))
    print(f"{'milliseconds':28} {'median':>9} {'p99':>9} {'worst':>9}")
    try:
        measure_grammars(walker)
    finally:
        walker.grammars.close()
    measure_masks(vocabs)


if __name__ == "__main__":
    main()
