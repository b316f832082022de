"""From the answers of all hosts to a plan, what is said about it, and the file that is written."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.lib.cabling.advice import advise, advise_tcp
from scripts.lib.cabling.draw import draw_dot, draw_text
from scripts.lib.cabling.plan import Plan, make_plan, ring_hostfile
from scripts.lib.cabling.survey import PROGRAM, Facts, SurveyError, read_facts
from scripts.lib.hosts import hostfile
from tests.support.paths import ROOT
from tests.support.wiring import Wiring, mesh, ring

SCRIPT = ROOT / "scripts" / "make_hostfile.sh"
NAMES = [f"studio-{i}" for i in range(1, 13)]


def answer(sections: dict[str, tuple[str, int]]) -> str:
    """What the program prints on a host, with the profile's noise before it."""
    said = (
        f"@@cabling begin {name}\n{text}\n@@cabling end {name} {code}\n"
        for name, (text, code) in sections.items()
    )
    return "Welcome!\n" + "".join(said)


def sections_of(wiring: Wiring, name: str) -> dict[str, tuple[str, int]]:
    texts = wiring.texts(name)
    addresses = "".join(f"{i} {a}\n" for i, a in wiring.addresses[name].items())
    return {
        "system": ("Darwin\n", 0),
        "profiler": (texts["system_profiler"], 0),
        "hardware": (texts["networksetup"], 0),
        "addresses": (addresses, 0),
        "bridge": (texts["ifconfig"], 0 if texts["ifconfig"] else 1),
        "rdma": (texts["rdma_ctl"], 0),
        "devices": (texts["ibv_devices"], 0),
    }


def facts_of(wiring: Wiring, names: list[str] | None = None) -> dict[str, Facts]:
    return {
        name: read_facts(name, answer(sections_of(wiring, name))) for name in names or wiring.names
    }


def said(wiring: Wiring, topology: str | None = None) -> list[str]:
    """What is said of a cabling, each finding as severity and text."""
    facts = facts_of(wiring)
    found = advise(facts, make_plan(facts, topology), topology)
    return [f"{finding.severity}: {finding.text}" for finding in found]


def healthy(wiring: Wiring) -> Wiring:
    return wiring.address_ports()


# -- facts


def test_facts_are_read_behind_a_talkative_profile():
    wiring = healthy(mesh(NAMES[:2]))
    fact = facts_of(wiring)["studio-1"]
    assert (fact.is_mac, fact.rdma, fact.bridged, fact.troubles) == (True, "enabled", (), ())
    assert fact.addresses == {"en0": "192.0.2.11", "en3": "10.77.0.1"}
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


# -- plans


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
    assert any("a mesh uses the first cable of each pair" in text for text in said(wiring))


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


# -- what is said


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


def test_bridged_ports_and_ports_without_address_come_with_the_commands_for_that_host():
    wiring = mesh(NAMES[:3])
    wiring.address_ports()
    wiring.bridged["studio-2"] = ["en3", "en4", "en7"]
    del wiring.addresses["studio-3"]["en4"]
    facts = facts_of(wiring)
    one, two, three = advise(facts, make_plan(facts))
    assert one.text.startswith("studio-1: en3: the far end needs an address, and this end one")
    assert one.fix[1:] == (
        'sudo networksetup -createnetworkservice "RDMA en3" "Thunderbolt 2"',
        'sudo networksetup -setmanual "RDMA en3" 10.77.1.1 255.255.255.252 ""',
    )
    assert two.text.startswith("studio-2: en3, en4 are in the Thunderbolt Bridge (bridge0);")
    assert two.fix == (
        "on studio-2, once:",
        'sudo networksetup -setnetworkserviceenabled "Thunderbolt Bridge" off',
        'sudo networksetup -createnetworkservice "RDMA en3" "Thunderbolt 2"',
        'sudo networksetup -setmanual "RDMA en3" 10.77.1.2 255.255.255.252 ""',
        'sudo networksetup -createnetworkservice "RDMA en4" "Thunderbolt 3"',
        'sudo networksetup -setmanual "RDMA en4" 10.77.3.1 255.255.255.252 ""',
    )
    assert three.text.startswith("studio-3: en4 has no IPv4 address;")
    assert three.fix[-1] == 'sudo networksetup -setmanual "RDMA en4" 10.77.3.2 255.255.255.252 ""'


