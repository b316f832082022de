"""What is said of the ends of cables, and that what works is left alone."""

import random
import shlex
from collections.abc import Callable
from ipaddress import ip_interface

import pytest

from scripts.lib.cabling.advice import advise
from scripts.lib.cabling.cabling import Cable, cables
from scripts.lib.cabling.ends import find_faults, fits, sides
from scripts.lib.cabling.finding import Finding
from scripts.lib.cabling.pings import Heard, Pings, read_pings, to_ping
from scripts.lib.cabling.plan import make_plan
from scripts.lib.cabling.survey import networks_of, read_facts
from tests.support.cabled import NAMES, answer, facts_of, healthy, sections_of
from tests.support.wiring import Wiring, mesh, ring

PREFERENCES = "/Library/Preferences/SystemConfiguration/preferences.plist"
AGAIN = "then, here: scripts/make_hostfile.sh --force"


def found(wiring: Wiring, pings: Pings | None = None) -> list[Finding]:
    facts = facts_of(wiring)
    plan = make_plan(facts)
    if pings is None:
        pings = played(wiring)
    return advise(facts, plan, pings=pings)


def played(wiring: Wiring) -> Pings:
    """What the ends would hear from each other."""
    facts = facts_of(wiring)
    wanted = to_ping(networks_of(facts), make_plan(facts).used)
    outputs = {
        name: "".join(
            f"@@ends ping {port} {ip} {0 if answers else 2}\n"
            for port, ip, answers in wiring.pings(name)
        )
        + f"@@ends cache begin\n{wiring.texts(name)['arp']}@@ends cache end 0\n"
        for name in wiring.names
    }
    return read_pings(wanted, outputs)


def cables_of(wiring: Wiring) -> list[Cable]:
    return cables({host: fact.ports for host, fact in facts_of(wiring).items()})


def pair() -> Wiring:
    return healthy(mesh(NAMES[:2]))


# The bridge.


def test_ports_in_the_bridge_come_with_all_steps_in_order():
    """macOS leaves members in an inactive bridge: the first step alone was advised for ever."""
    wiring = healthy(mesh(NAMES[:3]))
    wiring.bridge("studio-2", ["en3", "en4", "en7"])
    del wiring.addresses["studio-3"]["en4"]
    two, three = found(wiring)
    assert two.text == (
        "studio-2: en3, en4 are in the Thunderbolt Bridge (bridge0); JACCL needs an address of "
        "its own on each port"
    )
    assert two.fix == (
        "on studio-2, once:",
        'sudo networksetup -setnetworkserviceenabled "Thunderbolt Bridge" off',
        "if /sbin/ifconfig bridge0 shows no member after that, it was enough; macOS is known to "
        "leave them in, then these, too:",
        f"sudo cp -p {PREFERENCES} {PREFERENCES}.with-bridge0",
        "sudo /usr/libexec/PlistBuddy -c 'Delete :VirtualNetworkInterfaces:Bridge:bridge0' "
        f"{PREFERENCES}",
        "sudo /sbin/ifconfig bridge0 deletem en3",
        "sudo /sbin/ifconfig bridge0 deletem en4",
        "sudo /sbin/ifconfig bridge0 deletem en7",
        "sudo /sbin/ifconfig bridge0 down",
        f"(to undo: sudo cp -p {PREFERENCES}.with-bridge0 {PREFERENCES}, and restart)",
        'sudo networksetup -createnetworkservice "RDMA en3" "Thunderbolt 2"',
        'sudo networksetup -setmanual "RDMA en3" 10.77.1.2 255.255.255.252 ""',
        'sudo networksetup -createnetworkservice "RDMA en4" "Thunderbolt 3"',
        'sudo networksetup -setmanual "RDMA en4" 10.77.3.1 255.255.255.252 ""',
        f"{AGAIN} studio-1 studio-2 studio-3 (it looks again)",
    )
    assert three.text.startswith("studio-3: en4 has no IPv4 address;")
    assert three.fix[-2] == 'sudo networksetup -setmanual "RDMA en4" 10.77.3.2 255.255.255.252 ""'


