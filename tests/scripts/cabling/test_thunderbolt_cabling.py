"""From what macOS's tools print to ports, cables and the matrix of a hostfile."""

import dataclasses
import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.lib.cabling.cabling import between, cables, matrix, same_macs, strangers
from scripts.lib.cabling.ports import (
    FormatError,
    Port,
    parse_hardware_ports,
    parse_ibv_devices,
    parse_thunderbolt,
    read_ports,
)
from tests.support.wiring import Wiring, mesh, ring

NAMES = [f"studio-{i}" for i in range(1, 9)]


def ports_of(wiring: Wiring, name: str) -> tuple[Port, ...]:
    texts = wiring.texts(name)
    return read_ports(texts["system_profiler"], texts["networksetup"], texts["ibv_devices"])


def hosts_of(wiring: Wiring) -> dict[str, tuple[Port, ...]]:
    return {name: ports_of(wiring, name) for name in wiring.names}


def test_a_port_has_its_receptacle_interface_device_and_peer():
    wiring = Wiring(NAMES[:2]).plug("studio-1:2", "studio-2:5")
    port = ports_of(wiring, "studio-1")[1]
    assert (port.receptacle, port.interface, port.device) == ("2", "en3", "rdma_en3")
    assert port.speed_gbps == 80
    assert port.peer.domain == ports_of(wiring, "studio-2")[4].domain
    assert port.computer == "Mac Studio"
    assert port.label == "Thunderbolt 2 (en3)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        port.interface = "en9"


def test_an_empty_port_has_no_peer_and_no_speed_though_macos_tells_its_best_speed():
    port = ports_of(Wiring(NAMES[:1]), "studio-1")[0]
    assert (port.peer, port.attached, port.speed_gbps, port.plugged) == (None, (), None, False)


def test_a_display_is_no_peer():
    port = ports_of(Wiring(NAMES[:1]).attach("studio-1:3", "Studio Display"), "studio-1")[2]
    assert port.peer is None
    assert port.attached == ("Studio Display",)
    assert port.plugged


def test_a_computer_behind_a_display_is_found_with_what_is_between():
    wiring = Wiring(NAMES[:2]).plug("studio-1:2", "studio-2:2", behind="A Hub")
    (cable,) = cables(hosts_of(wiring))
    assert cable.via == ("A Hub",)


def test_interfaces_need_not_be_in_the_order_of_receptacles():
    """On an M5 Max laptop Thunderbolt 1, 2, 3 are en1, en6, en2."""
    wiring = Wiring(["book"], receptacles=3, interfaces={"1": "en1", "2": "en6", "3": "en2"})
    assert [port.interface for port in ports_of(wiring, "book")] == ["en1", "en6", "en2"]


def test_rdma_that_is_off_leaves_ports_without_devices():
    wiring = mesh(NAMES[:2])
    wiring.rdma_off.add("studio-1")
    hosts = hosts_of(wiring)
    assert {port.device for port in hosts["studio-1"]} == {None}
    (cable,) = cables(hosts)
    assert cable.a.device == "rdma_en3"  # What it will be called once RDMA is on.


def test_an_interface_that_networksetup_does_not_have_is_none():
    texts = Wiring(NAMES[:1]).texts("studio-1")
    some = texts["networksetup"].replace("Hardware Port: Thunderbolt 4", "Hardware Port: Other")
    port = read_ports(texts["system_profiler"], some, texts["ibv_devices"])[3]
    assert (port.receptacle, port.interface, port.device) == ("4", None, None)


def test_buses_without_a_domain_and_odd_items_are_passed_over():
    bus = {"_name": "bus", "domain_uuid_key": "AB", "_items": ["?", {"_name": "Disk"}]}
    text = json.dumps({"SPThunderboltDataType": [{"_name": "old bus"}, "?", bus]})
    (found,) = parse_thunderbolt(text)
    assert (found.domain, found.receptacle, found.attached) == ("ab", None, ("Disk",))


@pytest.mark.parametrize("text", ["", "no json", "[]", "{}", '{"SPThunderboltDataType": {}}'])
def test_what_is_not_system_profilers_json_is_refused(text):
    with pytest.raises(FormatError, match="system_profiler"):
        parse_thunderbolt(text)


def test_a_mac_without_thunderbolt_has_no_ports():
    assert parse_thunderbolt('{"SPThunderboltDataType": []}') == ()


def test_hardware_ports_are_read_by_name():
    ports = parse_hardware_ports(Wiring(NAMES[:1]).texts("studio-1")["networksetup"])
    assert ports["Thunderbolt 1"] == "en2"
    assert ports["Thunderbolt Bridge"] == "bridge0"
    with pytest.raises(FormatError, match="networksetup"):
        parse_hardware_ports("command not found")


