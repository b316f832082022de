"""The program that pings, and what is made of its answers."""

import subprocess

import pytest

from scripts.lib.cabling.pings import (
    COMPLETE,
    EMPTY,
    INCOMPLETE,
    PING,
    Heard,
    find_silent,
    ping_far_ends,
    program_for,
    read_pings,
    to_ping,
)
from scripts.lib.cabling.plan import make_plan
from scripts.lib.cabling.survey import networks_of
from scripts.lib.hosts.on_hosts import Answer
from tests.support.cabled import NAMES, facts_of, healthy
from tests.support.wiring import Wiring, mesh


def asked(wiring: Wiring):
    """(networks, links, who pings whom)."""
    facts = facts_of(wiring)
    links = make_plan(facts).used
    return networks_of(facts), links, to_ping(networks_of(facts), links)


def test_both_ends_of_each_cable_whose_ends_fit_are_pinged_out_of_their_port():
    wiring = healthy(mesh(NAMES[:3]))
    wiring.addresses["studio-3"]["en3"] = "169.254.1.1/16"
    _, _, wanted = asked(wiring)
    text = program_for(wanted, NAMES[:3]).decode()
    assert [line.strip() for line in text.splitlines() if line.strip().startswith("try en")] == [
        "try en3 10.77.1.2 &",
        "try en3 10.77.1.1 &",
        "try en4 10.77.3.2 &",
        "try en4 10.77.3.1 &",
    ]
    assert "/sbin/ping -n -o -c 3 -t 4 -b" in text


def test_the_program_tells_each_answer_and_the_neighbours_on_its_host_alone(tmp_path):
    """In the plain shell that a Mac has, with the tools at other paths."""
    _, _, wanted = asked(healthy(mesh(NAMES[:3])))
    (tmp_path / "ping").write_text('#!/bin/sh\necho "$*" >>"$0.calls"\n[ "$9" = 10.77.1.2 ]\n')
    (tmp_path / "arp").write_text("#!/bin/sh\necho '? (10.77.2.2) at (incomplete) on en4'\n")
    for tool in ("ping", "arp"):
        (tmp_path / tool).chmod(0o755)
    text = program_for(wanted, NAMES[:3]).decode()
    text = text.replace("/sbin/ping", f"{tmp_path}/ping").replace(
        "/usr/sbin/arp", f"{tmp_path}/arp"
    )
    ran = subprocess.run(["/bin/sh", "-s", "0"], input=text, capture_output=True, text=True)
    assert read_pings(wanted, {"studio-1": ran.stdout}) == {
        ("studio-1", "en3"): Heard(True, EMPTY),
        ("studio-1", "en4"): Heard(False, INCOMPLETE),
    }
    calls = sorted((tmp_path / "ping.calls").read_text().splitlines())
    assert calls == [f"{' '.join(PING[1:])} en3 10.77.1.2", f"{' '.join(PING[1:])} en4 10.77.2.2"]


@pytest.mark.parametrize("output", ["", "@@ends ping en3 10.77.1.2 127\n", "sh: not found\n"])
def test_a_ping_that_was_not_done_blames_nobody(output):
    networks, links, wanted = asked(healthy(mesh(NAMES[:2])))
    heard = read_pings(wanted, dict.fromkeys(NAMES[:2], output))
    assert heard == {}
    assert find_silent(networks, links, heard) == []


def test_one_end_that_hears_the_other_proves_the_cable():
    networks, links, _ = asked(healthy(mesh(NAMES[:2])))
    a, b = ("studio-1", "en3"), ("studio-2", "en3")
    assert find_silent(networks, links, {a: Heard(True, COMPLETE)}) == []
    assert find_silent(networks, links, {a: Heard(True, None), b: Heard(False, EMPTY)}) == []
    (fault,) = find_silent(networks, links, {a: Heard(False, COMPLETE), b: Heard(False, EMPTY)})
    assert fault.end.host == "studio-2"
    assert "gets no answer from the far end, studio-1 en3" in fault.text


def test_every_host_is_asked_once_with_its_place_and_the_deadline():
    networks, links, _ = asked(healthy(mesh(NAMES[:3])))
    calls = []

    def run(hosts, command, *, within_s, stdin) -> list[Answer]:
        calls.append([(host, command(host)) for host in hosts])
        return [Answer(hosts[0], None, "@@ends ping en3 10.77.1.2 2\n", "", within_s)]

    heard = ping_far_ends(networks, links, within_s=3.0, run=run)
    assert calls == [[(name, ["/bin/sh", "-s", str(n)]) for n, name in enumerate(NAMES[:3])]]
    # It ran out of time, and what it had said by then counts.
    assert heard == {("studio-1", "en3"): Heard(False, None)}
