"""Every hostfile template that we ship is one that mlx.launch takes, once it is filled in.

mlx.launch's own parser and JACCL validation read them; only the start of processes is stubbed
out. These tests import mlx, since its launcher does.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.lib.hosts import hostfile

launch = pytest.importorskip("mlx._distributed_utils.launch")
from mlx._distributed_utils.common import Hostfile  # noqa: E402

from tests.support.paths import ROOT  # noqa: E402

TEMPLATES = sorted((ROOT / "hostfiles").glob("*.template.json"))


def fill_in(template: Path) -> dict:
    """The template as a user would leave it."""
    data = json.loads(template.read_text())
    for rank, host in enumerate(data["hosts"]):
        host["ssh"] = f"mac{rank}"
        host["ips"] = ["192.0.2.1" for _ in host["ips"]]
    return data


@pytest.fixture(params=TEMPLATES, ids=lambda path: path.name)
def template(request) -> Path:
    return request.param


def test_there_are_templates_for_four_nodes_and_for_two():
    assert sorted(len(json.loads(path.read_text())["hosts"]) for path in TEMPLATES) == [2, 4]


def test_mlx_launch_accepts_the_template(template, monkeypatch):
    started = []
    monkeypatch.setattr(launch, "_launch_with_io", lambda _, hosts, __: started.extend(hosts))
    parsed = Hostfile.from_file(template)
    options = argparse.Namespace(
        backend=parsed.backend, env=[], cwd=None, verbose=False, python=None, starting_port=32323
    )
    launch.launch_jaccl(argparse.ArgumentParser(exit_on_error=False), parsed.hosts, options, ["x"])
    assert len(started) == len(parsed.hosts)
    devices = json.loads(started[0][0][4]["MLX_IBV_DEVICES"])
    assert devices == [host.rdma for host in parsed.hosts]


def test_our_reading_of_the_template_is_mlxs(template):
    ours, mlxs = hostfile.parse_hostfile(template.read_text()), Hostfile.from_file(template)
    assert [host.ssh for host in ours.hosts] == [host.ssh_hostname for host in mlxs.hosts]
    assert [list(host.ips) for host in ours.hosts] == [host.ips for host in mlxs.hosts]
    assert hostfile.choose_backend(ours) == mlxs.backend == "jaccl"


def test_check_flags_every_placeholder_and_nothing_else(template):
    parsed = hostfile.parse_hostfile(template.read_text())
    found = hostfile.find_problems(parsed)
    assert len(found) == len(parsed.hosts) + 1  # each ssh name, and rank 0's address
    assert all("template" in problem for problem in found)
    assert any("<RANK0_LAN_IP>" in problem for problem in found)


def test_filled_in_template_has_no_problem(template):
    assert hostfile.find_problems(hostfile.parse_hostfile(json.dumps(fill_in(template)))) == []


def test_both_ends_of_a_cable_are_in_the_same_port(template):
    """The cabling is easy to describe and to check by eye: equal port numbers are joined."""
    rows = [host.rdma for host in hostfile.parse_hostfile(template.read_text()).hosts]
    assert all(rows[i][j] == rows[j][i] for i in range(len(rows)) for j in range(len(rows)))


def test_mlx_launch_itself_gets_past_the_hostfile(template, tmp_path):
    """The real command, up to the ssh that is not there."""
    if shutil.which("mlx.launch", path=str(Path(sys.executable).parent)) is None:
        pytest.skip("mlx.launch is not beside this interpreter")
    filled = tmp_path / "filled.json"
    filled.write_text(json.dumps(fill_in(template)))
    stub = tmp_path / "ssh"
    stub.write_text("#!/bin/sh\necho /tmp/pidfile\necho started\n")
    stub.chmod(0o755)
    done = subprocess.run(
        [Path(sys.executable).parent / "mlx.launch", "--hostfile", filled, "--", "true"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.stdout.count("started") == len(fill_in(template)["hosts"]), done.stderr
