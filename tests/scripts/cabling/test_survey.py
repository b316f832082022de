"""From the answers of all hosts to facts."""

import pytest

from scripts.lib.cabling.survey import SurveyError, read_facts
from tests.support.cabled import NAMES, answer, facts_of, healthy, sections_of
from tests.support.wiring import mesh


def test_facts_are_read_behind_a_talkative_profile():
    wiring = healthy(mesh(NAMES[:2]))
    fact = facts_of(wiring)["studio-1"]
    assert (fact.is_mac, fact.rdma, fact.bridged, fact.troubles) == (True, "enabled", (), ())
    assert fact.addresses == {"en0": "192.0.2.11", "en3": "10.77.1.1"}
    assert fact.lan_address == "192.0.2.11"


def test_the_ordinary_address_is_en0_then_en1_and_never_a_thunderbolt_port():
    wiring = mesh(NAMES[:2])
    wiring.addresses["studio-1"] = {"en3": "10.77.0.1", "en1": "192.0.2.7", "en9": "192.0.2.8"}
    assert facts_of(wiring)["studio-1"].lan_address == "192.0.2.7"
    wiring.addresses["studio-1"] = {"en0": "169.254.1.1", "en9": "192.0.2.8"}
    assert facts_of(wiring)["studio-1"].lan_address == "192.0.2.8"
    wiring.addresses["studio-1"] = {"en3": "10.77.0.1"}
    assert facts_of(wiring)["studio-1"].lan_address is None


def test_a_linux_host_has_addresses_and_no_ports():
    text = answer({"system": ("Linux\n", 0), "names": ("192.0.2.9 fd00::1 \n", 0)})
    fact = read_facts("box", text)
    assert (fact.is_mac, fact.ports, fact.lan_address) == (False, (), "192.0.2.9")


def test_tools_that_fail_hang_or_are_missing_are_named():
    sections = sections_of(healthy(mesh(NAMES[:2])), "studio-1")
    sections["devices"] = ("", 137)
    sections["rdma"] = ("zsh: no such file", 127)
    fact = read_facts("studio-1", answer(sections))
    assert fact.troubles == ("it has no rdma_ctl", "ibv_devices did not answer within 15 s")
    assert {port.device for port in fact.ports} == {None}


def test_an_answer_that_breaks_off_tells_where():
    text = answer(sections_of(mesh(NAMES[:2]), "studio-1"))
    with pytest.raises(SurveyError, match="networksetup did not answer"):
        read_facts("studio-1", text[: text.index("Hardware Port")])
    with pytest.raises(SurveyError, match="did not run the program"):
        read_facts("studio-1", "This account is not available.\n")


def test_a_tool_that_prints_something_else_is_named():
    sections = sections_of(mesh(NAMES[:2]), "studio-1")
    sections["profiler"] = ("usage: system_profiler", 0)
    with pytest.raises(SurveyError, match="system_profiler did not print JSON"):
        read_facts("studio-1", answer(sections))