def test_a_bridge_that_kept_its_ports_is_told_from_one_that_is_active():
    """The second look: what was done is not advised again, what stands is, with the next step."""
    wiring = pair()
    wiring.bridge("studio-1", ["en3"])
    wiring.make_inactive("studio-1")
    (finding,) = found(wiring)
    assert 'although its service "Thunderbolt Bridge" is inactive' in finding.text
    assert not any("setnetworkserviceenabled" in line for line in finding.fix)
    assert finding.fix[1].startswith(f"sudo cp -p {PREFERENCES} ")
    assert "sudo /sbin/ifconfig bridge0 deletem en3" in finding.fix


def test_a_bridge_that_is_out_of_the_settings_needs_only_let_go():
    wiring = pair()
    wiring.bridge("studio-1", ["en3"])
    wiring.make_inactive("studio-1")
    wiring.configured["studio-1"] = {}
    (finding,) = found(wiring)
    assert not any("PlistBuddy" in line or "sudo cp" in line for line in finding.fix)
    assert finding.fix[1] == "sudo /sbin/ifconfig bridge0 deletem en3"


def test_ports_that_were_taken_out_for_now_come_back_while_the_settings_have_the_bridge():
    wiring = pair()
    wiring.bridge("studio-1", ["en3"])
    wiring.bridged["studio-1"] = []
    (finding,) = found(wiring)
    assert finding.severity == "warning"
    assert finding.text.startswith("studio-1: bridge0 takes en3 back at the next start")
    assert any("PlistBuddy" in line for line in finding.fix)
    assert not any("deletem" in line for line in finding.fix)
    wiring.make_inactive("studio-1")
    (finding,) = found(wiring)
    assert finding.severity == "note"
    assert "may take en3 back" in finding.text
    assert not any("setnetworkserviceenabled" in line for line in finding.fix)


def test_a_port_without_an_address_gets_one_after_the_bridge_is_out_of_the_settings():
    wiring = pair()
    wiring.bridge("studio-1", ["en3"])
    wiring.bridged["studio-1"] = []
    del wiring.addresses["studio-1"]["en3"]
    (finding,) = found(wiring)
    assert "en3 has no IPv4 address" in finding.text
    assert "bridge0 takes en3 back" in finding.text
    steps = [line.split()[1] for line in finding.fix if line.startswith("sudo ")]
    assert [step.rpartition("/")[2] for step in steps] == [
        "networksetup", "cp", "PlistBuddy", "networksetup", "networksetup",
    ]  # fmt: skip


def test_a_bridge_that_is_down_takes_nothing_from_ports_with_addresses():
    """As mlx.distributed_config leaves it; what it lasts until is told, and no more."""
    wiring = pair()
    wiring.bridge("studio-1", ["en3"])
    wiring.bridge_down.add("studio-1")
    wiring.make_inactive("studio-1")
    (finding,) = found(wiring)
    assert (finding.severity, "may take en3 back" in finding.text) == ("note", True)
    del wiring.addresses["studio-1"]["en3"]
    (finding,) = found(wiring)
    assert "en3 is in the Thunderbolt Bridge (bridge0)" in finding.text


def test_a_bridge_without_our_ports_is_nobodys_business():
    wiring = pair()
    wiring.bridge("studio-1", ["en6", "en7"])
    assert found(wiring) == []


@pytest.mark.parametrize(
    ("name", "typed"),
    [
        ("Thunderbolt-Brücke", '"Thunderbolt-Brücke"'),
        ("Pont Thunderbolt", '"Pont Thunderbolt"'),
        ("Thunderbolt ブリッジ", '"Thunderbolt ブリッジ"'),
        ("Alex' Bridge (2)", '"Alex\' Bridge (2)"'),
        ('The "old" $one', "'The \"old\" $one'"),
        ("(Hardware) *Bridge", '"(Hardware) *Bridge"'),
    ],
)
def test_the_bridges_service_is_found_by_its_device_whatever_its_name(name, typed):
    wiring = pair()
    wiring.services["studio-1"] = [("Thunderbolt Bridge", "en9", True)]
    wiring.bridge("studio-1", ["en3"], service=name)
    (finding,) = found(wiring)
    assert finding.fix[1] == f"sudo networksetup -setnetworkserviceenabled {typed} off"


def test_another_bridge_than_bridge0_is_taken_apart_by_its_own_name():
    wiring = pair()
    wiring.bridge("studio-1", ["en3"], device="bridge2")
    (finding,) = found(wiring)
    assert "en3 is in the Thunderbolt Bridge (bridge2)" in finding.text
    assert "sudo /sbin/ifconfig bridge2 deletem en3" in finding.fix
    assert any("Delete :VirtualNetworkInterfaces:Bridge:bridge2'" in line for line in finding.fix)


