"""What MLX's errors of a link mean. The texts are those in the libraries of MLX 0.32.4."""

import pytest

from server.main import _explain
from server.protocol.exit_codes import INTERNAL, PEER_LOST
from server.protocol.failures import is_shared
from server.startup.link_errors import Kind, explain

RTR = "[jaccl] Changing queue pair to RTR failed with errno "
TEXTS = {
    "[jaccl] Couldn't connect (error: 61)": (Kind.LATE, "refused"),
    "[jaccl] Couldn't connect (error: 111)": (Kind.LATE, "refused"),
    "[jaccl] Couldn't connect (error: 60)": (Kind.LATE, "firewall"),
    "[ring] Couldn't connect (error: 110)": (Kind.LATE, "firewall"),
    "[jaccl] Couldn't connect (error: 65)": (Kind.LATE, "local network"),
    "[jaccl] Couldn't bind socket (error: 49)": (Kind.OWN, '"ips"'),
    "[jaccl] Couldn't bind socket (error: 48)": (Kind.LATE, "CLUSTER_PORT"),
    "[jaccl] Send failed with errno=32": (Kind.PEER, "closed"),
    "[jaccl] Recv failed with errno=17": (Kind.PEER, "closed"),
    "[jaccl] Recv failed with errno=2": (Kind.PEER, "closed"),
    "[jaccl] Recv failed with errno=54": (Kind.PEER, "reset"),
    "[jaccl] Recv failed with errno=60": (Kind.PEER, "does not answer"),
    "[jaccl] Accept failed (error: 53)": (Kind.PEER, "gone"),
    "[jaccl] Send failed with error code 22": (Kind.PEER, "work request"),
    "[jaccl] Recv failed with error code 12": (Kind.PEER, "work request"),
    "[ring] connection to a peer was lost": (Kind.PEER, "closed"),
    "[jaccl] Could not find device rdma_en2 (0 available)": (Kind.OWN, "RDMA is off"),
    "[jaccl] Could not find device rdma_en2 (3 available)": (Kind.FIX, "hostfile"),
    "[jaccl] Could not open device rdma_en2": (Kind.OWN, "restart"),
    "[jaccl] Couldn't allocate protection domain": (Kind.OWN, "port is down"),
    "[jaccl] Couldn't create completion queue": (Kind.OWN, "another process"),
    "[jaccl] Creating the queue pair failed with 'Resource busy (16)'.": (Kind.OWN, "EBUSY"),
    "[jaccl] Register memory region failed": (Kind.OWN, "hundred"),
    "[jaccl] No IPv4-mapped GID for this device. Thunderbolt": (Kind.OWN, "no IPv4 address"),
    "[jaccl] Changing queue pair to INIT failed with errno 22": (Kind.OWN, "EINVAL"),
    "[jaccl] Changing queue pair to RTS failed with errno 22": (Kind.OWN, "EINVAL"),
    RTR + "2": (Kind.OWN, "no GID"),
    RTR + "22": (Kind.OWN, "different subnets"),
    RTR + "60": (Kind.OWN, "matrix"),
    RTR + "96": (Kind.OWN, "no GID"),
    RTR + "5": (Kind.OWN, "far end"),
    "[jaccl] The JACCL mesh supports up to 8 peers but 9 were provided.": (Kind.FIX, "jaccl-ring"),
    "[jaccl] The devices do not form a valid ring.": (Kind.FIX, "gaps"),
    "[jaccl] The device file should start with an array": (Kind.FIX, "malformed"),
    "[jaccl] Device names should be null, a string or array of strings.": (Kind.FIX, "malformed"),
    "Cannot initialize jaccl distributed backend.": (Kind.FIX, "macOS 26"),
    "Can't parse address mac0:32323": (Kind.FIX, "look up"),
    "[jaccl] Something that a later version says": (Kind.OWN, "verify_cluster"),
}


@pytest.mark.parametrize("text", TEXTS)
def test_each_error_has_its_owner_and_its_cause(text):
    meaning, (kind, words) = explain(text), TEXTS[text]
    assert meaning.kind is kind
    assert words in meaning.text


@pytest.mark.parametrize("text", TEXTS)
def test_only_sockets_and_posts_are_a_lost_peer_while_it_serves(text):
    code, reason = _explain(RuntimeError(text))
    kind, words = TEXTS[text]
    lost = kind in (Kind.PEER, Kind.LATE)
    assert (code, reason.startswith("lost a peer: ")) == (PEER_LOST if lost else INTERNAL, lost)
    assert text in reason and words in reason


@pytest.mark.parametrize("text", ["no room", "[metal] Command buffer execution failed"])
def test_what_is_no_links_error_stays_as_it_is(text):
    assert explain(text) is None
    assert _explain(RuntimeError(text)) == (INTERNAL, f"RuntimeError: {text}")


def test_what_jaccl_cannot_post_is_no_fault_of_the_requests_data():
    """It is a ValueError in Python, which this rank alone would have gone on after."""
    assert not is_shared(ValueError("[jaccl] Send failed with error code 22"))
    assert is_shared(ValueError("no such token"))
