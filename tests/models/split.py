"""Small models on several ranks of one machine, split in one way: what each of them came to.

    nice .venv/bin/python -m tests.models.split --parallel tensor|pipeline|auto [--ranks 2]
        [--bits 4] [--unknowing] [NAME...]

Without names all architectures that mlx-lm cannot split so by itself. Exit code 1 where an answer
differs from that of the model as a whole; a model that is refused is not wrong. --unknowing: as if
nobody knew yet which architectures a generic split does not suit: it has to be found out.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from server.startup.mlx_lm_source import find_architecture, mlx_lm_folder
from tests.models.architectures import architectures
from tests.support.cluster import engine_environment
from tests.support.paths import ROOT
from tests.support.ports import free_port


def run(
    names: Sequence[str],
    parallel: str,
    ranks: int = 2,
    bits: int | None = None,
    unknowing: bool = False,
    memories: Sequence[int] = (),
    as_large: bool = False,
) -> Iterator[dict[str, str]]:
    """What split_rank.py says of each name. memories: bytes of each rank. as_large: prove the split
    as that of a large model, with some of its layers. Raises RuntimeError where ranks end without a
    word."""
    command = ["tests.models.split_rank", "--parallel", parallel]
    command += ["--bits", str(bits)] * bool(bits) + ["--unknowing"] * unknowing
    command += ["--as-large"] * as_large
    command += ["--memories", json.dumps(memories)] * bool(memories) + [*names]
    said = 0
    for found in on_ranks(command, ranks):
        said += 1
        yield found
    if said < len(names):
        raise RuntimeError(f"the ranks ended at {names[said]}")


def on_ranks(command: Sequence[str], ranks: int) -> Iterator[dict[str, str]]:
    """What rank 0 of a program says, each line of JSON. command: its module, and arguments."""
    first = free_port(ranks)
    with tempfile.TemporaryDirectory() as folder:
        hosts = Path(folder, "hosts.json")
        hosts.write_text(json.dumps([[f"127.0.0.1:{first + rank}"] for rank in range(ranks)]))
        env = {**os.environ, **engine_environment(), "MLX_HOSTFILE": str(hosts)}
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", *command], cwd=ROOT, env={**env, "MLX_RANK": str(rank)},
                stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL, text=True,
            )
            for rank in range(ranks)
        ]  # fmt: skip
        try:
            yield from (json.loads(line) for line in processes[0].stdout if line.startswith("{"))
        finally:
            for process in processes:
                process.kill()
                process.wait()


def unsplit(parallel: str) -> list[str]:
    """Architectures that mlx-lm cannot split so."""
    found = []
    for name in architectures():
        one = find_architecture({"model_type": name}, mlx_lm_folder())
        if one is None or not (one.can_shard if parallel == "tensor" else one.can_pipeline):
            found.append(name)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="split")
    parser.add_argument("--parallel", required=True, choices=("tensor", "pipeline", "auto"))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--bits", type=int)
    parser.add_argument("--unknowing", action="store_true")
    parser.add_argument("names", nargs="*", metavar="NAME")
    options = parser.parse_args()
    counts = {"right": 0, "refused": 0, "wrong": 0}
    names = options.names or unsplit(options.parallel)
    for found in run(names, options.parallel, options.ranks, options.bits, options.unknowing):
        name = found.pop("name")
        ((kind, words),) = found.items()
        counts[kind] += 1
        print(f"{name:24} {kind}: {words}", flush=True)
    print(", ".join(f"{count} {kind}" for kind, count in counts.items()))
    return bool(counts["wrong"])


if __name__ == "__main__":
    sys.exit(main())
