"""The output projection, split over the ranks: the same logits, where it pays and nowhere else."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("mlx.core")

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.layers.distributed import shard_linear
from mlx.utils import tree_flatten

from server.engine import split_head
from server.engine.last_logits import put_heads
from server.engine.split_head import SplitProjection, split_heads
from tests.support.cluster import ROOT, engine_environment
from tests.support.ports import free_port
from tests.support.tiny_models import tiny_llama

pytestmark = pytest.mark.ranks

VOCAB, HIDDEN = 96, 64


class Layers(nn.Module):
    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embed_tokens = embedding
        self.proj = nn.Linear(HIDDEN, VOCAB)  # not a head


class Tied(nn.Module):
    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.model = Layers(embedding)

    def __call__(self, x: mx.array) -> mx.array:
        return self.model.embed_tokens.as_linear(x)


class Untied(nn.Module):
    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.model = Layers(nn.Embedding(VOCAB, HIDDEN))
        self.lm_head = head

    def __call__(self, x: mx.array) -> mx.array:
        return self.lm_head(x)


def quantized(layer: nn.Module) -> nn.Module:
    return layer.to_quantized(group_size=32, bits=8)


LAYERS = {
    "linear": lambda: Untied(nn.Linear(HIDDEN, VOCAB, bias=True)),
    "quantized linear": lambda: Untied(quantized(nn.Linear(HIDDEN, VOCAB, bias=False))),
    "embedding": lambda: Tied(nn.Embedding(VOCAB, HIDDEN)),
    "quantized embedding": lambda: Tied(quantized(nn.Embedding(VOCAB, HIDDEN))),
}


def link_of(rank: int, size: int = 2):
    """What rank 0's clock says is so for all."""
    return SimpleNamespace(rank=rank, size=size, group=None, share_ints=lambda values: values)


def split(model: nn.Module, link) -> list[SplitProjection]:
    return split_heads(put_heads(model), link)


def used(heads: list[SplitProjection], model: nn.Module) -> SplitProjection:
    """The one that the model calls: an embedding beside a head is never one."""
    model(mx.zeros((1, 1, HIDDEN)))
    (head,) = (head for head in heads if head._width)
    return head


@pytest.mark.parametrize("kind", LAYERS)
def test_the_parts_of_all_ranks_are_the_whole(kind, monkeypatch):
    model = LAYERS[kind]()
    x = mx.random.normal((3, 2, HIDDEN))
    whole, parameters = model(x), model.parameters()
    parts = []
    for rank in range(2):
        monkeypatch.setattr(split_head, "gather_last_axis", lambda part, group: part)
        model = LAYERS[kind]()
        model.update(parameters)
        used(split(model, link_of(rank)), model).rows = 6
        parts.append(model(x))
    assert parts[0].shape == (3, 2, VOCAB // 2)
    assert mx.allclose(mx.concatenate(parts, axis=-1), whole, atol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
def test_more_rows_than_pay_are_computed_whole(kind, monkeypatch):
    monkeypatch.setattr(split_head, "gather_last_axis", lambda part, group: part)
    model = LAYERS[kind]()
    used(split(model, link_of(1)), model).rows = 2
    shapes = [model(mx.zeros((rows, 1, HIDDEN))).shape[-1] for rows in (1, 2, 3, 40)]
    assert shapes == [VOCAB // 2, VOCAB // 2, VOCAB, VOCAB]


def test_no_weight_is_counted_twice():
    model = LAYERS["linear"]()
    before = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    split(model, link_of(0))
    after = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    assert before == after


def test_what_does_not_divide_or_is_split_already_stays_as_it_is():
    model = Untied(nn.Linear(HIDDEN, VOCAB))
    assert split(model, link_of(0, size=5)) == []
    model.lm_head = shard_linear(nn.Linear(HIDDEN, VOCAB), "all-to-sharded")
    (embedding,) = split(model, link_of(0))
    model(mx.zeros((1, 1, HIDDEN)))
    assert not embedding._width, "mlx-lm's own part was split again"


# Rows that are tried, with the time of the whole and of the split one; what comes of it.
TIMES = [
    ({1: (2, 1), 4: (2, 1), 16: (2, 1), 64: (2, 1)}, 64),
    ({1: (2, 1), 4: (2, 1), 16: (2, 1.9), 64: (2, 1)}, 4),
    ({1: (2, 2.5)}, 0),
]


@pytest.mark.parametrize("times,rows", TIMES)
def test_it_is_split_for_as_many_rows_as_pay(times, rows, monkeypatch):
    model = LAYERS["embedding"]()
    head = used(split(model, link_of(0)), model)
    monkeypatch.setattr(head, "_time", lambda x: times.pop(x.shape[0]))
    list(head.tune())
    assert head.rows == rows


def test_rank_0s_clock_decides_for_all(monkeypatch):
    """Ranks that split for different numbers of rows would wait for each other for ever."""
    model = LAYERS["embedding"]()
    link = link_of(1)
    told = iter([[1], [1], [0]])
    link.share_ints = lambda values: next(told)
    head = used(split(model, link), model)
    monkeypatch.setattr(head, "_time", lambda x: (1.0, 5.0))
    list(head.tune())
    assert head.rows == 4


def test_a_projection_that_no_forward_pass_used_is_not_timed(monkeypatch):
    model = LAYERS["linear"]()
    heads = split(model, link_of(0))
    used(heads, model)
    (unused,) = (head for head in heads if not head._width)
    monkeypatch.setattr(unused, "_time", None)
    list(unused.tune())
    assert unused.rows == 0


PROGRAM = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import mlx.core as mx
from server.startup import loading
from server.engine import split_head
from server.startup.joining import join

split_head.WORTH = 1e9  # whatever the clock says
heads = []
real = loading.split_heads
loading.split_heads = lambda *a: heads.extend(real(*a)) or heads
link = join(os.environ, 60)
shard = loading.load_shard(Path(sys.argv[2]), "tensor", link, None, lambda *_: None)
(head,) = [h for h in heads if h.rows]
tokens = mx.array([[5], [6], [7]])
split = shard.model(tokens)
head.rows = 0
whole = shard.model(tokens)
far = mx.max(mx.abs(split - whole)).item()
reports = link.gather_bytes(json.dumps([far, list(split.shape)]).encode())
if link.rank == 0:
    Path(sys.argv[3]).write_text(json.dumps([json.loads(one) for one in reports]))
"""


def test_two_real_ranks_get_the_same_logits_split_as_whole(tmp_path):
    program, report = tmp_path / "program.py", tmp_path / "report.json"
    program.write_text(PROGRAM)
    model = tiny_llama(tmp_path / "model")
    command = [
        sys.executable, ROOT / "scripts/lib/module.py", "lib.launch.mlx_launch",
        "-n", 2, "--backend", "ring",
        "--starting-port", free_port(2), "--python", sys.executable, "--",
        program, ROOT, model, report,
    ]  # fmt: skip
    env = {**os.environ, **engine_environment()}
    subprocess.run(list(map(str, command)), env=env, timeout=120, check=True)
    reports = json.loads(Path(report).read_text())
    assert [shape for _, shape in reports] == [[3, 1, 264]] * 2
    assert all(far < 1e-4 for far, _ in reports)
