"""Splits a model's layers over the ranks as split_plan says, for architectures without a shard().

Called on the main thread of every rank, before the weights are evaluated: each rank reads its part
of them alone. What architectures call things differs, and what they compute with them is not looked
at, so whoever calls this proves the result against the model as a whole.
"""

import re
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.layers.distributed import shard_inplace, shard_linear
from mlx.utils import tree_flatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from server.startup.layer_chain import Unfit
from server.startup.split_plan import Block, plan_layers
from server.startup.weights_index import Weight

# Of attributes: how many heads, those of keys alone, and how wide all heads are together.
COUNT = re.compile(r"^(?!.*(dim|size)).*head")
OF_KEYS = re.compile(r"kv|key|value")
WIDTH = re.compile(r"(q|k|v|kv)_(proj_)?(dim|size)")
LINEAR = (nn.Linear, nn.QuantizedLinear)
OF_EXPERTS = (SwitchLinear, QuantizedSwitchLinear)


def split_layers(model: nn.Module, sizes: dict, group: mx.distributed.Group) -> None:
    """Cuts them in place. sizes: its config's. Raises Unfit."""
    layers = model.layers
    arrays = [
        {name: Weight(a.shape, a.nbytes) for name, a in tree_flatten(layer.parameters())}
        for layer in layers
    ]
    plan = plan_layers(arrays, sizes, group.size())
    if plan.reasons:
        raise Unfit("; ".join(plan.reasons))
    for layer, its in zip(layers, plan.layers, strict=True):
        sums = set()
        for block in its.blocks:
            _split_block(layer, block, group)
            if block.partial_at != block.path or block.experts:
                sums.add(block.partial_at)
        for path in sums:
            add_up(_at(layer, path), group)


def _split_block(layer: nn.Module, block: Block, group: mx.distributed.Group) -> None:
    module = _at(layer, block.path)
    adds_up_itself = block.partial_at == block.path and not block.experts
    for name, ends in block.rows:
        projection = _projection(module, name, block)
        segments: Any = list(ends) or 1
        if adds_up_itself:
            part = shard_linear(projection, "all-to-sharded", segments=segments, group=group)
            setattr(module, name, part)
        else:
            shard_inplace(projection, "all-to-sharded", segments=segments, group=group)
    out = _projection(module, block.columns, block)
    if adds_up_itself:
        setattr(module, block.columns, shard_linear(out, "sharded-to-all", group=group))
    else:
        shard_inplace(out, "sharded-to-all", group=group)
        if "bias" in out and group.rank():
            out.bias = mx.zeros_like(out.bias)  # one rank adds it
    for name in block.first:
        if isinstance(module[name], nn.Module):
            module[name].apply(lambda a: _part(a, group))
        else:
            setattr(module, name, _part(module[name], group))
    if block.heads[0]:
        _divide_heads(module, block, group.size())


def _part(array: mx.array, group: mx.distributed.Group) -> mx.array:
    """This rank's heads, on the first axis."""
    return mx.contiguous(mx.split(array, group.size())[group.rank()])


def _projection(module: nn.Module, name: str, block: Block) -> nn.Module:
    projection = module[name]
    if type(projection) not in (OF_EXPERTS if block.experts else LINEAR):
        raise Unfit(f"{block.path}.{name} is a {type(projection).__name__}")
    return projection


def _divide_heads(module: nn.Module, block: Block, ranks: int) -> None:
    """The counts and widths by which the module takes its projections' results apart."""
    heads, kv_heads = block.heads
    numbers = {name: value for name, value in vars(module).items() if type(value) is int}
    counts = {name: value for name, value in numbers.items() if COUNT.search(name)}
    if not kv_heads:  # keys and values are made of a latent, which is whole
        counts = {name: value for name, value in counts.items() if not OF_KEYS.search(name)}
    if heads not in counts.values():
        raise Unfit(f"{block.path} has no {heads} heads of its own, but {counts}")
    for name, value in counts.items():
        if value in (heads, kv_heads):
            setattr(module, name, value // ranks)
        elif value not in (heads // max(1, kv_heads), 1):
            raise Unfit(f"{block.path}.{name} is {value}, of {heads} heads and {kv_heads} KV heads")
    for name, value in numbers.items():
        if WIDTH.fullmatch(name) and value in (heads * block.head_size, kv_heads * block.head_size):
            setattr(module, name, value // ranks)


def add_up(module: nn.Module, group: mx.distributed.Group) -> None:
    """From now on its result is the sum of all ranks'."""
    own = type(module)

    def call(self: nn.Module, *args: Any, **named: Any) -> mx.array:
        return mx.distributed.all_sum(own.__call__(self, *args, **named), group=group)

    module.__class__ = type(own.__name__, (own,), {"__call__": call})


def _at(layer: nn.Module, path: str) -> nn.Module:
    for name in path.split("."):
        layer = layer[int(name)] if isinstance(layer, list) else layer[name]
    return layer
