"""What of a model can be split over ranks, by the names and shapes of its projections.

Pure; imports no mlx. Of the files' weights it says before launch whether a split is worth it; of a
loaded layer's it says, in the same words, what to cut (generic_tensor.py).

Attention is split by its heads, a feed-forward block by its width: the projections into it by rows,
the one out of it by columns, whose products are then added up over the ranks. A block in which
anything is unknown stays whole, on every rank.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

from server.startup.tensor_sizes import number
from server.startup.weights_index import Weight, by_layer, total

# The least part of the layers' bytes for which a split is worth its collectives.
LEAST_SHARE = 0.5

LEAVES = ("weight", "bias", "scales", "biases")
Q, K, V = {"q_proj", "wq", "c_q"}, {"k_proj", "wk", "c_k"}, {"v_proj", "wv", "c_v"}
OUT = {"o_proj", "out_proj", "dense", "wo", "c_proj"}
# Queries, keys and values in one: one after another, or those of each KV head together.
IN_ONE = {"qkv_proj", "Wqkv", "c_attn", "query_key_value"}
IN_GROUPS = {"wqkv"}
NORMS = {
    *("q_norm", "k_norm", "q_layernorm", "k_layernorm", "query_layernorm", "key_layernorm"),
    *("q_layer_norm", "k_layer_norm", "v_norm"),
}
GATES = {"g_proj", "gate_proj"}
# Attention over a latent: what makes the latents is whole, what makes heads of them is split.
LATENTS = {"q_a_proj", "q_a_layernorm", "kv_a_proj_with_mqa", "kv_a_layernorm", "kv_a_norm"}
OF_LATENTS = {"q_b_proj", "kv_b_proj"}
BY_HEAD = {"embed_q", "unembed_out"}
# Feed-forward: the projections in, the one out, and whether the first is two in one.
FEED_FORWARD = (
    (("gate_proj", "up_proj"), "down_proj", False),
    (("gate_up_proj",), "down_proj", True),
    (("up_proj",), "down_proj", False),
    (("w1", "w3"), "w2", False),
    (("w1", "w2"), "c_proj", False),
    (("fc1",), "fc2", False),
    (("fc_in",), "fc_out", False),
    (("c_fc",), "c_proj", False),
    (("c_fc_0", "c_fc_1"), "c_proj", False),
    (("dense_h_to_4h",), "dense_4h_to_h", False),
    (("input_linear",), "output_linear", True),
    (("proj_1",), "proj_2", True),
)
# Beside experts: whatever it is that weighs them, every rank computes it alike.
ROUTING = {
    *("gate", "router", "expert_bias", "e_score_correction_bias", "shared_expert_gate"),
    *("shared_experts_gate", "coefficient", "wg"),
}
# Not weights of a layer as mlx-lm has it, though some files have them.
TABLES = re.compile(r"rotary_emb|inv_freq|rope|masked_bias|attn\.bias$|weight_scale(_inv)?$")


@dataclass(frozen=True)
class Block:
    """An attention or feed-forward block of a layer, by its path in there. rows: projections that
    are cut by rows, each with the places where one of several in one ends; columns: the one that
    is cut by columns; first: arrays and modules with the heads on their first axis. heads: of
    queries, and of keys and values; (0, 0) of a feed-forward block. partial_at: where the ranks'
    parts are added up, the block's own path unless its neighbours are added up with it."""

    path: str
    rows: tuple[tuple[str, tuple[int, ...]], ...]
    columns: str
    first: tuple[str, ...] = ()
    heads: tuple[int, int] = (0, 0)
    head_size: int = 0
    experts: bool = False
    partial_at: str | None = None
    nbytes: int = 0  # that are split


@dataclass(frozen=True)
class LayerPlan:
    """blocks: what is split; whole: paths of blocks that are not, with the reason."""

    blocks: tuple[Block, ...]
    whole: Mapping[str, str]


@dataclass(frozen=True)
class Plan:
    """reasons: why there is none. split_bytes: bytes of weights that are split over the ranks."""

    reasons: tuple[str, ...] = ()
    split_bytes: int = 0
    layers: tuple[LayerPlan, ...] = field(default=(), repr=False)


class _Unknown(ValueError):
    """Why a block stays whole."""


def plan_split(weights: Mapping[str, Weight], sizes: dict, ranks: int) -> Plan:
    """What can be split of a whole model. sizes: its config's, for the numbers of heads."""
    layers, _ = by_layer(weights)
    if not layers:
        return Plan(("the names of its weights are not known",))
    return plan_layers(layers, sizes, ranks)


