"""make_hostfile.sh over a stub ssh."""

import itertools
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.lib.cabling.advice import advise
from scripts.lib.cabling.plan import Plan, make_plan
from scripts.lib.cabling.survey import PROGRAM, read_facts
from scripts.lib.hosts import hostfile
from tests.support.cabled import NAMES, SCRIPT, facts_of, healthy
from tests.support.wiring import Wiring, mesh


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
            capture_output=True, text=True, env=self.env, timeout=240,
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
    assert len(calls) == 6  # One ssh a host that asks, then one that pings.
    assert "pinging over 3 cables, from both ends" in made.stderr
    assert "warning" not in made.stderr


def test_what_comes_next_can_be_pasted_whatever_the_file_is_called(tmp_path):
    folder = tmp_path / "Jo's clusters"
    macs = Macs(tmp_path, healthy(mesh(NAMES[:2])))
    macs.output = folder / "two $macs.json"
    made = macs.make(*NAMES[:2])
    assert made.returncode == 0, made.stderr
    command = made.stderr.splitlines()[-1].partition("next: ")[2]
    assert shlex.split(command) == [f"HOSTFILE={macs.output}", "scripts/verify_cluster.sh"]


@pytest.mark.parametrize("more", [(), ("--force",), ("--dry-run",)])
@pytest.mark.parametrize("kind", ["a folder", "a named pipe"])
def test_what_is_no_file_is_not_written_over(tmp_path, kind, more):
    """A pipe was waited for; of a folder a draft stayed beside it, after all hosts were asked."""
    macs = Macs(tmp_path, healthy(mesh(NAMES[:2])))
    os.mkfifo(macs.output) if kind == "a named pipe" else macs.output.mkdir()
    there = set(tmp_path.iterdir())
    made = macs.make(*more, *NAMES[:2])
    assert (made.returncode, made.stdout) == (2, "")
    assert f"--output '{macs.output}': is {kind}, no file; name another" in made.stderr
    assert set(tmp_path.iterdir()) == there
    assert not (tmp_path / "macs" / "calls").exists()


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


def test_what_keeps_the_ends_apart_is_told_from_what_the_macs_tools_say(tmp_path):
    """Over the whole way: bridge, address and ping, each on another Mac; the file is written."""
    wiring = healthy(mesh(NAMES[:4]))
    wiring.bridge("studio-1", ["en3", "en4", "en5"], service='Pont "Thunderbolt" (1)')
    wiring.make_inactive("studio-1")
    wiring.addresses["studio-3"]["en4"] = "169.254.3.4/16"
    wiring.deaf.add("studio-4:en5")
    macs = Macs(tmp_path, wiring)
    made = macs.make(*NAMES[:4])
    assert made.returncode == 0, made.stderr
    found = [line for line in made.stderr.splitlines() if line.startswith("warning: ")]
    assert [line.split(":")[1].strip() for line in found] == ["studio-1", "studio-3", "studio-3"]
    assert "although its service 'Pont \"Thunderbolt\" (1)' is inactive" in found[0]
    assert "en4 (169.254.3.4/16) is self-assigned" in found[1]
    assert "gets no answer from the far end, studio-4 en5" in found[2]
    assert "    sudo /sbin/ifconfig bridge0 deletem en5\n" in made.stderr
    assert "pinging over 2 cables" in made.stderr


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
