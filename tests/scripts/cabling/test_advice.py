"""What is said about a cabling, and how it is drawn."""

import pytest

from scripts.lib.cabling.advice import advise
from scripts.lib.cabling.draw import draw_dot, draw_text
from scripts.lib.cabling.plan import make_plan
from scripts.lib.cabling.survey import Facts
from tests.support.cabled import NAMES, facts_of, healthy, said
from tests.support.wiring import Wiring, mesh, ring


def test_every_missing_cable_is_named_with_free_ports():
    wiring = mesh(NAMES[:4]).unplug("studio-2:4").unplug("studio-3:4")
    texts = said(wiring)
    assert "error: no cable between studio-2 and studio-4" in texts
    assert "error: no cable between studio-3 and studio-4" in texts
    assert sum("no cable between" in text for text in texts) == 2
    assert any(
        text.startswith("error: no ring: studio-4 is cabled to studio-1 alone") for text in texts
    )
    facts = facts_of(wiring)
    fixes = [finding.fix for finding in advise(facts, make_plan(facts))]
    assert any("free on studio-2: Thunderbolt 4 (en5)" in line for fix in fixes for line in fix)


def test_a_mesh_that_lacks_a_cable_but_has_a_ring_says_so_as_a_note():
    texts = said(healthy(mesh(NAMES[:4]).unplug("studio-2:4")))
    assert texts[0] == "note: a ring, since the cables make no mesh:"
    assert "note: no cable between studio-2 and studio-4" in texts
    assert any(text.startswith("error: no cable between") for text in said(ring(NAMES[:4]), "mesh"))


def test_no_way_through_all_hosts_is_said():
    """Two triangles that share one Mac: every host has two neighbours, and there is no ring."""
    a, b, c, d, e = NAMES[:5]
    wiring = Wiring(NAMES[:5])
    for x, y in [(a, b), (b, c), (a, c), (c, d), (d, e), (c, e)]:
        wiring.plug(wiring.next_free(x), wiring.next_free(y))
    texts = said(wiring, "ring")
    assert "error: no ring: no way along the cables passes every host once and returns" in texts


@pytest.mark.parametrize("topology", [None, "mesh", "ring"])
def test_two_macs_without_a_cable_get_one_error(topology):
    texts = said(Wiring(NAMES[:2]), topology)
    assert [text for text in texts if text.startswith("error")] == [
        "error: no cable between studio-1 and studio-2"
    ]


@pytest.mark.parametrize("topology", [None, "ring"])
def test_a_link_at_40_gbps_links_nobody(topology):
    wiring = mesh(NAMES[:3])
    wiring.unplug("studio-1:2").plug("studio-1:2", "studio-2:2", speed="Up to 40 Gb/s")
    assert (
        "error: the cable from studio-1 Thunderbolt 2 (en3) to studio-2 Thunderbolt 2 (en3) "
        "runs at 40 Gb/s: RDMA needs 80"
    ) in said(wiring, topology)


def test_a_slow_second_cable_is_a_warning():
    wiring = mesh(NAMES[:2]).plug("studio-1:5", "studio-2:5", speed="40 Gb/s")
    texts = said(healthy(wiring))
    assert len(texts) == 1
    assert texts[0].startswith("warning: the cable from studio-1 Thunderbolt 5 (en6)")


def test_displays_are_neither_peers_nor_free_ports():
    wiring = Wiring(NAMES[:2]).attach("studio-1:2", "Studio Display")
    facts = facts_of(wiring)
    plan = make_plan(facts)
    (first, *_) = advise(facts, plan)
    assert first.text == "no cable between studio-1 and studio-2"
    assert "free on studio-1: Thunderbolt 3 (en4)" in first.fix[0]
    assert "Thunderbolt 2 (en3)  Studio Display" in draw_text(facts, plan)


def test_the_port_beside_ethernet_is_a_warning_on_a_mac_studio_alone():
    def plugged(computer: str) -> list[str]:
        wiring = Wiring(NAMES[:2], computer=computer).plug("studio-1:1", "studio-2:2")
        return said(healthy(wiring))

    (text,) = plugged("Mac Studio")
    assert text.startswith("warning: studio-1 Thunderbolt 1 (en2) is the port beside Ethernet")
    assert plugged("MacBook Pro") == []