def test_a_bridge_that_has_more_than_thunderbolt_ports_is_not_deleted():
    wiring = pair()
    wiring.bridge("studio-1", ["en3", "en0"], service="Lab")
    wiring.addresses["studio-1"]["bridge0"] = wiring.addresses["studio-1"]["en0"]
    (finding,) = found(wiring)
    assert not any("PlistBuddy" in line or " down" in line for line in finding.fix)
    assert "sudo /sbin/ifconfig bridge0 deletem en3" in finding.fix
    assert any("bridge0 has en0, too: System Settings" in line for line in finding.fix)


def test_internet_sharing_is_told_from_the_thunderbolt_bridge():
    wiring = pair()
    wiring.bridge("studio-1", ["en3"], device="bridge100")
    wiring.configured["studio-1"], wiring.services["studio-1"] = {}, []
    (finding,) = found(wiring)
    assert "en3 is in bridge100 (Internet Sharing or a virtual machine)" in finding.text
    assert "sudo /sbin/ifconfig bridge100 deletem en3" in finding.fix
    assert any("Internet Sharing off" in line for line in finding.fix)


def test_an_address_on_the_bridge_in_place_of_the_port_is_named():
    wiring = pair()
    wiring.bridge("studio-1", ["en3"])
    wiring.addresses["studio-1"]["bridge0"] = "10.77.1.1/30"
    (finding,) = found(wiring)
    assert "(bridge0), which has their address (10.77.1.1)" in finding.text
    # The port is out of the bridge, and the address is still the bridge's.
    wiring.bridged["studio-1"] = []
    wiring.configured["studio-1"] = {"bridge0": ["en7"]}
    del wiring.addresses["studio-1"]["en3"]
    (finding,) = found(wiring)
    assert finding.text.startswith(
        "studio-1: en3, to studio-2 en3, has no IPv4 address; bridge0 has"
    )
    assert "one, 10.77.1.1, in its place" in finding.text
    assert finding.fix[1] == (
        'sudo networksetup -setnetworkserviceenabled "Thunderbolt Bridge" off'
    )


# Addresses. Each row: what is wrong, who is told of it in which words, and what mends it.

ROWS: dict[str, tuple] = {}


def row(*expected: tuple[str, str, str], names: int = 2):
    """expected: (host, words, command), a finding each, in order."""

    def add(change: Callable[[Wiring], None]):
        ROWS[change.__name__] = (change, expected, names)
        return change

    return add


MANUAL = 'sudo networksetup -setmanual "RDMA en3"'
MASK = '255.255.255.252 ""'


@row(
    ("studio-1",
     "en3 (10.9.1.1/30) is in another subnet than the far end, studio-2 en3 (10.9.2.2/30)",
     f"{MANUAL} 10.77.1.1 {MASK}"),
    ("studio-2",
     "en3 (10.9.2.2/30) is in another subnet than the far end, studio-1 en3 (10.9.1.1/30)",
     f"{MANUAL} 10.77.1.2 {MASK}"),
)  # fmt: skip
def the_ends_are_in_different_subnets(wiring):
    wiring.addresses["studio-1"]["en3"] = "10.9.1.1/30"
    wiring.addresses["studio-2"]["en3"] = "10.9.2.2/30"


@row(
    ("studio-2", "en3 (10.77.1.1/30) has the address of the far end, studio-1 en3 (10.77.1.1/30)",
     f"{MANUAL} 10.77.1.2 {MASK}"),
)  # fmt: skip
def both_ends_have_the_same_address(wiring):
    wiring.addresses["studio-2"]["en3"] = "10.77.1.1/30"


@row(
    ("studio-2",
     "en4 (10.77.1.1/24), to studio-3 en4 (10.77.1.9/24), has the address of studio-1 en3",
     'sudo networksetup -setmanual "RDMA en4" 10.77.3.1'),
    ("studio-3", "en4: the far end needs an address, and this end one to match it",
     'sudo networksetup -setmanual "RDMA en4" 10.77.3.2'),
    names=3,
)  # fmt: skip
def an_address_is_twice_in_the_cluster(wiring):
    wiring.addresses["studio-2"]["en4"] = "10.77.1.1/24"
    wiring.addresses["studio-3"]["en4"] = "10.77.1.9/24"


