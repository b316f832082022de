#!/usr/bin/env python3
"""Refuse, before launch, a model that the ranks could not load or share.

usage: check_model.py MODEL_DIR RANKS [--parallel tensor|pipeline] [--trust-remote-code] [--json]

Checks that the folder is whole, that the installed mlx-lm knows the architecture and
can split it in the way asked for, and that its heads, widths and quantisation groups
divide by the number of ranks. Exit code 0: it will do; 1: it will not, with the reasons
on stderr; 2: usage; 3: mlx-lm is not installed. --json prints the verdict on stdout.

It never imports mlx, loads no weights and runs nothing of the model folder.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from scripts.lib.hosts.reach import MOST_RANKS
from scripts.lib.model.mlx_lm_source import Architecture, find_architecture, mlx_lm_folder
from scripts.lib.model.model_folder import INDEX_FILE, folder_problems, read_json
from scripts.lib.verbs.parser import Parser
from scripts.lib.verbs.shared import one_of, whole
from server.protocol.tokenizer_code import must_run

RANK_COUNTS = range(1, MOST_RANKS + 1)

# Values of config.json that shard() divides by the number of ranks, with the names
# that shard() then mentions. An architecture that keeps something whole (MLA has no
# KV heads to split) does not mention it, and the value may be anything.
SPLIT_COUNTS = (
    ("num_attention_heads", {"n_heads", "num_heads", "num_attention_heads"}),
    ("num_key_value_heads", {"n_kv_heads", "num_kv_heads", "num_key_value_heads"}),
    ("num_attention_groups", {"num_kv_heads"}),
    ("linear_num_key_heads", {"num_k_heads"}),
    ("linear_num_value_heads", {"num_v_heads"}),
    ("index_n_heads", {"index_n_heads"}),
    ("o_groups", {"o_groups"}),
)
DENSE_WIDTHS = ("intermediate_size", "dense_intermediate_size", "ffn_hidden_size")
EXPERT_WIDTHS = (
    "moe_intermediate_size",
    "expert_ffn_hidden_size",
    "shared_expert_intermediate_size",
    "shared_intermediate_size",
    "share_expert_dim",
)


@dataclass(frozen=True)
class Verdict:
    """What check() found. `rank_counts` are those of 1 to 8 that would work."""

    model_type: str | None
    ok: bool
    rank_counts: list[int]
    reasons: list[str]


def check(folder: Path, ranks: int, parallel: str = "tensor", trust: bool = False) -> Verdict:
    """Whether the model in `folder` runs on `ranks` ranks, split as `parallel` says. trust: code of
    the folder may be run for its tokenizer.

    Raises RuntimeError when mlx-lm is not installed for this interpreter.
    """
    package = mlx_lm_folder()
    if package is None:
        raise RuntimeError(f"mlx-lm is not installed for {sys.executable}")
    reasons = folder_problems(folder)
    code = must_run(folder)
    if code is not None and not trust:
        reasons.append(code.refusal)
    if folder.name.endswith(".partial"):
        reasons.append(f"{folder} is an unfinished copy: run scripts/sync_model.sh again")
    try:
        config = read_json(folder / "config.json")
    except ValueError:
        return Verdict(None, False, [], reasons)
    model_type = config.get("model_type")

    if config.get("model_file") is not None:
        reasons.append(
            f"config.json wants to run code of its own (model_file is {config['model_file']!r}), "
            "which is not allowed"
        )
        return Verdict(model_type, False, [], reasons)
    architecture = find_architecture(config, package)
    if architecture is None:
        reasons.append(f"model_type is {model_type!r}, which the installed mlx-lm does not know")
        return Verdict(model_type, False, [], reasons)

    if parallel == "pipeline" and ranks > 1 and not (folder / INDEX_FILE).exists():
        reasons.append(f"{INDEX_FILE} is missing: a pipeline finds its layers by it")
    rank_counts = [n for n in RANK_COUNTS if not obstacles(config, architecture, n, parallel)]
    reasons += obstacles(config, architecture, ranks, parallel)
    return Verdict(model_type, not reasons, rank_counts, reasons)


def obstacles(config: dict, architecture: Architecture, ranks: int, parallel: str) -> list[str]:
    """Why this architecture with this config cannot be split over `ranks`, a sentence each."""
    if ranks == 1:
        return []
    sizes = {**config, **_text_config(config)}
    if parallel == "pipeline":
        if not architecture.can_pipeline:
            return [f"mlx-lm's {architecture.name} cannot be split into a pipeline"]
        layers = _number(sizes, "num_hidden_layers") or _number(sizes, "num_layers")
        if 0 < layers < ranks:
            return [f"num_hidden_layers is {layers}: too few for a pipeline of {ranks} ranks"]
        return []
    if not architecture.can_shard:
        return [f"mlx-lm's {architecture.name} has no tensor parallelism"]
    return [
        f"{name} is {value}, which does not divide by {ranks} ranks"
        for name, value in divided_values(sizes, architecture)
        if value % ranks and not (name in _repeated(architecture) and ranks % value == 0)
    ]


def divided_values(sizes: dict, architecture: Architecture) -> Iterator[tuple[str, int]]:
    """Each number that tensor parallelism divides by the ranks, with the name to report."""
    for key, names in SPLIT_COUNTS:
        if names & architecture.shard_names and _number(sizes, key):
            yield key, sizes[key]
    if "lm_head" in architecture.shard_names and not sizes.get("tie_word_embeddings", False):
        yield "vocab_size", _number(sizes, "vocab_size")

    widths = _mlp_widths(sizes)
    yield from widths.items()

    # The layers that add up the ranks' parts are cut along the quantisation groups.
    inputs = [(name, width, "down_proj") for name, width in widths.items()]
    inputs += [(name, width, "o_proj") for name, width in _attention_widths(sizes, architecture)]
    seen = set()
    for name, width, layer in inputs:
        for group_size in sorted(_group_sizes(sizes, layer)):
            # Layers whose width is no multiple of the group are left unquantised.
            if width % group_size == 0 and (name, group_size) not in seen:
                seen.add((name, group_size))
                yield (
                    f"{name} in quantisation groups ({width} / {group_size})",
                    width // group_size,
                )


def _number(sizes: dict, key: str) -> int:
    """A size of config.json; 0 when it is absent, null or no whole number."""
    value = sizes.get(key)
    return value if isinstance(value, int) and value > 0 else 0


def _text_config(config: dict) -> dict:
    """The language model's part of a multi-modal config, else nothing."""
    text = config.get("text_config")
    return text if isinstance(text, dict) else {}


