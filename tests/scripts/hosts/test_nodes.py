"""The stand-in nodes behave as the tests that use them believe."""

import subprocess
import sys

import pytest

from tests.support.launch_helpers import wait_until
from tests.support.nodes import FAST_ADDRESS


def quick_ssh(nodes, name: str, command: str = "true") -> subprocess.CompletedProcess:
    words = ["ssh", "-n", "-o", "BatchMode=yes", "-o", "ConnectTimeout=1", name, command]
    return subprocess.run(words, env=nodes.env, capture_output=True, text=True)


def test_each_node_has_its_own_home_and_can_reach_the_others(nodes):
    for node in (nodes[0], nodes[2]):
        assert node.ssh('echo "$HOME"; echo mine >here').stdout == f"{node.home}\n"
        assert (node.home / "here").read_text() == "mine\n"
    assert nodes[0].ssh("ssh -o BatchMode=yes node-3 pwd").stdout == f"{nodes[2].home}\n"
    assert nodes[2].commands() == ['echo "$HOME"; echo mine >here', "pwd"]


def test_exit_codes_input_and_whole_output_pass_through(nodes):
    assert nodes[1].ssh("exit 7").returncode == 7
    words = ["ssh", "node-2", "cat; echo two >&2"]
    data = bytes(range(256)) * 4096
    done = subprocess.run(words, env=nodes.env, input=data, capture_output=True)
    assert (done.stdout, done.stderr) == (data, b"two\n")


def test_a_shadowed_path_is_the_nodes_own(nodes, tmp_path):
    place = tmp_path / "checkout"
    place.mkdir()
    (place / "file").write_text("rank 0's")
    nodes.shadow(place)
    assert nodes[0].ssh(f"cat {place}/file").stdout == "rank 0's"
    assert nodes[1].ssh(f"ls {place}; echo two >{place}/file").stdout == ""
    assert nodes[1].view(place).joinpath("file").read_text() == "two\n"
    assert (place / "file").read_text() == "rank 0's"


def test_one_file_can_be_another_on_one_node(nodes, tmp_path):
    file = tmp_path / "config.json"
    file.write_text("right")
    nodes[2].replace(file, b"wrong")
    assert [nodes[n].ssh(f"cat {file}").stdout for n in (1, 2)] == ["right", "wrong"]


def test_a_node_that_is_down_refuses_and_what_ran_there_is_gone(nodes):
    client = subprocess.Popen(
        ["ssh", "-n", "node-2", "echo up; sleep 1000"], env=nodes.env, stdout=subprocess.PIPE
    )
    assert client.stdout.readline() == b"up\n"
    nodes[1].down()
    assert client.wait(60) == 255
    client.stdout.close()
    assert not nodes[1].processes()
    done = quick_ssh(nodes, "node-2")
    assert (done.returncode, "refused" in done.stderr) == (255, True)
    assert quick_ssh(nodes, "node-gone").returncode == 255
    nodes[1].up()
    nodes[1].wait_up()


def test_a_frozen_node_says_nothing_until_it_is_up_again(nodes):
    nodes[1].freeze()
    done = quick_ssh(nodes, "node-2")
    assert done.returncode == 255
    assert "timed out" in done.stderr
    nodes[1].up()
    assert nodes[1].ssh("true").returncode == 0


def test_only_commands_that_match_hang(nodes):
    nodes[3].hang("*rdma*")
    assert nodes[3].ssh("echo fine").stdout == "fine\n"
    with pytest.raises(subprocess.TimeoutExpired):
        nodes[3].ssh("/usr/bin/rdma_ctl status", timeout=0.5)
    assert nodes[3].processes()
    nodes[3].reset()
    wait_until(lambda: not nodes[3].processes())


def test_profile_stubs_and_environment_of_a_node(nodes):
    nodes[1].profile("Welcome!\n")
    nodes[1].stub("df", 'echo "$# arguments, $PLACE"')
    nodes[1].setenv("PLACE", "a 'quoted' $HOME")
    assert nodes[1].ssh("df -k /").stdout == "Welcome!\n2 arguments, a 'quoted' $HOME\n"


def test_another_version_of_mlx_is_reported_there_alone(nodes):
    nodes[1].pretend("mlx", "0.1.2")
    nodes[1].pretend("mlx-lm", "0.3.4")
    ask = (
        "from importlib.metadata import version; import mlx.core as mx; "
        "print(version('mlx'), mx.__version__, version('mlx-lm'))"
    )
    assert nodes[1].ssh(f'{sys.executable} -c "{ask}"').stdout == "0.1.2 0.1.2 0.3.4\n"


def test_a_node_tells_at_which_address_it_was_asked(nodes):
    nodes[1].ssh("true")
    words = ["ssh", "-n", "-o", f"HostName={FAST_ADDRESS}", "node-2", "true"]
    subprocess.run(words, env=nodes.env, check=True)
    assert nodes[1].addresses() == ["127.0.0.1", FAST_ADDRESS]


def test_a_terminal_is_given_when_asked_for(nodes):
    nodes.need_terminals()
    words = ["ssh", "-tt", "node-2", "test -t 0 && echo terminal"]
    done = subprocess.run(
        words, env=nodes.env, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.stdout.rstrip() == "terminal"
