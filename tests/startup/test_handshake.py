"""What ranks compare before any work, and how a difference is told."""

import json

import pytest

pytest.importorskip("mlx.core")

from server.observe.fleet import Machine, Member, PairSpeed
from server.protocol.settings import read_settings
from server.startup.handshake import (
    Mismatch,
    compare,
    introduce,
    promised_group,
    rank_memories,
    shake_hands,
)


def introduction(rank: int, **same) -> dict:
    return {
        "rank": rank,
        "host": f"mac{rank}",
        "pid": 100 + rank,
        "model_dir": "/models/x",
        "same": {"mlx": "0.32.4", "ranks": 2} | same,
    }


class FakeLink:
    """Link's gathering, with the other ranks' introductions given."""

    rank, size = 0, 2

    def __init__(self, *others: dict) -> None:
        self._others = others

    def gather_bytes(self, data: bytes) -> list[bytes]:
        return [data, *(json.dumps(other).encode() for other in self._others)]


def test_equal_ranks_agree_and_know_each_other():
    members = shake_hands(introduction(0), FakeLink(introduction(1)))
    assert members == (Member(0, "mac0", 100, "/models/x"), Member(1, "mac1", 101, "/models/x"))


def test_how_fast_each_rank_s_links_are_is_part_of_its_introduction(tmp_path):
    pairs = (PairSpeed(1, 1.5e-5, 6.5e9),)
    mine = introduce(read_settings({"MODEL_DIR": str(tmp_path)}), FakeLink(), pairs)
    assert shake_hands(mine, FakeLink())[0].pairs == pairs


def test_a_lone_rank_agrees_with_itself():
    compare([introduction(0)])


def test_a_difference_names_the_rank_its_host_and_both_values():
    with pytest.raises(Mismatch) as caught:
        shake_hands(introduction(0), FakeLink(introduction(1, mlx="0.31.0")))
    assert str(caught.value) == (
        "the ranks differ: rank 1 (mac1) has mlx = 0.31.0, rank 0 (mac0) has 0.32.4"
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_what_only_one_rank_has_is_missing_on_the_other(rank):
    ranks = [introduction(0), introduction(1)]
    ranks[rank]["same"]["model file extra.json"] = "abc"
    with pytest.raises(Mismatch, match="extra.json") as caught:
        compare(ranks)
    assert "missing" in str(caught.value) and "abc" in str(caught.value)


def test_every_differing_rank_is_named():
    ranks = [introduction(n) for n in range(4)]
    ranks[1]["same"]["mlx"] = ranks[3]["same"]["mlx"] = "old"
    with pytest.raises(Mismatch) as caught:
        compare(ranks)
    assert "rank 1 (mac1)" in str(caught.value) and "rank 3 (mac3)" in str(caught.value)
    assert "rank 2 (mac2)" not in str(caught.value)


def test_many_differences_are_counted_not_all_told():
    other = introduction(1, **{f"file {n}": "x" for n in range(40)})
    with pytest.raises(Mismatch, match="and 35 more") as caught:
        compare([introduction(0), other])
    assert len(str(caught.value)) < 1000


def test_where_the_model_lies_may_differ():
    other = introduction(1) | {"model_dir": "/elsewhere"}
    compare([introduction(0), other])


def test_an_introduction_holds_versions_code_settings_and_model_files(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    settings = read_settings({"MODEL_DIR": str(tmp_path), "MAX_BATCH": "3"})
    mine = introduce(settings, FakeLink())
    same = mine["same"]
    assert {"python", "mlx", "mlx-lm", "transformers", "server code", "PARALLEL"} <= set(same)
    assert (same["ranks"], same["MAX_BATCH"]) == (2, 3)
    assert same["model file config.json"]
    json.dumps(mine)
    (tmp_path / "config.json").write_text("{ }")
    with pytest.raises(Mismatch, match="config.json"):
        compare([mine, introduce(settings, FakeLink())])


# The group that the launcher promised.


def write(tmp_path, value) -> str:
    path = tmp_path / "hosts.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return str(path)


def test_no_file_is_one_rank(tmp_path):
    assert promised_group({}) == ("any", 1)
    assert promised_group({"MLX_HOSTFILE": ""}) == ("any", 1)


@pytest.mark.parametrize(
    ("name", "backend"),
    [("MLX_HOSTFILE", "ring"), ("MLX_IBV_DEVICES", "jaccl"), ("JACCL_IBV_DEVICES", "jaccl")],
)
def test_a_file_promises_a_rank_an_entry(tmp_path, name, backend):
    entries = [["127.0.0.1:5000"], ["127.0.0.1:5001"], ["127.0.0.1:5002"]]
    assert promised_group({name: write(tmp_path, entries)}) == (backend, 3)


def test_a_stray_hostfile_does_not_turn_jaccl_into_a_ring(tmp_path):
    devices = write(tmp_path, [[None, "rdma_en2"], ["rdma_en2", None]])
    env = {"MLX_HOSTFILE": "/no/such/file", "MLX_IBV_DEVICES": devices}
    assert promised_group(env) == ("jaccl", 2)


@pytest.mark.parametrize("text", ["", "\n", "[]"])
def test_an_empty_file_is_one_rank(tmp_path, text):
    """mlx.launch writes one for a single rank."""
    assert promised_group({"MLX_HOSTFILE": write(tmp_path, text)})[1] == 1


@pytest.mark.parametrize("text", ["[", "not json", None])
def test_a_file_that_cannot_be_read_is_named(tmp_path, text):
    path = str(tmp_path / "gone") if text is None else write(tmp_path, text)
    with pytest.raises(Mismatch, match="MLX_HOSTFILE"):
        promised_group({"MLX_HOSTFILE": path})


def test_ranks_of_a_host_share_its_memory():
    """By what a host has: layers are dealt by it, and what is free changes from start to start."""

    def member(rank: int, host: str, **sizes: int) -> Member:
        return Member(rank, host, 1, "/models/a", Machine(**sizes))

    members = [
        member(0, "studio-1", memory_total=512, gpu_limit=400),
        member(1, "studio-2", memory_total=128),
        member(2, "studio-2", memory_total=128),
        member(3, "studio-3"),
    ]
    assert rank_memories(members) == [400, 64, 64, None]
