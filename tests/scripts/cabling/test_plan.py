"""From facts to a plan, and to the hostfile that is written."""

import json
import subprocess

import pytest

from scripts.lib.cabling.advice import advise_tcp
from scripts.lib.cabling.plan import make_plan, ring_hostfile
from scripts.lib.hosts import hostfile
from tests.support.cabled import NAMES, facts_of, healthy, said
from tests.support.wiring import Wiring, mesh, ring


@pytest.mark.parametrize("count", [2, 3, 4, 6])
def test_a_mesh_is_planned_and_its_hostfile_has_no_problem(count):
    facts = facts_of(healthy(mesh(NAMES[:count])))
    plan = make_plan(facts)
    assert (plan.topology, plan.order, plan.width) == ("mesh", tuple(NAMES[:count]), 1)
    parsed = hostfile.parse_hostfile(json.dumps(plan.hostfile(facts)))
    assert hostfile.find_problems(parsed) == []
    assert parsed.backend == "jaccl"
    assert [host.ips for host in parsed.hosts] == [(f"192.0.2.{11 + i}",) for i in range(count)]
    assert said(healthy(mesh(NAMES[:count]))) == []


@pytest.mark.parametrize("count", [3, 4, 5, 12])
def test_where_there_is_no_mesh_ranks_follow_the_ring(count):
    names = NAMES[:count]
    named = [names[0], *names[2:], names[1]]
    facts = facts_of(healthy(ring(names)), named)
    if count == 3:
        assert make_plan(facts).topology == "mesh"  # Three in a ring are a mesh.
    plan = make_plan(facts, "ring" if count == 3 else None)
    assert plan.topology == "ring"
    assert plan.order in (tuple(names), (names[0], *names[:0:-1]))
    parsed = hostfile.parse_hostfile(json.dumps(plan.hostfile(facts)))
    assert hostfile.find_problems(parsed) == []
    assert parsed.backend == "jaccl-ring"


def test_asking_for_a_ring_takes_it_out_of_a_mesh():
    facts = facts_of(healthy(mesh(NAMES[:4])))
    content = make_plan(facts, "ring").hostfile(facts)
    assert content["backend"] == "jaccl-ring"
    assert [cell is None for cell in content["hosts"][0]["rdma"]] == [True, False, True, False]


def test_two_cables_are_listed_and_a_ring_of_two_uses_both():
    wiring = Wiring(NAMES[:2]).plug("studio-1:2", "studio-2:6").plug("studio-1:5", "studio-2:3")
    facts = facts_of(healthy(wiring))
    for topology in (None, "ring"):
        content = make_plan(facts, topology).hostfile(facts)
        assert content["hosts"][0]["rdma"][1] == ["rdma_en3", "rdma_en6"]
        assert content["hosts"][1]["rdma"][0] == ["rdma_en7", "rdma_en4"]
    assert any(
        "uses all cables of each pair for messages of 512 KB" in text for text in said(wiring)
    )


def test_a_second_cable_of_one_pair_alone_is_left_out():
    """JACCL wants the same number of devices for every pair of a ring."""
    wiring = healthy(mesh(NAMES[:3]).plug("studio-1:5", "studio-2:5"))
    for topology in (None, "ring"):
        facts = facts_of(wiring)
        plan = make_plan(facts, topology)
        assert plan.width == 1
        assert not hostfile.find_problems(hostfile.parse_hostfile(json.dumps(plan.hostfile(facts))))
        assert any("Thunderbolt 5 (en6) is not used" in text for text in said(wiring, topology))


def test_the_widest_ring_is_taken():
    names = NAMES[:4]
    wiring = mesh(names, receptacles=8)
    order = ["studio-1", "studio-3", "studio-2", "studio-4"]
    for i, name in enumerate(order):
        wiring.plug(wiring.next_free(name), wiring.next_free(order[(i + 1) % 4]))
    plan = make_plan(facts_of(wiring), "ring")
    assert (plan.order, plan.width) == (tuple(order), 2)


def test_the_port_beside_ethernet_and_doubtful_cables_come_last():
    wiring = Wiring(NAMES[:2]).plug("studio-1:1", "studio-2:2").plug("studio-1:3", "studio-2:3")
    facts = facts_of(wiring)
    content = make_plan(facts).hostfile(facts)
    assert content["hosts"][0]["rdma"][1] == ["rdma_en4", "rdma_en2"]
    assert content["hosts"][1]["rdma"][0] == ["rdma_en4", "rdma_en3"]


def test_more_hosts_than_a_mesh_takes_have_none():
    names = NAMES[:9]
    wiring = mesh(names, receptacles=12)
    facts = facts_of(wiring)
    assert make_plan(facts).topology == "ring"
    assert make_plan(facts, "mesh").order is None
    assert "error: 9 hosts are too many for a mesh: JACCL takes 8" in said(wiring, "mesh")


TWO_CABLES = Wiring(NAMES[:2]).plug("studio-1:2", "studio-2:6").plug("studio-1:5", "studio-2:3")


@pytest.mark.parametrize(
    ("wiring", "topology"),
    [
        (mesh(NAMES[:2]), "mesh"),
        (mesh(NAMES[:4]), "mesh"),
        (TWO_CABLES, "mesh"),
        (TWO_CABLES, "ring"),
        (mesh(NAMES[:4]), "ring"),
        (ring(NAMES[:5]), "ring"),
    ],
    ids=["mesh of 2", "mesh of 4", "2 cables", "ring, 2 cables", "ring in a mesh", "ring of 5"],
)
def test_the_matrix_is_the_one_that_mlx_makes_of_the_same_cabling(wiring, topology, monkeypatch):
    """mlx.distributed_config is the reference; only its ssh is replaced."""
    config = pytest.importorskip("mlx._distributed_utils.config")
    from mlx._distributed_utils.common import Host

    def run(command, **_):
        texts = wiring.texts(command[1])
        return subprocess.CompletedProcess(command, 0, texts[command[2]].encode())

    monkeypatch.setattr(config, "run", run)
    saved = []
    monkeypatch.setattr(config, "save_hostfile", lambda args, file: saved.append(file.to_json()))
    monkeypatch.setattr(config, "add_ips", lambda hosts, verbose: None)
    monkeypatch.setattr(config.IPConfigurator, "setup", lambda *args, **named: None)
    hosts = [Host(i, name, [], []) for i, name in enumerate(wiring.names)]
    args = type("Args", (), {"verbose": False, "env": [], "auto_setup": False})
    macs, index = config.extract_connectivity(hosts, False)
    ips = config.IPConfigurator(hosts, macs, index)
    facts = facts_of(wiring)
    plan = make_plan(facts, topology)
    if topology == "mesh":
        config.configure_jaccl(args, hosts, ips, [])
    else:
        at = [wiring.names.index(name) for name in plan.order]
        config.configure_jaccl_ring(args, hosts, ips, (at, plan.width), [])
    ours = plan.hostfile(facts)
    for theirs, mine in zip(saved[0]["hosts"], ours["hosts"], strict=True):
        assert (theirs["ssh"], theirs["rdma"]) == (mine["ssh"], mine["rdma"])
    assert saved[0]["backend"] == ours["backend"]


def test_a_tcp_ring_lists_the_ordinary_addresses():
    facts = facts_of(Wiring(NAMES[:3]))
    content = ring_hostfile(NAMES[:3], facts, ["A=1"])
    parsed = hostfile.parse_hostfile(json.dumps(content))
    assert hostfile.find_problems(parsed) == []
    assert (parsed.backend, parsed.envs) == ("ring", ("A=1",))
    assert advise_tcp(facts) == []