def plan_layers(layers: list[dict[str, Weight]], sizes: dict, ranks: int) -> Plan:
    """The same, of layers by the names within them."""
    plans = tuple(plan_layer(layer, sizes, ranks) for layer in layers)
    split = sum(block.nbytes for plan in plans for block in plan.blocks)
    every = sum(map(total, layers))
    if split >= LEAST_SHARE * every:
        return Plan((), split, plans)
    found = dict.fromkeys(f"{path}: {why}" for plan in plans for path, why in plan.whole.items())
    why = f"; {'; '.join(list(found)[:3])}" if found else ""
    reason = f"{100 * split // max(1, every)} % of its layers can be split by names{why}"
    return Plan((reason,), split, plans)


def plan_layer(layer: Mapping[str, Weight], sizes: dict, ranks: int) -> LayerPlan:
    """What can be split of one layer."""
    parents = _by_parent(layer)
    blocks, whole = [], {}
    for path, children in parents.items():
        below = [other for other in parents if other.startswith(f"{path}.")]
        try:
            block = _attention(path, children, below, sizes, ranks)
            block = block or _feed_forward(path, children, below, ranks)
        except _Unknown as why:
            whole[path] = str(why)
            continue
        except LookupError:  # a layout of weights that mlx-lm turns into its own as it loads
            whole[path] = "the shapes of its weights are not known"
            continue
        if block is not None:
            blocks.append(block)
    return LayerPlan(tuple(_gather(blocks, parents)), whole)


Children = dict[str, dict[str, Weight]]


def _by_parent(layer: Mapping[str, Weight]) -> dict[str, Children]:
    """parent path -> child -> its arrays; an array that is no module's has the name ""."""
    found: dict[str, Children] = {}
    for name, weight in layer.items():
        if TABLES.search(name):
            continue
        path, _, leaf = name.rpartition(".")
        if leaf in LEAVES and path:
            parent, _, child = path.rpartition(".")
        else:
            parent, child, leaf = path, leaf, ""
        found.setdefault(parent, {}).setdefault(child, {})[leaf] = weight
    return found


def _attention(
    path: str, children: Children, below: list[str], sizes: dict, ranks: int
) -> Block | None:
    """Its plan, None where this is no attention. Raises _Unknown."""
    names = children.keys()
    out = _one(names & OUT)
    query = _one(names & Q) or _one(names & {"q_b_proj"})
    in_one, in_groups = _one(names & IN_ONE), _one(names & IN_GROUPS)
    if out is None or not (query or in_one or in_groups):
        return None
    if below:
        raise _Unknown(f"{below[0]} is not known")
    latent = "kv_a_proj_with_mqa" in names
    heads, kv_heads, head_size = _heads(children, query, in_one, _one(names & K), sizes)
    if heads % ranks:
        raise _Unknown(f"{heads} heads do not divide by {ranks} ranks")
    if not latent and kv_heads % ranks:
        raise _Unknown(f"{kv_heads} KV heads do not divide by {ranks} ranks")
    rows: list[tuple[str, tuple[int, ...]]] = []
    first: list[str] = []
    for name, child in children.items():
        shape = child.get("weight", next(iter(child.values()))).shape
        if name == out or (latent and name in LATENTS) or prod(shape) == 1:
            continue
        if name in BY_HEAD or (shape == (heads,) and "" in child):
            first.append(name)
        elif name in IN_ONE:
            rows.append((name, (heads * head_size, (heads + kv_heads) * head_size)))
        elif name in Q | K | V | IN_GROUPS | OF_LATENTS or name in GATES and shape[0] % heads == 0:
            rows.append((name, ()))
        elif name in NORMS and len(shape) == 2 and shape[0] in (heads, kv_heads):
            first.append(name)
        elif name in NORMS and len(shape) == 1:
            if shape[0] > head_size:  # it would need the numbers of the other ranks
                raise _Unknown(f"{name} is one over all heads")
        else:
            raise _Unknown(f"{name} is not known")
    counts = (heads, 0 if latent else kv_heads)
    block = Block(path, tuple(rows), out, tuple(first), counts, head_size)
    return _checked(block, children, ranks)