def test_an_end_that_has_the_matching_address_already_is_left_alone():
    wiring = mesh(NAMES[:2])
    wiring.addresses["studio-1"]["en3"] = "10.77.1.1"
    (finding,) = advise(facts := facts_of(wiring), make_plan(facts))
    assert finding.text.startswith("studio-2: en3 has no IPv4 address")


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


# -- drawings


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


# -- the script, over a stub ssh


class Macs:
    """A folder of invented Macs and the environment in which ssh reaches them."""

    def __init__(self, folder: Path, wiring: Wiring) -> None:
        self.folder = folder
        self.output = folder / "hosts.local.json"
        self.env = {
            **os.environ,
            **wiring.install(folder / "macs"),
            "PATH": f"{folder}/macs/bin:{os.environ['PATH']}",
            "PYTHON": sys.executable,
        }

    def make(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [SCRIPT, "--output", self.output, *arguments],
            capture_output=True, text=True, env=self.env, timeout=60,
        )  # fmt: skip


def test_the_script_writes_what_mlx_launch_reads(tmp_path):
    macs = Macs(tmp_path, healthy(mesh(NAMES[:3])))
    made = macs.make(*NAMES[:3])
    assert (made.returncode, made.stdout) == (0, f"{macs.output}\n"), made.stderr
    assert hostfile.find_problems(hostfile.parse_hostfile(macs.output.read_text())) == []
    common = pytest.importorskip("mlx._distributed_utils.common")
    read = common.Hostfile.from_file(macs.output)
    assert read.backend == "jaccl"
    assert [host.ssh_hostname for host in read.hosts] == NAMES[:3]
    assert read.hosts[2].rdma == ["rdma_en3", "rdma_en4", None]
    calls = (tmp_path / "macs" / "calls").read_text().splitlines()
    assert len(calls) == 3  # One ssh a host.


def test_it_overwrites_only_when_told_and_keeps_the_envs(tmp_path):
    macs = Macs(tmp_path, healthy(mesh(NAMES[:2])))
    old = '{"envs": ["MINE=1"], "hosts": [{"ssh": "x"}]}'
    macs.output.write_text(old)
    made = macs.make(*NAMES[:2])
    assert (made.returncode, macs.output.read_text()) == (1, old)
    assert "overwrite it with --force" in made.stderr
    assert not (tmp_path / "macs" / "calls").exists()
    made = macs.make("--force", *NAMES[:2])
    assert made.returncode == 0, made.stderr
    assert json.loads(macs.output.read_text())["envs"] == ["MINE=1"]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["hosts.local.json"]


def test_dry_run_prints_the_file_and_dot_the_graph_and_nothing_is_written(tmp_path):
    macs = Macs(tmp_path, healthy(mesh(NAMES[:2])))
    made = macs.make("--dry-run", *NAMES[:2])
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["hosts"][0]["rdma"] == [None, "rdma_en3"]
    assert macs.make("--dot", *NAMES[:2]).stdout.startswith("graph cabling {")
    assert not macs.output.exists()


def test_a_missing_cable_writes_nothing_and_is_said(tmp_path):
    macs = Macs(tmp_path, mesh(NAMES[:4]).unplug("studio-2:4").unplug("studio-4:2"))
    made = macs.make(*NAMES[:4])
    assert (made.returncode, made.stdout) == (1, "")
    assert "error: no cable between studio-2 and studio-4" in made.stderr
    assert not macs.output.exists()