def test_devices_are_read_below_the_heading():
    text = Wiring(NAMES[:1]).texts("studio-1")["ibv_devices"]
    assert parse_ibv_devices(text) == tuple(f"rdma_en{i}" for i in range(2, 8))
    assert parse_ibv_devices("\n".join(text.splitlines()[:2])) == ()


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_mesh_has_a_cable_for_every_pair_and_a_whole_matrix(count):
    names = NAMES[:count]
    links = cables(hosts_of(mesh(names)))
    pairs = [(link.a.host, link.b.host) for link in links]
    assert sorted(pairs) == sorted(itertools.combinations(names, 2))
    rows = matrix(names, links)
    for i, row in enumerate(rows):
        assert [cell is None for cell in row] == [j == i for j in range(count)]
    assert rows[0][1] == ("rdma_en3",)


def test_a_ring_leaves_the_others_none():
    names = NAMES[:4]
    rows = matrix(names, cables(hosts_of(ring(names))))
    assert rows[0][2] is rows[2][0] is rows[1][3] is None
    assert all(rows[i][(i + 1) % 4] for i in range(4))


def test_two_cables_are_listed_in_the_same_order_on_both_sides():
    """JACCL joins the first device of one list with the first of the other."""
    wiring = Wiring(NAMES[:2]).plug("studio-1:2", "studio-2:6").plug("studio-1:5", "studio-2:3")
    rows = matrix(NAMES[:2], cables(hosts_of(wiring)))
    assert rows == ((None, ("rdma_en3", "rdma_en6")), (("rdma_en7", "rdma_en4"), None))
    assert matrix(NAMES[1::-1], cables(hosts_of(wiring)))[0][1] == ("rdma_en7", "rdma_en4")
    assert matrix(NAMES[:2], cables(hosts_of(wiring)), width=1)[1][0] == ("rdma_en7",)


def test_a_missing_cable_is_none_both_ways():
    wiring = mesh(NAMES[:3]).unplug("studio-1:2")
    links = cables(hosts_of(wiring))
    assert len(links) == 2
    assert between(links, "studio-1", "studio-2") == []
    assert matrix(NAMES[:3], links)[1][0] is None


def test_the_slower_end_is_the_speed_of_a_cable():
    wiring = Wiring(NAMES[:2]).plug("studio-1:2", "studio-2:2", speed="40 Gb/s")
    (cable,) = cables(hosts_of(wiring))
    assert (cable.speed_gbps, cable.fast_enough) == (40, False)
    (cable,) = cables(hosts_of(mesh(NAMES[:2])))
    assert cable.fast_enough


def test_a_cable_that_one_end_alone_sees_is_told_apart():
    wiring = Wiring(NAMES[:2])
    wiring.see("studio-2:4", "studio-1:2")
    (cable,) = cables(hosts_of(wiring))
    assert (cable.a.host, cable.a.port.receptacle, cable.both_ways) == ("studio-1", "2", False)


def test_a_cable_to_a_computer_off_the_list_is_a_stranger():
    wiring = mesh(NAMES[:3])
    hosts = {name: ports_of(wiring, name) for name in NAMES[:2]}
    assert len(cables(hosts)) == 1
    assert [str(end) for end in strangers(hosts)] == [
        "studio-1 Thunderbolt 3 (en4)",
        "studio-2 Thunderbolt 3 (en4)",
    ]


def test_a_cable_from_a_mac_to_itself_links_no_pair():
    wiring = Wiring(NAMES[:2]).plug("studio-1:2", "studio-1:3")
    links = cables(hosts_of(wiring))
    assert len(links) == 1
    assert matrix(NAMES[:2], links) == ((None, None), (None, None))


def test_one_mac_under_two_names_is_noticed():
    wiring = mesh(NAMES[:2])
    hosts = hosts_of(wiring)
    assert list(same_macs(hosts)) == []
    assert list(same_macs({**hosts, "mac.local": hosts["studio-1"]})) == [("studio-1", "mac.local")]


NAMES_IN_USE = st.sampled_from(
    ["_items", "_name", "domain_uuid_key", "receptacle_1_tag", "receptacle_id_key",
     "current_speed_key", "device_name_key"]
)  # fmt: skip
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES_IN_USE, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200)
@given(ANY_JSON)
def test_odd_values_in_a_bus_never_end_in_a_traceback(value):
    bus = value | {"domain_uuid_key": "AB"} if isinstance(value, dict) else value
    ports = read_ports(
        json.dumps({"SPThunderboltDataType": [bus]}), "Hardware Port: Ethernet\nDevice: en0", ""
    )
    assert [port.domain for port in ports] == (["ab"] if isinstance(value, dict) else [])
    assert len(cables({"studio-1": ports})) == 0
