"""Which numbers of a model mlx-lm's shard() divides by the ranks, read from its config.json.

Pure; called before launch and on every rank. Imports no mlx.
"""

from collections.abc import Iterator

from server.startup.mlx_lm_source import Architecture

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


def tensor_obstacles(config: dict, architecture: Architecture, ranks: int) -> list[str]:
    """Why mlx-lm's shard() cannot split this model over so many ranks, a sentence each."""
    if not architecture.can_shard:
        return [f"mlx-lm's {architecture.name} has no tensor parallelism"]
    return [
        f"{name} is {value}, which does not divide by {ranks} ranks"
        for name, value in divided_values(sizes_of(config), architecture)
        if value % ranks and not (name in _repeated(architecture) and ranks % value == 0)
    ]


def sizes_of(config: dict) -> dict:
    """The sizes of the language model: of a multi-modal config those of its text part."""
    text = config.get("text_config")
    return {**config, **(text if isinstance(text, dict) else {})}


def divided_values(sizes: dict, architecture: Architecture) -> Iterator[tuple[str, int]]:
    """Each number that tensor parallelism divides by the ranks, with the name to report."""
    for key, names in SPLIT_COUNTS:
        if names & architecture.shard_names and number(sizes, key):
            yield key, sizes[key]
    if "lm_head" in architecture.shard_names and not sizes.get("tie_word_embeddings", False):
        yield "vocab_size", number(sizes, "vocab_size")

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


def number(sizes: dict, key: str) -> int:
    """A size of config.json; 0 when it is absent, null or no whole number."""
    value = sizes.get(key)
    return value if isinstance(value, int) and value > 0 else 0


def _repeated(architecture: Architecture) -> set[str]:
    """Counts smaller than the number of ranks that shard() makes up for by repeating."""
    return {"num_key_value_heads"} if "repeat" in architecture.shard_names else set()


def _mlp_widths(sizes: dict) -> dict[str, int]:
    keys = [key for key in EXPERT_WIDTHS if number(sizes, key)]
    if not keys or _has_dense_layers(sizes):
        keys += [key for key in DENSE_WIDTHS if number(sizes, key)]
    return {key: sizes[key] for key in keys}


def _has_dense_layers(sizes: dict) -> bool:
    """Whether a mixture-of-experts model also has plain MLP layers, which use other widths."""
    if "first_k_dense_replace" in sizes:
        return number(sizes, "first_k_dense_replace") > 0
    if "mlp_only_layers" in sizes or "decoder_sparse_step" in sizes:
        return bool(sizes.get("mlp_only_layers")) or number(sizes, "decoder_sparse_step") > 1
    return True


def _attention_widths(sizes: dict, architecture: Architecture) -> Iterator[tuple[str, int]]:
    """The input widths of the attention's output projections."""
    heads = number(sizes, "num_attention_heads")
    if not heads:
        return
    if "o_groups" in architecture.shard_names:
        groups, rank = number(sizes, "o_groups"), number(sizes, "o_lora_rank")
        yield "o_groups * o_lora_rank", groups * rank
        return
    # MLA's values have a size of their own; keys and queries are wider.
    for key in ("v_head_dim", "head_dim"):
        if number(sizes, key):
            yield f"num_attention_heads * {key}", heads * sizes[key]
            break
    else:
        yield "hidden_size", number(sizes, "hidden_size") // heads * heads
    if "num_v_heads" in architecture.shard_names:
        size = number(sizes, "linear_num_value_heads") * number(sizes, "linear_value_head_dim")
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
