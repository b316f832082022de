"""What hostfile.py reads out of a hostfile, and what it finds wrong with one before a launch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.lib.hosts import hostfile
from scripts.lib.hosts.find_hostfile import NoHostfile, find_hostfile
from tests.support.paths import ROOT

MODULE = (ROOT / "scripts" / "lib" / "module.py", "lib.hosts.hostfile")


def mesh(count: int) -> list[dict]:
    """A whole mesh; the device from i to j is the same at both ends."""

    def device(i: int, j: int) -> str | None:
        return None if i == j else f"rdma_en{2 + min(i, j) * count + max(i, j)}"

    return [
        {
            "ssh": f"mac{i}",
            "ips": ["192.0.2.1"] if i == 0 else [],
            "rdma": [device(i, j) for j in range(count)],
        }
        for i in range(count)
    ]


def ring(count: int) -> list[dict]:
    """Neighbours alone are linked, by one device on each side."""
    hosts = mesh(count)
    for i, host in enumerate(hosts):
        near = ((i - 1) % count, (i + 1) % count)
        host["rdma"] = [f"rdma_en{2 + near.index(j)}" if j in near else None for j in range(count)]
    return hosts


def parse(data: object) -> hostfile.Hostfile:
    return hostfile.parse_hostfile(json.dumps(data))


def problems(data: object, backend: str = "") -> list[str]:
    return hostfile.find_problems(parse(data), backend)


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *MODULE, *arguments], capture_output=True, text=True, check=False
    )


def write(folder: Path, data: object) -> str:
    file = folder / "hosts.json"
    file.write_text(json.dumps(data))
    return str(file)


@pytest.mark.parametrize("count", range(2, 9))
def test_a_whole_mesh_has_no_problem(count):
    assert problems(mesh(count)) == []


@pytest.mark.parametrize("count", [2, 3, 4, 9])
def test_a_ring_of_neighbours_has_no_problem(count):
    assert problems({"backend": "jaccl-ring", "hosts": ring(count)}) == []


def test_a_ring_over_tcp_needs_an_ip_for_each_rank():
    hosts = [{"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}, {"ssh": "mac1"}]
    assert problems(hosts) == ['rank 1 (mac1): no "ips": the ring backend needs one for each rank']


def test_the_same_host_may_hold_two_ranks_of_a_ring():
    assert problems([{"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}] * 2) == []


@pytest.mark.parametrize(
    ("data", "backend"),
    [
        (mesh(2), "jaccl"),
        ([{"ssh": "a", "ips": ["192.0.2.1"]}], "ring"),
        ({"hosts": mesh(2)}, "jaccl"),
        ({"backend": "", "hosts": mesh(2)}, "jaccl"),
        ({"backend": "ring", "hosts": mesh(2)}, "ring"),
        ({"backend": "jaccl-ring", "hosts": ring(3)}, "jaccl-ring"),
    ],
)
def test_backend_is_the_files_own_else_follows_from_the_matrix(data, backend):
    assert hostfile.choose_backend(parse(data)) == backend


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ({"ssh": "mac0", "ips": ["192.0.2.7", "192.0.2.8"]}, "192.0.2.7"),
        ({"ssh": "mac0.local", "ips": []}, "mac0.local"),
        ({"ssh": "ada@mac0.local"}, "mac0.local"),
    ],
)
def test_rank0_is_reached_at_its_first_ip_else_by_its_name(host, address):
    assert hostfile.rank0_address(parse([host])) == address


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("7", "must be a list of hosts"),
        ('{"backend": "ring"}', "must be a list of hosts"),
        ("[]", "lists no hosts"),
        ('["mac0"]', "rank 0 is 'mac0'"),
        ('[{"ips": []}]', 'rank 0: "ssh" is None'),
        ('[{"ssh": ""}]', "rank 0: \"ssh\" is ''"),
        ('[{"ssh": "mac0", "ips": "192.0.2.1"}]', "rank 0 (mac0): \"ips\" is '192.0.2.1'"),
        ('[{"ssh": "mac0", "ips": [1]}]', 'rank 0 (mac0): "ips" is [1]'),
        ('[{"ssh": "mac0", "rdma": "rdma_en2"}]', 'rank 0 (mac0): "rdma" is'),
        ('[{"ssh": "mac0", "rdma": [3]}]', 'rank 0 (mac0): "rdma" entry 0 is 3'),
        ('[{"ssh": "mac0", "rdma": [null, ""]}]', "rank 0 (mac0): \"rdma\" entry 1 is ''"),
        ('[{"ssh": "mac0", "rdma": [null, []]}]', 'rank 0 (mac0): "rdma" entry 1 is []'),
        ('{"hosts": [{"ssh": "mac0"}], "envs": {"A": "1"}}', '"envs" is'),
        ('{"hosts": [{"ssh": "mac0"}], "backend": 1}', '"backend" is 1'),
    ],
)
def test_a_file_that_cannot_be_understood_is_refused_by_name_and_value(text, message):
    with pytest.raises(hostfile.HostfileError) as caught:
        hostfile.parse_hostfile(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"ssh": "mac0", "ips": ["10.0.0.1"], "ips": []}]', '"ips" stands 2 times in one object'),
        ('{"hosts": [], "hosts": [{"ssh": "mac0"}]}', '"hosts" stands 2 times in one object'),
        ('[{"ssh": "mac0", "rmda": [null]}]', 'rank 0 (mac0): "rmda" is not read: "rdma" is meant'),
        ('[{"ssh": "mac0", "ip": ["10.0.0.1"]}]', '"ip" is not read: "ips" is meant'),
        ('[{"ssh": "mac0", "RDMA": [null]}]', '"RDMA" is not read: "rdma" is meant'),
        ('{"hosts": [{"ssh": "mac0"}], "env": ["A=1"]}', '"env" is not read: "envs" is meant'),
    ],
)
def test_a_key_that_would_be_passed_over_in_silence_is_told(text, message):
    with pytest.raises(hostfile.HostfileError) as error:
        hostfile.parse_hostfile(text)
    assert message in str(error.value)


def test_notes_of_the_writers_own_are_left_alone():
    notes = {"_comment": "rack 3", "hosts": [{"ssh": "mac0", "chip": "M3 Ultra", "serial": 1}]}
    assert parse(notes).hosts[0].ssh == "mac0"


@pytest.mark.parametrize("name", ["mac0", "bjorn@mac0", "fd00::1", "bjorn@fe80::1%en5", "10.0.0.1"])
def test_names_that_ssh_takes(name):
    assert hostfile.ssh_name_problem(name) == ""


def broken(change) -> list[dict]:
    hosts = mesh(3)
    change(hosts)
    return hosts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h[1]["rdma"].pop(), 'rank 1 (mac1): "rdma" has 2 entries: must have 3'),
        (lambda h: h[2].pop("rdma"), 'rank 2 (mac2): "rdma" has 0 entries: must have 3'),
        (
            lambda h: h[1]["rdma"].__setitem__(1, "rdma_en2"),
            'rank 1 (mac1): "rdma" entry 1 is its own place: must be null',
        ),
        (
            lambda h: h[0]["rdma"].__setitem__(2, h[0]["rdma"][1]),
            "rank 0 (mac0): \"rdma\" has 'rdma_en3' 2 times",
        ),
        (
            lambda h: (h[0]["rdma"].__setitem__(1, None), h[1]["rdma"].__setitem__(0, None)),
            'rank 0 (mac0) and rank 1 (mac1): no "rdma" device links them',
        ),
        (
            lambda h: h[2]["rdma"].__setitem__(1, None),
            'rank 1 (mac1) and rank 2 (mac2): "rdma" has rdma_en7 one way and none the other',
        ),
        (
            lambda h: h[0]["rdma"].__setitem__(1, ["rdma_en3", "rdma_en9"]),
            'rank 0 (mac0) and rank 1 (mac1): "rdma" has rdma_en3, rdma_en9 one way and rdma_en3',
        ),
        (lambda h: h[0].update(ips=[]), 'rank 0 (mac0): no "ips"'),
        (lambda h: h[0].update(ips=["fd00::1"]), "must be an IPv4 address for JACCL"),
        (lambda h: h[0].update(ips=["mac0.local"]), "must be an IPv4 address for JACCL"),
        (lambda h: h[0].update(ips=["127.0.0.1"]), "the other ranks cannot reach it"),
        (lambda h: h[1].update(ssh="mac0"), "'mac0' is listed 2 times"),
        (
            lambda h: h[1].update(ssh="bjorn@Mac0"),
            "'mac0' and 'bjorn@Mac0' are one host listed 2 times",
        ),
        (lambda h: h[1].update(ssh="-oProxyCommand=x"), "not a name that ssh takes"),
        (lambda h: h[1].update(ssh="mac1; reboot"), "not a name that ssh takes"),
        (lambda h: h[1].update(ssh="mac1\nmac9"), "not a name that ssh takes"),
        (
            lambda h: h[1].update(ssh="bjorn@mac1:2222"),
            "'bjorn@mac1:2222': a port has its place in",
        ),
    ],
)
def test_a_matrix_that_cannot_be_launched_is_told_by_host_and_value(change, message):
    found = problems(broken(change))
    assert len(found) == 1, found
    assert message in found[0]


def test_every_row_and_pair_that_is_wrong_is_told_at_once():
    hosts = mesh(4)
    hosts[0]["rdma"][0] = "rdma_en9"
    hosts[3]["rdma"][1] = None
    hosts[0]["ips"] = []
    assert len(problems(hosts)) == 3


def test_one_host_is_no_jaccl_cluster_and_nine_are_no_mesh():
    assert problems(mesh(1)) == ["lists one host: JACCL needs at least two"]
    assert problems(mesh(9)) == ["lists 9 hosts: a JACCL mesh has at most 8"]


@pytest.mark.parametrize("backend", ["jaccl", "jaccl-ring"])
def test_jaccl_needs_the_same_number_of_cables_everywhere(backend):
    """MLX refuses a ring without; what a mesh does then nobody knows."""
    hosts = mesh(3) if backend == "jaccl" else ring(3)
    hosts[0]["rdma"][1] = ["rdma_en8", "rdma_en9"]
    hosts[1]["rdma"][0] = ["rdma_en8", "rdma_en9"]
    assert problems({"backend": backend, "hosts": hosts}) == [
        'pairs have 1 and 2 "rdma" devices: JACCL needs the same number everywhere, so list 1 for '
        "each"
    ]
    for i, j in ((0, 2), (1, 2)):
        hosts[i]["rdma"][j] = [f"rdma_en{10 + j}", f"rdma_en{20 + j}"]
        hosts[j]["rdma"][i] = [f"rdma_en{10 + i}", f"rdma_en{20 + i}"]
    assert problems({"backend": backend, "hosts": hosts}) == []


def test_a_mesh_file_is_checked_for_the_backend_that_will_be_launched():
    assert 'no "ips"' in problems(mesh(2), "ring")[0]
    assert problems(ring(4), "jaccl-ring") == []
    assert len(problems(ring(4), "jaccl")) == 2  # the two diagonals have no cable


def test_a_backend_that_does_not_exist_is_told_in_words_by_every_command(tmp_path):
    done = run("check", write(tmp_path, mesh(2)), "--backend", "nccl")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "\"backend\" is 'nccl': must be one of jaccl, jaccl-ring, ring" in done.stderr


def test_unknown_backend_is_refused_with_those_that_work():
    assert problems({"backend": "nccl", "hosts": mesh(2)}) == [
        "\"backend\" is 'nccl': must be one of jaccl, jaccl-ring, ring"
    ]


def test_placeholders_are_told_by_host_and_value():
    hosts = mesh(2)
    hosts[0]["ips"] = ["<RANK0_LAN_IP>"]
    hosts[1]["ssh"] = "<RANK1_SSH_NAME>"
    hosts[0]["rdma"][1] = "<DEVICE>"
    found = problems({"hosts": hosts, "envs": ["A=<VALUE>"]})
    assert len(found) == 4
    for value in ("<RANK0_LAN_IP>", "<RANK1_SSH_NAME>", "<DEVICE>", "<VALUE>"):
        assert any(value in problem for problem in found), value


def test_commands_print_one_value_or_a_line_for_each_rank(tmp_path):
    file = write(tmp_path, {"hosts": mesh(3), "envs": ["A=1", "B=2 3"]})
    assert run("hosts", file).stdout == "mac0\nmac1\nmac2\n"
    assert run("backend", file).stdout == "jaccl\n"
    assert run("rank0", file).stdout == "192.0.2.1\n"
    assert run("envs", file).stdout == "A=1\nB=2 3\n"
    assert run("rows", file).stdout.splitlines()[1] == "mac1\trdma_en3,rdma_en7"
    checked = run("check", file)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_check_prints_each_problem_with_the_file_and_exits_1(tmp_path):
    file = write(tmp_path, broken(lambda hosts: hosts[0].update(ips=[])))
    checked = run("check", file)
    assert checked.returncode == 1
    assert checked.stderr.startswith(f"{file}: rank 0 (mac0): no ")
    assert checked.stdout == ""


def test_names_that_a_shell_would_misread_are_never_printed(tmp_path):
    file = write(tmp_path, [{"ssh": "mac0\n127.0.0.1"}])
    for command in ("hosts", "rows", "rank0"):
        refused = run(command, file)
        assert (refused.returncode, refused.stdout) == (1, "")


def test_missing_file_exits_3_and_wrong_use_2(tmp_path):
    assert run("check", str(tmp_path / "none.json")).returncode == 3
    assert run("hosts", str(tmp_path)).returncode == 3
    assert run("greet", str(tmp_path)).returncode == 2


@pytest.mark.parametrize("around", ["%s", '{"hosts": %s}', '{"hosts": [%s]}', '{"envs": [%s]}'])
@pytest.mark.parametrize("depth", [900, 5_000, 100_000])
def test_what_is_nested_too_deeply_is_wrong_and_no_fault_of_ours(around, depth):
    deep = around % ("[" * depth + "]" * depth)
    with pytest.raises(hostfile.HostfileError):
        hostfile.parse_hostfile(deep)


@pytest.mark.parametrize("kind", ["a folder", "a named pipe"])
def test_what_is_no_file_is_said_as_what_it_is_and_not_waited_for(tmp_path, kind):
    path = tmp_path / "hosts.json"
    os.mkfifo(path) if kind == "a named pipe" else path.mkdir()
    done = run("check", str(path))
    assert (done.returncode, done.stderr) == (3, f"{path}: is {kind}, no file\n")
    with pytest.raises(NoHostfile, match=f"HOSTFILE='{path}': is {kind}, no file; make one"):
        find_hostfile(str(path))