def test_a_host_that_is_down_is_named_and_the_others_are_asked(tmp_path):
    macs = Macs(tmp_path, mesh(NAMES[:3]))
    (tmp_path / "macs" / "studio-2" / "down").touch()
    (tmp_path / "macs" / "studio-3" / "profile").write_text("Good morning\n")
    made = macs.make(*NAMES[:3])
    assert made.returncode == 1
    assert (
        "error: studio-2: ssh: connect to host studio-2 port 22: Connection refused" in made.stderr
    )
    assert "studio-3: 6 Thunderbolt ports, 2 lead to computers" in made.stderr


def test_a_hanging_tool_is_ended_on_its_host_and_named(tmp_path):
    macs = Macs(tmp_path, healthy(mesh(NAMES[:2])))
    tool = tmp_path / "macs" / "studio-2" / "ibv_devices"
    tool.write_text(f"#!/bin/sh\necho $$ >{tmp_path}/pid\nexec sleep 600\n")
    quick = PROGRAM.replace(b"left=15", b"left=1")
    assert quick != PROGRAM
    asked = subprocess.run(
        ["ssh", "studio-2", "/bin/sh", "-s"], input=quick, capture_output=True, env=macs.env
    )
    fact = read_facts("studio-2", asked.stdout.decode())
    assert fact.troubles == ("ibv_devices did not answer within 15 s",)
    assert fact.rdma == "enabled"
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_address_and_topology_are_taken(tmp_path):
    macs = Macs(tmp_path, healthy(mesh(NAMES[:4])))
    made = macs.make("--topology", "ring", "--address", "198.51.100.4", "--dry-run", *NAMES[:4])
    content = json.loads(made.stdout)
    assert content["backend"] == "jaccl-ring"
    assert content["hosts"][0]["ips"] == ["198.51.100.4"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "name two hosts or more"),
        (["studio-1"], "name two hosts or more"),
        (["studio-1", "studio-1"], "host 'studio-1' is named 2 times"),
        (["studio-1", "a;b"], "host 'a;b': not a name that ssh takes"),
        (["--topology", "star", "a", "b"], "--topology 'star': must be one of mesh, ring"),
        (["--address", "127.0.0.1", "a", "b"], "--address '127.0.0.1': must be an IPv4"),
        (["--address", "fd00::1", "a", "b"], "--address 'fd00::1': must be an IPv4"),
        (["--ring-tcp", "--topology", "mesh", "a", "b"], "the ring backend has no mesh"),
        (["--dot", "--dry-run", "a", "b"], "choose one"),
        (["--all", "a", "b"], "unknown argument '--all'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_told_in_one_line(tmp_path, arguments, told):
    made = Macs(tmp_path, Wiring(["a"])).make(*arguments)
    assert made.returncode == 2
    assert told in made.stderr
    assert len(made.stderr.splitlines()) == 1


def test_plans_of_every_small_cabling_pass_the_hostfile_check():
    """All 64 ways to cable four Macs with one cable a pair at most."""
    pairs = list(itertools.combinations(NAMES[:4], 2))
    meshes = rings = 0
    for chosen in itertools.product([False, True], repeat=len(pairs)):
        wiring = Wiring(NAMES[:4])
        for (a, b), there in zip(pairs, chosen, strict=True):
            if there:
                wiring.plug(wiring.next_free(a), wiring.next_free(b))
        facts = facts_of(wiring)
        plan = make_plan(facts)
        errors = [f for f in advise(facts, plan) if f.severity == "error"]
        assert (plan.order is None) == bool(errors)
        if plan.order is None:
            continue
        parsed = hostfile.parse_hostfile(json.dumps(plan.hostfile(facts)))
        assert hostfile.find_problems(parsed) == []
        meshes += plan.topology == "mesh"
        rings += plan.topology == "ring"
    # One complete graph; three 4-cycles, alone or with one of the two diagonals.
    assert (meshes, rings) == (1, 9)


def test_a_plan_without_order_uses_no_cable():
    assert Plan("mesh", None, ()).used == []
