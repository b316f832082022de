"""What the ranks agree on at the start: which entries all of them have, and whose folder it is."""

from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import pytest

from server.disk.folder import Unusable
from server.engine.rows_apart import Ways
from server.startup import prefix_disk
from server.startup.piece_pace import at_once
from server.startup.prefix_disk import name_maker, on_all, open_disk, sums
from tests.support.linked import on_links
from tests.support.small_models import small_llama

A, B, C = ["a", "", 0, 200, 10], ["b", "a", 150, 400, 20], ["c", "b", 400, 600, 30]


def sizes(*rows: list) -> list[list]:
    """The same on another rank, with files of another size."""
    return [[*row[:4], row[4] + 1] for row in rows]


def test_what_all_have_alike_counts_with_each_rank_s_size():
    assert on_all([[A, B], sizes(B, A)]) == (
        ("a", "", 0, 200, (10, 11)),
        ("b", "a", 150, 400, (20, 21)),
    )


@pytest.mark.parametrize(
    ("others", "left"),
    [
        ([A, B], ["a", "b"]),  # one is missing
        ([B, C], []),  # what they are based on is
        ([A, C], ["a"]),
        ([A, ["b", "a", 140, 400, 20], C], ["a"]),  # another part of the same text
        ([["a", "", 0, 199, 10], B, C], []),
        ([], []),
    ],
)
def test_what_one_rank_lacks_counts_for_none(others, left):
    for ranks in ([[A, B, C], others], [others, [A, B, C]]):
        assert sorted(name for name, *_ in on_all(ranks)) == left


def test_a_base_that_ends_too_soon_is_none():
    assert on_all([[["a", "", 0, 100, 1], B]]) == (("a", "", 0, 100, (1,)),)


def shard_of(model, arrangement: str = "tensor"):
    last = SimpleNamespace(ways=Ways())
    return SimpleNamespace(model=model, last=last, arrangement=arrangement)


def open_now(settings, link):
    return at_once(open_disk(settings, link, shard_of(small_llama()), lambda stage: None))


def test_a_folder_is_of_one_model_rank_and_split(tmp_path):
    def link(rank: int = 0, size: int = 2):
        return SimpleNamespace(rank=rank, size=size, gather_bytes=lambda data: [data] * size)

    def name(link, shard) -> str:
        return name_maker(tmp_path, link, shard, at_once(sums(shard.model, link)))

    mx.random.seed(1)
    model = small_llama()
    maker = name(link(), shard_of(model))
    assert name(link(), shard_of(model)) == maker
    others = [
        name(link(1), shard_of(model)),
        name(link(size=4), shard_of(model)),
        name(link(), shard_of(model, "pipeline")),
    ]
    (tmp_path / "tokenizer.json").write_text("{}")
    others.append(name(link(), shard_of(model)))
    weight = model.model.layers[1].mlp.up_proj.weight
    weight[3, 5] = weight[3, 5] + 1e-3  # as little as training can change
    others.append(name(link(), shard_of(model)))
    assert len({maker, *others}) == 6


def test_one_rank_that_cannot_turns_it_off_for_all(tmp_path):
    (tmp_path / "rank-1").write_text("no folder")
    settings = SimpleNamespace(
        prefix_disk_dir=str(tmp_path), prefix_disk_gb=1.0, model_dir=tmp_path
    )

    def life(link):
        opened = open_now(settings, link)
        return opened.disk, opened.problem

    (disk, problem), other = on_links(2, life)
    assert disk is None and (disk, problem) == other
    assert problem.startswith("rank 1: ") and "rank-1" in problem
    # And nobody holds a folder that nobody uses.
    prefix_disk.Folder(tmp_path, 0, "0" * 16, 1).close()


def test_caches_that_cannot_be_kept_turn_it_off(tmp_path, monkeypatch):
    class Odd:
        nbytes = 0

        def __init__(self):
            self.thing = object()

    monkeypatch.setattr(prefix_disk, "make_prompt_cache", lambda model: [Odd()])
    settings = SimpleNamespace(
        prefix_disk_dir=str(tmp_path), prefix_disk_gb=1.0, model_dir=tmp_path
    )
    (opened,) = on_links(1, lambda link: open_now(settings, link))
    assert (opened.disk, opened.problem) == (None, "rank 0: object in a cache of this model")


def test_without_a_home_a_folder_has_to_be_named(monkeypatch, tmp_path):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    settings = SimpleNamespace(prefix_disk_dir=None, prefix_disk_gb=1.0, model_dir=tmp_path)
    with pytest.raises(Unusable, match="set PREFIX_DISK_DIR"):
        prefix_disk._root(settings)
