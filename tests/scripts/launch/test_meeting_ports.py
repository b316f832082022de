"""Where ranks meet: ports that nobody else has, whoever starts at the same moment."""

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from scripts.lib.launch.meeting_ports import BLOCK, BLOCKS, FIRST, fill_in, reserve_block
from tests.support.paths import ROOT

TAKE_ONE = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from scripts.lib.launch.meeting_ports import BLOCKS, reserve_block
keeper = reserve_block(BLOCKS[:40])  # all of them begin at the same one
print(keeper.getsockname()[1], flush=True)
sys.stdin.read()
"""


def test_ports_that_somebody_chose_stay():
    for arguments in (
        ["-n", "2", "--starting-port", "32323", "--", "x"],
        ["-n", "2"],
        [],
    ):
        assert fill_in(list(arguments), 3) == (arguments, None)


def test_local_ranks_get_a_block_that_is_kept():
    arguments, keeper = fill_in(["-n", "2", "--starting-port", "auto", "--", "rank"], 0)
    with keeper:
        port = int(arguments[3])
        assert arguments == ["-n", "2", "--starting-port", str(port), "--", "rank"]
        assert keeper.getsockname() == ("127.0.0.1", port - 1)
        for number in range(port, port + 8):
            with socket.create_server(("127.0.0.1", number)):
                pass  # each of them is there for a rank
        _, other = fill_in(["--starting-port", "auto"], 0)
        with other:
            assert abs(other.getsockname()[1] - keeper.getsockname()[1]) >= BLOCK


def test_a_hostfile_keeps_its_port_until_a_start_has_failed():
    arguments = ["--hostfile", "h", "--starting-port", "auto:32323"]
    assert fill_in(arguments, 0)[0][-1] == "32323"
    later = {int(fill_in(arguments, 1)[0][-1]) for _ in range(20)}
    assert len(later) > 1 and {port - 1 for port in later} <= set(BLOCKS)


@pytest.mark.parametrize("place", [0, 1, 8])
@pytest.mark.parametrize("connected", [False, True])
def test_a_block_with_a_port_in_use_is_passed_over(place, connected):
    """Listened on, or still held by the connection of a ring whose listener is closed."""
    order = BLOCKS[-30:]
    with reserve_block(order) as keeper:
        first = keeper.getsockname()[1]
    order = [first, *order]
    # As MLX listens.
    with socket.create_server(("127.0.0.1", first + place), reuse_port=False) as listener:
        held = [listener]
        if connected:
            held.append(socket.create_connection(listener.getsockname()))
            held.append(listener.accept()[0])
            listener.close()
        with reserve_block(order) as keeper:
            assert keeper.getsockname()[1] != first
        for one in held[::-1]:
            one.close()


def test_launchers_that_start_together_never_agree_on_a_block():
    def take(_: int) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-c", TAKE_ONE], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    with ThreadPoolExecutor(8) as pool:
        processes = list(pool.map(take, range(8)))
    try:
        taken = [int(process.stdout.readline()) for process in processes]
    finally:
        for process in processes:
            process.communicate()
    assert len(set(taken)) == 8


def test_they_lie_below_the_ports_that_systems_give_to_clients():
    assert FIRST >= 1024 and BLOCKS[-1] + BLOCK < 32_768


def test_no_free_block_is_told():
    with pytest.raises(OSError, match=f"no {BLOCK} adjacent TCP ports are free"):
        reserve_block([])