@row(
    ("studio-1", "en3 (192.168.0.1/30), to studio-2 en3 (192.168.0.2/30), takes addresses of the "
     "ordinary network, 192.168.0.0/24 on en0", f"{MANUAL} 10.77.1.1 {MASK}"),
    ("studio-2", "en3 (192.168.0.2/30), to studio-1 en3 (192.168.0.1/30), takes addresses of the "
     "ordinary network, 192.168.0.0/24 on en0", f"{MANUAL} 10.77.1.2 {MASK}"),
)  # fmt: skip
def the_ports_are_in_the_lans_own_subnet(wiring):
    """As mlx.distributed_config gives them, on the commonest home network."""
    for place, name in enumerate(wiring.names, 1):
        wiring.addresses[name] = {"en0": f"192.168.0.{10 + place}", "en3": f"192.168.0.{place}/30"}


@row(
    ("studio-2", "en3 (169.254.7.1/16) is self-assigned, and the far end, studio-1 en3 "
     "(10.77.1.1/30), is not", f"{MANUAL} 10.77.1.2 {MASK}"),
)  # fmt: skip
def one_end_assigned_itself_an_address(wiring):
    wiring.addresses["studio-2"]["en3"] = "169.254.7.1/16"


@row(
    ("studio-1",
     "en3 (10.77.1.1/24) has another netmask than the far end, studio-2 en3 (10.77.1.2/30)",
     f"{MANUAL} 10.77.1.1 {MASK}"),
)  # fmt: skip
def the_netmasks_differ(wiring):
    wiring.addresses["studio-1"]["en3"] = "10.77.1.1/24"


@row(("studio-2", "en3 (10.77.1.2/30), to studio-1 en3, is down", "sudo /sbin/ifconfig en3 up"))
def an_interface_is_down(wiring):
    wiring.down.add("studio-2:en3")


@row(
    (
        "studio-2",
        "en3, to studio-1 en3, is down and has no IPv4 address",
        f"{MANUAL} 10.77.1.2 {MASK}",
    )
)
def an_interface_is_down_and_bare(wiring):
    wiring.down.add("studio-2:en3")
    del wiring.addresses["studio-2"]["en3"]


@row(("studio-2", "en3 has no IPv4 address; JACCL needs an address", f"{MANUAL} 10.77.1.2 {MASK}"))
def a_port_has_no_address(wiring):
    del wiring.addresses["studio-2"]["en3"]


@row(
    ("studio-1", "en3 (10.77.1.1/30) gets no answer from the far end, studio-2 en3 (10.77.1.2/30) "
     "(its neighbour cache: incomplete)", "then: ssh studio-1 /sbin/ping -c 3 -b en3 10.77.1.2"),
)  # fmt: skip
def the_far_end_does_not_answer(wiring):
    wiring.deaf.add("studio-2:en3")


@row(
    ("studio-2", "en3 (10.77.1.2/30) has no link (status: inactive), and gets no answer from "
     "studio-1 en3 (10.77.1.1/30)", "then: ssh studio-2 /sbin/ping -c 3 -b en3 10.77.1.1"),
)  # fmt: skip
def an_end_has_no_link(wiring):
    wiring.no_link.add("studio-2:en3")


@pytest.mark.parametrize("name", ROWS)
def test_the_end_at_fault_is_named_with_its_fix_and_nothing_else(name):
    change, expected, count = ROWS[name]
    wiring = healthy(mesh(NAMES[:count]))
    change(wiring)
    findings = found(wiring)
    assert [finding.severity for finding in findings] == ["warning"] * len(expected), findings
    for finding, (host, words, command) in zip(findings, expected, strict=True):
        assert finding.text.startswith(f"{host}: ")
        assert words in finding.text
        assert any(line.startswith(command) for line in finding.fix), finding.fix


@pytest.mark.parametrize(
    "name", [name for name in ROWS if "answer" not in name and "link" not in name]
)
def test_who_follows_the_advice_has_nothing_left_to_do(name):
    change, _, count = ROWS[name]
    wiring = healthy(mesh(NAMES[:count]))
    change(wiring)
    follow(wiring)
    assert found(wiring) == []