def test_rdma_that_is_off_is_a_warning_with_its_fix_and_the_hostfile_is_made():
    wiring = healthy(mesh(NAMES[:2]))
    wiring.rdma_off.add("studio-2")
    facts = facts_of(wiring)
    plan = make_plan(facts)
    (finding,) = advise(facts, plan)
    assert finding.text == "RDMA is disabled on studio-2"
    assert "rdma_ctl enable" in finding.fix[0]
    assert plan.hostfile(facts)["hosts"][1]["rdma"] == ["rdma_en3", None]


def test_other_doubts_are_told():
    wiring = healthy(mesh(NAMES[:2]))
    wiring.see("studio-1:4", "somewhere:1")
    wiring.plug("studio-2:4", "studio-2:5")
    facts = facts_of(wiring)
    texts = [finding.text for finding in advise(facts, make_plan(facts))]
    assert texts == [
        "studio-1 Thunderbolt 4 (en5) leads to a computer that was not named (Mac Studio)",
        "a cable leads from studio-2 Thunderbolt 4 (en5) back to the same Mac, Thunderbolt 5 (en6)",
    ]
    one_end = healthy(Wiring(NAMES[:2]))
    one_end.see("studio-1:2", "studio-2:2")
    assert any("only one end of the cable" in text for text in said(one_end))
    hub = healthy(Wiring(NAMES[:2]).plug("studio-1:2", "studio-2:2", behind="A Hub"))
    assert any("A Hub is between" in text for text in said(hub))


def test_one_mac_under_two_names_and_a_host_that_is_no_mac_are_errors():
    wiring = mesh(NAMES[:2])
    facts = facts_of(wiring)
    facts["alias"] = facts["studio-1"]
    texts = [finding.text for finding in advise(facts, make_plan(facts))]
    assert "studio-1 and alias are one and the same Mac" in texts
    facts = {**facts_of(wiring), "box": Facts("box", "Linux", addresses={"a": "192.0.2.9"})}
    texts = [f.text for f in advise(facts, make_plan(facts)) if f.severity == "error"]
    assert texts == ["box runs Linux: it has no RDMA over Thunderbolt"]


def test_rank_0_without_an_address_is_an_error_another_rank_is_not():
    wiring = healthy(mesh(NAMES[:2]))
    del wiring.addresses["studio-2"]["en0"]
    assert said(wiring) == []
    wiring.addresses["studio-1"].pop("en0")
    (text,) = said(wiring)
    assert text.startswith("error: studio-1 has no IPv4 address")


def test_the_drawing_shows_every_port_in_use_and_who_reaches_whom():
    wiring = mesh(NAMES[:3]).unplug("studio-1:2")
    wiring.plug("studio-1:2", "studio-2:2", speed="40 Gb/s")
    facts = facts_of(wiring)
    lines = draw_text(facts, make_plan(facts)).splitlines()
    assert lines[:3] == [
        "studio-1  192.0.2.11",
        "  Thunderbolt 2 (en3)  -------- 40 Gb/s --------  studio-2 Thunderbolt 2 (en3)",
        "  Thunderbolt 3 (en4)  ======== 80 Gb/s ========  studio-3 Thunderbolt 2 (en3)",
    ]
    facts = facts_of(mesh(NAMES[:3]))
    lines = draw_text(facts, make_plan(facts)).splitlines()
    assert lines[0] == "studio-1  rank 0, 192.0.2.11"
    grid = [line.split() for line in lines[-4:]]
    assert grid[0] == NAMES[:3]
    assert grid[2] == ["studio-2", "en3", ".", "en4"]


def test_a_ring_is_drawn_in_its_order():
    facts = facts_of(ring(NAMES[:4]))
    text = draw_text(facts, make_plan(facts))
    assert "ring: studio-1 -- studio-2 -- studio-3 -- studio-4 -- studio-1" in text


def test_nothing_plugged_in_is_drawn_as_that():
    facts = facts_of(Wiring(NAMES[:2]))
    text = draw_text(facts, make_plan(facts))
    assert text.count("nothing is plugged into its Thunderbolt ports") == 2


def test_dot_has_every_cable_once_and_marks_the_doubtful():
    wiring = mesh(NAMES[:3]).unplug("studio-1:2")
    wiring.plug("studio-1:2", "studio-2:2", speed="40 Gb/s")
    facts = facts_of(wiring)
    text = draw_dot(facts, make_plan(facts))
    edges = [line for line in text.splitlines() if " -- " in line]
    assert len(edges) == 3
    assert 'n0 -- n1 [taillabel="en3", headlabel="en3", label="40 Gb/s", color="red"]' in text
    assert text.startswith("graph cabling {") and text.endswith("}\n")