def _heads(
    children: Children, query: str | None, in_one: str | None, key: str | None, sizes: dict
) -> tuple[int, int, int]:
    """Of queries; of keys and values; and a head's size. Layers may have other sizes than the
    config says, so what their shapes tell goes before."""
    heads = _first(sizes, "num_attention_heads", "n_heads", "n_head", "num_heads")
    kv_heads = _first(sizes, "num_key_value_heads", "n_kv_heads", "num_kv_heads") or heads
    if "embed_q" in children:
        heads = next(iter(children["embed_q"].values())).shape[0]
    if not heads:
        raise _Unknown("nobody knows its heads")
    size = _first(sizes, "head_dim", "kv_channels") or (
        _first(sizes, "hidden_size", "n_embd", "d_model", "model_dim") // heads
    )
    for name in ("q_norm", "q_layernorm", "query_layernorm"):
        shape = children[name]["weight"].shape if "weight" in children.get(name, {}) else ()
        if len(shape) == 1:
            size = min(size, shape[0]) or shape[0]
    if not size:
        raise _Unknown("nobody knows the size of its heads")
    if query and key:
        rows, key_rows = (children[name]["weight"].shape[0] for name in (query, key))
        if rows % (heads * size) or key_rows % size:
            raise _Unknown(f"{rows} and {key_rows} rows are not those of {heads} heads of {size}")
        kv_heads = key_rows // size
    elif in_one:
        others = children[in_one]["weight"].shape[0] - heads * size
        if others <= 0 or others % (2 * size):
            raise _Unknown(f"{others} rows are not those of keys and values of {size}")
        kv_heads = others // (2 * size)
    return heads, kv_heads, size


def _feed_forward(path: str, children: Children, below: list[str], ranks: int) -> Block | None:
    """Its plan, None where this is none. Raises _Unknown."""
    known = [
        one for one in FEED_FORWARD if one[1] in children and all(n in children for n in one[0])
    ]
    if not known:
        return None
    into, out, two_in_one = known[0]
    for name in children.keys() - {*into, out}:
        if any(prod(weight.shape) > 1 for weight in children[name].values()):
            raise _Unknown(f"{name} is not known")
    if any(not other.endswith("act_fn") for other in below):
        raise _Unknown(f"{below[0]} is not known")
    shape = children[into[0]]["weight"].shape
    width = shape[-2] if len(shape) > 1 else 0
    inputs = children[out]["weight"].shape[-1]
    if not two_in_one and "scales" not in children[out] and width != inputs:
        raise _Unknown(f"{width} rows go into {inputs} columns")
    ends = (width // 2,) if two_in_one else ()
    rows = tuple((name, ends) for name in into)
    return _checked(Block(path, rows, out, experts=len(shape) == 3), children, ranks)


def _checked(block: Block, children: Children, ranks: int) -> Block:
    """With its bytes, where everything divides by the ranks. Raises _Unknown."""
    nbytes = 0
    for name, ends in block.rows:
        for leaf, weight in children[name].items():
            axis = -1 if leaf == "bias" else max(len(weight.shape) - 2, 0)
            size = weight.shape[axis]
            parts = [b - a for a, b in zip((0, *ends), (*ends, size), strict=True)]
            _divides(name, leaf, parts, ranks)
            nbytes += weight.nbytes
    for leaf, weight in children[block.columns].items():
        if leaf != "bias":
            _divides(block.columns, leaf, [weight.shape[-1]], ranks)
            nbytes += weight.nbytes
    for name in block.first:
        for leaf, weight in children[name].items():
            _divides(name, leaf, [weight.shape[0]], ranks)
            nbytes += weight.nbytes
    return Block(**{**vars(block), "nbytes": nbytes})


def _divides(name: str, leaf: str, parts: list[int], ranks: int) -> None:
    for part in parts:
        if part % ranks:
            what = "quantisation groups" if leaf in ("scales", "biases") else "numbers"
            raise _Unknown(f"{part} {what} of {name} do not divide by {ranks} ranks")


def _gather(blocks: list[Block], parents: dict[str, Children]) -> Iterator[Block]:
    """Where experts and those beside them make one sum, it is added up once: after the experts
    alone it would be as many numbers more as each token has experts."""
    by_path = {block.path: block for block in blocks}
    for block in blocks:
        parent = block.path.rpartition(".")[0]
        group = [other for other in blocks if other.path.rpartition(".")[0] == parent]
        within = [path for path in parents if path.startswith(f"{parent}.")]
        routed = parents.get(parent, {}).keys() <= ROUTING and all(
            path in by_path or path[len(parent) + 1 :].split(".")[0] in ROUTING for path in within
        )
        if parent and routed and any(one.experts for one in group) and not block.heads[0]:
            yield Block(**{**vars(block), "partial_at": parent})
        else:
            yield Block(**{**vars(block), "partial_at": block.path})


def _one(names: set[str]) -> str | None:
    return next(iter(names)) if len(names) == 1 else None


def _first(sizes: dict, *names: str) -> int:
    return next((n for n in (number(sizes, name) for name in names) if n), 0)