def follow(wiring: Wiring) -> None:
    """What the commands for each Mac do there."""
    for finding in found(wiring):
        host = finding.text.partition(":")[0]
        for line in finding.fix:
            words = shlex.split(line) if line.startswith("sudo ") else [""]
            if "-setmanual" in words:
                device = words[3].removeprefix("RDMA ")
                wiring.addresses[host][device] = str(ip_interface(f"{words[4]}/{words[5]}"))
                wiring.down.discard(f"{host}:{device}")
            elif words[-1] == "up":
                wiring.down.discard(f"{host}:{words[2]}")
            elif "deletem" in words:
                wiring.bridged[host] = [m for m in wiring.bridged[host] if m != words[-1]]
            elif "-setnetworkserviceenabled" in words:
                wiring.make_inactive(host)
            elif words[1:2] == ["/usr/libexec/PlistBuddy"]:
                wiring.configured[host] = {}


GIVEN = (
    None, "10.77.1.1/30", "10.77.1.2/30", "10.77.2.1/30", "10.77.2.2/30", "10.77.3.1/30",
    "10.77.1.3/24", "10.77.1.0/24", "10.1.1.1/32", "10.0.0.1/8", "10.9.0.1/24", "10.9.0.3/30",
    "192.168.0.1/30", "192.168.0.2/30", "169.254.3.4/16", "169.254.9.9/16", "172.30.1.1/30",
)  # fmt: skip


@pytest.mark.parametrize("seed", range(40))
def test_whatever_the_ends_have_the_advice_mends_it_in_one_round(seed):
    """Addresses, masks, ordinary networks, bridges and switches, all at random."""
    chance = random.Random(seed)
    wiring = mesh(NAMES[: chance.choice([2, 3, 4])])
    lan = chance.choice(["192.168.0.{}/24", "10.0.0.{}/8", "10.77.0.{}/16", "192.0.2.{}/24"])
    for number, name in enumerate(wiring.names, 50):
        wiring.addresses[name]["en0"] = lan.format(number)
        for device in (wiring.interfaces[n] for n in wiring.receptacles[1 : len(wiring.names)]):
            wiring.addresses[name][device] = chance.choice(GIVEN) or []
            if chance.random() < 0.1:
                wiring.down.add(f"{name}:{device}")
        if chance.random() < 0.3:
            wiring.bridge(name, [wiring.interfaces[n] for n in wiring.receptacles])
    follow(wiring)
    assert [finding for finding in found(wiring) if finding.severity != "note"] == []
    facts = facts_of(wiring)
    networks = networks_of(facts)
    assert all(fits(*sides(networks, link)) for link in make_plan(facts).used)


# What works is left alone.


@pytest.mark.parametrize("make", [mesh, ring])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_cables_that_work_have_no_finding(make, count):
    wiring = healthy(make(NAMES[:count]))
    findings = found(wiring)
    assert [finding for finding in findings if finding.severity != "note"] == []
    assert not any("self-assigned" in finding.text for finding in findings)


def test_self_assigned_addresses_at_both_ends_do_and_are_a_note():
    wiring = healthy(mesh(NAMES[:3]))
    for number, name in enumerate(wiring.names, 1):
        for port, device in enumerate(("en3", "en4"), 1):
            wiring.addresses[name][device] = f"169.254.{number}.{port}/16"
    (finding,) = found(wiring)
    assert finding.severity == "note"
    assert "studio-1 en3 (169.254.1.1/16) and studio-2 en3 (169.254.2.1/16)" in finding.text
    assert f"on studio-1: {MANUAL} 10.77.1.1 {MASK}" in finding.fix
    assert len(finding.fix) == 1 + 6 * 2  # a service and its address, for each end


def test_of_several_addresses_the_one_that_fits_counts():
    wiring = pair()
    wiring.addresses["studio-1"]["en3"] = ["169.254.9.9/16", "10.77.1.1/30"]
    assert found(wiring) == []


def test_a_firewall_that_answers_no_ping_is_no_broken_cable():
    """Stealth mode: the far end tells its hardware address all the same, and RDMA needs no more."""
    wiring = pair()
    wiring.stealthy |= {"studio-1:en3", "studio-2:en3"}
    assert found(wiring) == []


