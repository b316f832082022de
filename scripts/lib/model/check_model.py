#!/usr/bin/env python3
"""Refuse, before launch, a model that the ranks could not load or share.

usage: check_model.py MODEL_DIR RANKS [--parallel KIND] [--trust-remote-code] [--full] [--json]
                      [--kv-bits BITS] [--draft DRAFT_MODEL_DIR]

Checks that the folder is whole, that the installed mlx-lm knows the architecture, and
that there is a way to share it among so many ranks; with --draft, that the draft model's
folder is whole and has the same tokens. KIND is PARALLEL's: auto, tensor or pipeline.
Exit code 0: it will do; 1: it will not, with the reasons on stderr; 2: usage;
3: mlx-lm is not installed. --json prints the verdict on stdout.

It never imports mlx, loads no weights and runs nothing of the model folder. --full, for the doctor,
imports it, loads the tokenizer too, and reckons the KV cache, in KV_BITS: what check_model.sh
shows.
"""

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from scripts.lib.hosts.reach import MOST_RANKS
from scripts.lib.model.draft_check import reasons_against
from scripts.lib.model.look import look
from scripts.lib.verbs.parser import Parser
from scripts.lib.verbs.shared import one_of, whole
from server.protocol.settings import bits_of
from server.protocol.settings_table import BY_NAME
from server.startup.arrangement import KINDS, Arrangement, arrangements, choose
from server.startup.weights_index import Weight, read_weights, total

RANK_COUNTS = range(1, MOST_RANKS + 1)


@dataclass(frozen=True)
class Verdict:
    """What check() found. `rank_counts` are those of 1 to 8 that would work; `arrangement` is how
    the ranks asked for would share it, None if they cannot; `ways`: all that are possible. With
    --full, `formats` is how the model writes, `kv` what a request and a token take on each rank.
    draft_bytes: of the draft model's weights, all of which rank 0 holds."""

    model_type: str | None
    ok: bool
    rank_counts: list[int]
    reasons: list[str]
    arrangement: str | None = None
    ways: list[str] = field(default_factory=list)
    formats: dict | None = None
    kv: list[dict] = field(default_factory=list)
    draft_bytes: int = 0


def check(
    folder: Path,
    ranks: int,
    parallel: str = "auto",
    trust: bool = False,
    full: bool = False,
    kv_bits: int = 0,
    draft: Path | None = None,
) -> Verdict:
    """Whether the model in `folder` runs on `ranks` ranks, split as `parallel` says. trust: code of
    the folder may be run for its tokenizer. full: with what needs mlx. kv_bits: 0: all. draft: the
    draft model's folder.

    Raises RuntimeError when mlx-lm is not installed for this interpreter.
    """
    looked = look(folder, trust)
    reasons, config, architecture = looked.reasons, looked.config, looked.architecture
    model_type = config.get("model_type")
    if draft is not None:
        reasons += reasons_against(draft, folder, trust)
    if architecture is None:
        return Verdict(model_type, False, [], reasons)
    weights = weights_of(folder)

    def found(count: int) -> tuple[Arrangement, ...]:
        return arrangements(config, weights, count, (), architecture, parallel)

    rank_counts = [count for count in RANK_COUNTS if choose(found(count))]
    chosen = choose(found(ranks))
    if chosen is None:
        reasons += [f"{one.kind}: {reason}" for one in found(ranks) for reason in one.reasons]
    ways = [one.kind for one in found(ranks) if one.possible]
    taken = str(chosen) if chosen else None
    formats, kv = None, []
    if full:
        from scripts.lib.model.model_report import kv_of, writing

        formats, unreadable = writing(folder, looked, trust)
        reasons += unreadable
        kv = kv_of(config, architecture.name, ranks, chosen, kv_bits) if chosen else []
    drafts = total(weights_of(draft)) if draft is not None else 0
    return Verdict(model_type, not reasons, rank_counts, reasons, taken, ways, formats, kv, drafts)


def weights_of(folder: Path) -> dict[str, Weight]:
    """Names, shapes and bytes of the folder's weights; none where its files are not whole, which is
    told elsewhere."""
    try:
        return read_weights(folder)
    except (OSError, ValueError):
        return {}


def main(arguments: list[str] | None = None) -> int:
    parser = Parser("check_model.py", __doc__)
    parser.add_argument("model_dir", type=Path, metavar="MODEL_DIR")
    parser.add_argument("ranks", type=whole(1, 10**6), metavar="RANKS")
    parser.add_argument("--parallel", type=one_of(*KINDS), default="auto")
    parser.add_argument("--trust-remote-code", action="store_true")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--kv-bits", type=one_of(*BY_NAME["KV_BITS"].choices), default="off")
    parser.add_argument("--draft", type=Path, metavar="DRAFT_MODEL_DIR")
    options = parser.parse_args(arguments)
    try:
        verdict = check(
            options.model_dir,
            options.ranks,
            options.parallel,
            options.trust_remote_code,
            options.full,
            bits_of(options.kv_bits),
            options.draft,
        )
    except RuntimeError as error:
        print(f"check_model: {error}", file=sys.stderr)
        return 3
    if options.json:
        print(json.dumps(asdict(verdict)))
    for reason in verdict.reasons:
        print(f"check_model: {reason}", file=sys.stderr)
    if not verdict.ok and verdict.rank_counts:
        counts = ", ".join(map(str, verdict.rank_counts))
        print(
            f"check_model: with --parallel {options.parallel}, rank counts that work: {counts}",
            file=sys.stderr,
        )
    return 0 if verdict.ok else 1


if __name__ == "__main__":
    sys.exit(main())