def _repeated(architecture: Architecture) -> set[str]:
    """Counts smaller than the number of ranks that shard() makes up for by repeating."""
    return {"num_key_value_heads"} if "repeat" in architecture.shard_names else set()


def _mlp_widths(sizes: dict) -> dict[str, int]:
    keys = [key for key in EXPERT_WIDTHS if _number(sizes, key)]
    if not keys or _has_dense_layers(sizes):
        keys += [key for key in DENSE_WIDTHS if _number(sizes, key)]
    return {key: sizes[key] for key in keys}


def _has_dense_layers(sizes: dict) -> bool:
    """Whether a mixture-of-experts model also has plain MLP layers, which use other widths."""
    if "first_k_dense_replace" in sizes:
        return _number(sizes, "first_k_dense_replace") > 0
    if "mlp_only_layers" in sizes or "decoder_sparse_step" in sizes:
        return bool(sizes.get("mlp_only_layers")) or _number(sizes, "decoder_sparse_step") > 1
    return True


def _attention_widths(sizes: dict, architecture: Architecture) -> Iterator[tuple[str, int]]:
    """The input widths of the attention's output projections."""
    heads = _number(sizes, "num_attention_heads")
    if not heads:
        return
    if "o_groups" in architecture.shard_names:
        groups, rank = _number(sizes, "o_groups"), _number(sizes, "o_lora_rank")
        yield "o_groups * o_lora_rank", groups * rank
        return
    # MLA's values have a size of their own; keys and queries are wider.
    for key in ("v_head_dim", "head_dim"):
        if _number(sizes, key):
            yield f"num_attention_heads * {key}", heads * sizes[key]
            break
    else:
        yield "hidden_size", _number(sizes, "hidden_size") // heads * heads
    if "num_v_heads" in architecture.shard_names:
        size = _number(sizes, "linear_num_value_heads") * _number(sizes, "linear_value_head_dim")
        yield "linear_num_value_heads * linear_value_head_dim", size


def _group_sizes(config: dict, layer: str) -> set[int]:
    """The quantisation group sizes that layers called `layer` have; empty when unquantised."""
    quantization = config.get("quantization") or config.get("quantization_config")
    if not isinstance(quantization, dict):
        return set()
    by_method = {"mxfp4": 32, "mxfp8": 32, "compressed-tensors": 32}
    default = quantization.get("group_size") or by_method.get(quantization.get("quant_method"))
    sizes = {default}
    for module, own in quantization.items():
        # Layers may have settings of their own, by full name.
        if isinstance(own, dict) and module.rpartition(".")[2] == layer:
            sizes.add(own.get("group_size"))
    return {size for size in sizes if isinstance(size, int) and size > 0}


def main(arguments: list[str] | None = None) -> int:
    parser = Parser("check_model.py", __doc__)
    parser.add_argument("model_dir", type=Path, metavar="MODEL_DIR")
    parser.add_argument("ranks", type=whole(1, 10**6), metavar="RANKS")
    parser.add_argument("--parallel", type=one_of("tensor", "pipeline"), default="tensor")
    parser.add_argument("--trust-remote-code", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    try:
        verdict = check(
            options.model_dir, options.ranks, options.parallel, options.trust_remote_code
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
