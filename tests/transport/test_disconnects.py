"""Clients that leave at random moments, in bursts: nothing of theirs stays, and nobody notices."""

import json
import random
import socket
import struct
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.cluster import Cluster
from tests.support.raw_http import request
from tests.support.tiny_models import tiny_llama

pytestmark = pytest.mark.ranks

BURST = 25
STAYERS = 3  # in each burst
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends a reset
IDLE_SHARE = 0.6  # of a core: a rank that waits in a collective for a peer takes all of one
LOOK_S = 4.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Few slots and a long line, so that clients leave it, too; several chunks to a prompt."""
    model = tiny_llama(tmp_path_factory.mktemp("model") / "tiny", context=8192)
    settings = {"MAX_BATCH": 6, "QUEUE_MAX": 2 * BURST, "PREFILL_STEP": 64}
    one = Cluster(2, model, tmp_path_factory.mktemp("disconnects"), settings)
    one.wait_ready()
    yield one
    one.end()


def stays(i: int) -> dict:
    """A greedy request of one who stays. Lengths on both sides of a chunk."""
    prompt = [40 + (7 * i + j) % 80 for j in range(3 + 37 * (i % 5))]
    return {"prompt": prompt, "max_tokens": 20 + 10 * (i % 4), "temperature": 0}


@pytest.mark.sweep(8)
@pytest.mark.parametrize("burst", range(8))
def test_those_who_stay_among_many_who_leave_get_the_same_text(cluster, burst):
    chance = random.Random(20 + burst)
    asks = [stays(burst * STAYERS + i) for i in range(STAYERS)]
    quiet = [complete(cluster, ask) for ask in asks]
    with ThreadPoolExecutor(BURST + STAYERS) as pool:
        kept = [pool.submit(complete, cluster, ask) for ask in asks]
        left = [pool.submit(leave, cluster, random.Random(chance.random())) for _ in range(BURST)]
        for future in left:
            future.result()
        assert [future.result() for future in kept] == quiet


def test_nothing_of_those_who_left_stays(cluster):
    """Last in this file: after all of them."""
    pids = cluster.pids()
    cluster.wait_idle()
    health = cluster.get("/health")[1]
    assert (health["running"], health["queued"], health["kv_tokens"]["used"]) == (0, 0, 0)
    assert health["restarts"] == 0
    assert_idle(pids)


def complete(cluster: Cluster, ask: dict) -> str:
    status, answer = cluster.post("/v1/completions", ask)
    assert status == 200, answer
    return answer["choices"][0]["text"]


def leave(cluster: Cluster, chance: random.Random) -> None:
    """One request of any kind, given up at any moment from the connect to the last token."""
    how = chance.choice(("half sent", "at once", "later", "later", "with the first bytes"))
    ask = {
        "prompt": [chance.randrange(32, 127) for _ in range(chance.choice((1, 60, 300, 2000)))],
        "max_tokens": chance.choice((5, 50, 2000)),
        "ignore_eos": True,
        # Without a stream the first bytes are the last.
        "stream": how == "with the first bytes" or chance.random() < 0.4,
        "temperature": chance.choice((0, 0.7)),
    }
    if chance.random() < 0.5:
        ask["seed"] = chance.randrange(2**63)
    data = request("POST", "/v1/completions", json.dumps(ask))
    with socket.create_connection(("127.0.0.1", cluster.port), timeout=240) as connection:
        if how == "half sent":
            connection.sendall(data[: chance.randrange(len(data))])
        else:
            connection.sendall(data)
        if how == "later":
            time.sleep(chance.random() ** 2)
        elif how == "with the first bytes":
            connection.recv(chance.choice((1, 4096)))
        if chance.random() < 0.3:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def assert_idle(pids: list[int]) -> None:
    """No rank computes, or spins in a collective that a peer has not joined."""
    before, start = [cpu_seconds(pid) for pid in pids], time.monotonic()
    time.sleep(LOOK_S)
    passed = time.monotonic() - start
    used = [cpu_seconds(pid) - old for pid, old in zip(pids, before, strict=True)]
    assert all(seconds < IDLE_SHARE * passed for seconds in used), used


def cpu_seconds(pid: int) -> float:
    """Processor time so far; ps rounds to seconds on Linux."""
    text = subprocess.run(
        ["ps", "-o", "time=", "-p", str(pid)], capture_output=True, text=True, check=True
    ).stdout
    seconds = 0.0
    for part in text.strip().replace("-", ":").split(":"):
        seconds = seconds * 60 + float(part)
    return seconds
