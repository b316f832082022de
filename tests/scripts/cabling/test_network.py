"""From the texts of macOS's tools to the network of a Mac; texts as owners have posted them."""

import itertools

import pytest

from scripts.lib.cabling.network import (
    Neighbour,
    Service,
    parse_bridges,
    parse_ifconfig,
    parse_neighbours,
    parse_services,
    read_network,
)

IFCONFIG = """\
lo0: flags=8049<UP,LOOPBACK,RUNNING,MULTICAST> mtu 16384
\toptions=1203<RXCSUM,TXCSUM,TXSTATUS,SW_TIMESTAMP>
\tinet 127.0.0.1 netmask 0xff000000
\tinet6 fe80::1%lo0 prefixlen 64 scopeid 0x1
\tnd6 options=201<PERFORMNUD,DAD>
en2: flags=8822<BROADCAST,SMART,SIMPLEX,MULTICAST> mtu 1500
\toptions=460<TSO4,TSO6,CHANNEL_IO>
\tether 36:16:a0:1d:34:00
\tmedia: autoselect <full-duplex>
\tstatus: inactive
en8: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\tether ae:a4:fa:01:18:2b
\tinet6 fe80::a0:2256:4d46:27ee%en8 prefixlen 64 secured scopeid 0x13
\tinet 169.254.138.233 netmask 0xffff0000 broadcast 169.254.255.255
\tinet 10.77.1.2 netmask 0xfffffffc broadcast 10.77.1.3
\tmedia: autoselect
\tstatus: active
bridge0: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 9000
\toptions=63<RXCSUM,TXCSUM,TSO4,TSO6>
\tinet 10.25.0.1 netmask 0xffffff00 broadcast 10.25.0.255
\tConfiguration:
\t\tid 0:0:0:0:0:0 priority 0 hellotime 0 fwddelay 0
\t\tipfilter disabled flags 0x0
\tmember: en3 flags=3<LEARNING,DISCOVER>
\t\tifmaxaddr 0 port 12 priority 0 path cost 0
\tmember: en4 flags=3<LEARNING,DISCOVER>
\t\tifmaxaddr 0 port 13 priority 0 path cost 0
\tmedia: autoselect
\tstatus: active
utun3: flags=8051<UP,POINTOPOINT,RUNNING,MULTICAST> mtu 1280
\tinet 100.64.1.2 --> 100.64.1.2 netmask 0xffffffff
"""
# A star in place of the number as macOS prints it, and before the name as others have written it.
SERVICES = """\
An asterisk (*) denotes that a network service is disabled.
(1) USB 10/100/1000 LAN 2
(Hardware Port: USB 10/100/1000 LAN, Device: en11)

(*) Thunderbolt-Brücke (alt), "neu"
(Hardware Port: Thunderbolt-Brücke, Device: bridge0)

(3) *Wi-Fi
(Hardware Port: Wi-Fi, Device: en0)

(4) Tailscale
(Hardware Port: io.tailscale.ipn.macsys, Device: )
"""
VIRTUAL = """\
Dict {
    bridge0 = Dict {
        SCNetworkInterfaceType = Bridge
        Interfaces = Array {
            en1
            en2
        }
        Options = Dict {
            __AUTO__ = thunderbolt-bridge
        }
        UserDefinedName = Thunderbolt Bridge
    }
    bridge1 = Dict {
        Interfaces = Array {
        }
    }
}
"""
ARP = """\
? (10.77.1.1) at 36:1:a0:1d:34:4 on en8 ifscope [ethernet]
? (10.77.2.1) at (incomplete) on en2 ifscope [ethernet]
mac.local (192.168.0.7) at 0:1c:42:0:0:18 on en0 ifscope permanent [ethernet]
"""


def test_interfaces_are_read_with_addresses_masks_members_and_state():
    found = parse_ifconfig(IFCONFIG)
    assert list(found) == ["lo0", "en2", "en8", "bridge0", "utun3"]
    assert (found["en2"].up, found["en2"].active, found["en2"].addresses) == (False, False, ())
    assert [str(a) for a in found["en8"].addresses] == ["169.254.138.233/16", "10.77.1.2/30"]
    assert (found["en8"].up, found["en8"].active) == (True, True)
    assert found["bridge0"].members == ("en3", "en4")
    assert found["lo0"].active is None
    assert [name for name, each in found.items() if each.point_to_point] == ["utun3"]


def test_masks_of_other_systems_and_masks_that_are_none():
    def addresses(line: str) -> list[str]:
        text = f"en0: flags=4163<UP> mtu 1500\n        {line}\n"
        return [str(address) for address in parse_ifconfig(text)["en0"].addresses]

    assert addresses("inet 10.1.2.3  netmask 255.255.255.252  broadcast 10.1.2.3") == [
        "10.1.2.3/30"
    ]
    assert addresses("inet 10.1.2.3 netmask 0xff00ff00") == []
    assert addresses("inet 10.1.2 netmask 0xff000000") == []
    assert addresses("inet6 fe80::1%en0 prefixlen 64") == []


def test_services_are_known_by_device_and_names_may_have_any_letters():
    assert parse_services(SERVICES) == (
        Service("USB 10/100/1000 LAN 2", "en11", True),
        Service('Thunderbolt-Brücke (alt), "neu"', "bridge0", False),
        Service("Wi-Fi", "en0", False),
        Service("Tailscale", "", True),
    )
    assert parse_services("** Error: Unable to find item in network database.\n") == ()


def test_bridges_of_the_settings_none_and_not_told_are_three_things():
    assert parse_bridges(VIRTUAL) == {"bridge0": ("en1", "en2"), "bridge1": ()}
    assert parse_bridges('Print: Entry, ":VirtualNetworkInterfaces", Does Not Exist\n') == {}
    assert parse_bridges("Error Reading File: preferences.plist\n") is None


def test_neighbours_that_have_not_answered_are_incomplete():
    assert parse_neighbours(ARP) == (
        Neighbour("en8", "10.77.1.1", True),
        Neighbour("en2", "10.77.2.1", False),
        Neighbour("en0", "192.168.0.7", True),
    )


@pytest.mark.parametrize("size", [0, 1, 2])
def test_what_was_not_told_is_not_known(size):
    texts = {"ifconfig": IFCONFIG, "services": SERVICES, "virtual": VIRTUAL, "arp": ARP}
    for names in itertools.combinations(texts, size):
        network = read_network({name: texts[name] for name in names})
        assert bool(network.interfaces) == ("ifconfig" in names)
        assert (network.services is not None) == ("services" in names)
        assert (network.bridges is not None) == ("virtual" in names)
        assert (network.neighbours is not None) == ("arp" in names)
