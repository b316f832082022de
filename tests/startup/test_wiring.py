"""Who is wired to whom, from the files and names that the launcher hands on."""

import json

import pytest

from server.startup.wiring import Wiring, read_wiring

MESH = [[None, "en2", "en3"], ["en2", None, "en3"], ["en2", "en3", None]]
TWO_CABLES = [[None, ["en2", "en3"]], [["en4", "en5"], None]]


def told(tmp_path, content, name="MLX_IBV_DEVICES", **env) -> dict[str, str]:
    path = tmp_path / "file.json"
    path.write_text(json.dumps(content))
    return {name: str(path)} | env


def test_a_mesh_links_all_and_names_each_end(tmp_path):
    wiring = read_wiring(told(tmp_path, MESH, RANK_HOSTS="a,b,c"), 3)
    assert [wiring.peers(rank) for rank in range(3)] == [[1, 2], [0, 2], [0, 1]]
    assert (wiring.end(0, 2), wiring.end(2, 0)) == ("rank 0 (a: en3)", "rank 2 (c: en2)")
    assert not wiring.around and wiring.cables == 1


def test_two_cables_are_both_named(tmp_path):
    wiring = read_wiring(told(tmp_path, TWO_CABLES, RANK_HOSTS="a,b"), 2)
    assert wiring.end(1, 0) == "rank 1 (b: en4, en5)"
    assert wiring.cables == 2


@pytest.mark.parametrize("env", [{"MLX_JACCL_RING": "1"}, {"JACCL_RING": "1"}])
def test_a_ring_links_neighbours(tmp_path, env):
    rows = [[None if i == j else f"en{j}" for j in range(4)] for i in range(4)]
    wiring = read_wiring(told(tmp_path, rows, **env), 4)
    assert [wiring.peers(rank) for rank in range(4)] == [[1, 3], [0, 2], [1, 3], [0, 2]]


def test_a_matrix_with_gaps_is_a_ring_as_mlx_makes_one(tmp_path):
    rows = [[None, "x", None, "y"], ["x", None, "y", None], [None, "x", None, "y"],
            ["x", None, "y", None]]  # fmt: skip
    wiring = read_wiring(told(tmp_path, rows), 4)
    assert wiring.around and wiring.peers(0) == [1, 3]


def test_over_tcp_hosts_are_known_by_address_where_one_machine_has_all(tmp_path):
    addresses = [["127.0.0.1:5001"], ["127.0.0.1:5002"], ["127.0.0.1:5003"]]
    here = ",".join(["127.0.0.1"] * 3)
    wiring = read_wiring(told(tmp_path, addresses, "MLX_HOSTFILE", RANK_HOSTS=here), 3)
    assert wiring.end(1, 2) == wiring.host(1) == "rank 1 (127.0.0.1:5002)"
    assert Wiring(("", "")).end(0, 1) == "rank 0"


@pytest.mark.parametrize(
    "content", [None, 5, "x", [], [[None]], [[1, 2], [3]], [[1, 2], [3, 4]], {"a": 1}]
)
def test_what_cannot_be_used_is_left_to_mlx_to_complain_of(tmp_path, content):
    for name in ("MLX_IBV_DEVICES", "MLX_HOSTFILE"):
        assert read_wiring(told(tmp_path, content, name), 2).size == 2
    assert read_wiring({"MLX_IBV_DEVICES": "/no/such/file"}, 2).peers(0) == [1]