def test_an_empty_cache_counts_only_where_nobody_could_ping():
    wiring = pair()
    facts = facts_of(wiring)
    assert found(wiring, pings={}) == []
    wiring.deaf.add("studio-2:en3")
    (finding,) = found(wiring, pings={})
    assert finding.text == (
        "studio-1: en3 (10.77.1.1/30): its neighbour cache is incomplete for the far end, "
        "studio-2 en3 (10.77.1.2/30), and no ping could be tried"
    )
    assert finding.fix == ("ssh studio-1 /sbin/ping -c 3 -b en3 10.77.1.2 fills it",)
    # It answered, so the ping has filled the cache by now.
    heard = {("studio-1", "en3"): Heard(True, None)}
    assert advise(facts, make_plan(facts), pings=heard) == []


def test_of_ports_with_the_same_address_one_keeps_it_and_an_empty_port_is_no_rival():
    wiring = Wiring(NAMES[:6])
    for a, b in zip(NAMES[:6:2], NAMES[1:6:2], strict=True):
        wiring.plug(f"{a}:2", f"{b}:2")
    networks = networks_of(facts_of(wiring))
    assert find_faults(networks, cables_of(wiring)) != []
    for number, name in enumerate(NAMES[:6]):
        wiring.addresses[name]["en3"] = f"10.5.0.{1 + number % 2}/30"
    faults = find_faults(networks_of(facts_of(wiring)), cables_of(wiring))
    assert [(fault.end.host, fault.kind) for fault in faults] == [
        ("studio-3", "twice"), ("studio-5", "twice"), ("studio-4", "twice"), ("studio-6", "twice"),
    ]  # fmt: skip
    wiring = pair()
    wiring.addresses["studio-2"]["en7"] = "10.77.1.1/30"  # nothing is plugged in there
    assert found(wiring) == []
    wiring.addresses["studio-2"]["en0"] = "10.77.1.1/30"
    assert any("has the address of studio-2 en0" in finding.text for finding in found(wiring))


def test_addresses_of_a_vpn_and_of_other_cables_are_no_ordinary_network():
    wiring = pair()
    wiring.addresses["studio-1"]["en3"] = "10.64.9.1/30"  # within utun0's 10.0.0.0/8
    wiring.addresses["studio-2"]["en3"] = "10.64.9.2/30"
    wiring.addresses["studio-1"]["en7"] = "10.64.9.200/24"
    assert found(wiring) == []


# The addresses that are advised.


def test_an_advised_subnet_is_one_that_nobody_has():
    """Neither the ordinary network's nor that of a cable that stays as it is."""
    wiring = healthy(mesh(NAMES[:3]))
    del wiring.addresses["studio-1"]["en4"]  # cable 2
    wiring.addresses["studio-2"]["en4"] = "10.77.2.1/30"  # cable 3 has the second's addresses
    wiring.addresses["studio-3"]["en4"] = "10.77.2.2/30"
    wiring.addresses["studio-3"]["en3"] = "10.77.3.2/30"
    (finding,) = found(wiring)
    assert 'sudo networksetup -setmanual "RDMA en4" 10.77.3.1 255.255.255.252 ""' in finding.fix
    for name in wiring.names:
        wiring.addresses[name]["en0"] = "10.0.0.5/8"
    fixes = [line for finding in found(wiring) for line in finding.fix if "-setmanual" in line]
    assert fixes
    assert all(" 172.30." in line for line in fixes)


def test_a_service_that_the_port_has_is_used_and_others_of_it_are_switched_off():
    wiring = pair()
    wiring.addresses["studio-2"]["en3"] = "169.254.7.1/16"
    wiring.services["studio-2"] = [("Thunderbolt 2", "en3", True), ("RDMA en3", "en3", False)]
    (finding,) = found(wiring)
    assert finding.fix[1:-1] == (
        'sudo networksetup -setnetworkserviceenabled "Thunderbolt 2" off',
        'sudo networksetup -setnetworkserviceenabled "RDMA en3" on',
        f"{MANUAL} 10.77.1.2 {MASK}",
    )


def test_a_mac_whose_ifconfig_did_not_answer_is_not_blamed_for_its_addresses():
    wiring = pair()
    facts = facts_of(wiring)
    sections = sections_of(wiring, "studio-2") | {"ifconfig": ("", 137)}
    facts["studio-2"] = read_facts("studio-2", answer(sections))
    assert [finding.text for finding in advise(facts, make_plan(facts))] == [
        "studio-2: ifconfig did not answer within 15 s"
    ]
