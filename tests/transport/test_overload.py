"""Many at once: 500 requests for 16 places, silent connections by the thousand, large bodies."""

import asyncio
import contextlib
import json
import resource
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from server.transport.http_server import MAX_CONNECTIONS
from tests.support.cluster import Cluster
from tests.support.raw_http import RawClient, request
from tests.support.tiny_models import tiny_llama

pytestmark = pytest.mark.ranks

AT_ONCE = 500
SILENT = 1000
PLACES = 16  # MAX_BATCH and QUEUE_MAX
REFUSED_WITHIN_S = 30.0  # generous: the test's own 500 clients share the processor
FILES = 4096
LARGE = 16 * 2**20
MOST_VALUES = 1_000_000  # each counts twice: as an object and as a place in the array


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES:
        pytest.skip(f"at most {hard} files can be open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, FILES), hard))
    model = tiny_llama(tmp_path_factory.mktemp("model") / "tiny")
    settings = {"MAX_BATCH": 8, "QUEUE_MAX": 8}
    one = Cluster(2, model, tmp_path_factory.mktemp("overload"), settings)
    one.wait_ready()
    yield one
    one.end()


@dataclass
class Outcome:
    """What one of many clients got. seconds: from its connect to its whole answer."""

    kind: int
    status: int
    headers: dict[str, str]
    body: dict
    seconds: float


def ask_of(kind: int) -> dict:
    return {"prompt": [50 + kind] * (4 + kind), "max_tokens": 60, "temperature": 0}


async def one_of_many(port: int, kind: int) -> Outcome:
    start = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.closing(writer):
        writer.write(
            request("POST", "/v1/completions", json.dumps(ask_of(kind)), "Connection: close")
        )
        data = await reader.read()
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (x.partition(": ") for x in lines)}
    seconds = time.monotonic() - start
    return Outcome(kind, int(status.split()[1]), headers, json.loads(body), seconds)


async def all_at_once(port: int) -> list[Outcome]:
    return await asyncio.gather(*(one_of_many(port, i % 5) for i in range(AT_ONCE)))


def test_500_at_once_are_answered_or_refused_and_none_is_reset(cluster, capsys):
    quiet = [cluster.post("/v1/completions", ask_of(kind))[1]["choices"] for kind in range(5)]
    pids = cluster.pids()
    outcomes = asyncio.run(all_at_once(cluster.port))  # a reset would raise
    accepted = [one for one in outcomes if one.status == 200]
    refused = [one for one in outcomes if one.status == 429]
    assert len(accepted) + len(refused) == AT_ONCE
    assert len(accepted) >= PLACES
    for one in accepted:
        assert one.body["choices"] == quiet[one.kind]
    for one in refused:
        assert one.body["error"]["code"] == "rate_limit_exceeded"
        assert 1 <= int(one.headers["retry-after"]) <= 60
        assert one.seconds < REFUSED_WITHIN_S
    times = sorted(one.seconds for one in refused)
    with capsys.disabled():
        print(
            f"\n{AT_ONCE} at once: {len(accepted)} accepted, {len(refused)} refused, after "
            f"{times[len(times) // 2]:.2f} s (median), {times[-1]:.2f} s (slowest)"
        )
    cluster.wait_idle()
    assert cluster.get("/health")[1]["kv_tokens"]["used"] == 0
    assert cluster.pids() == pids


def test_a_thousand_silent_connections_do_not_keep_others_out(cluster):
    right = cluster.post("/v1/completions", ask_of(1))[1]["choices"]
    with contextlib.ExitStack() as stack:
        for _ in range(SILENT):
            stack.enter_context(connect(cluster.port))
        assert cluster.post("/v1/completions", ask_of(1))[1]["choices"] == right
        # As many again as there are places left, and some more: by now the first are old enough
        # to give way.
        for _ in range(MAX_CONNECTIONS - SILENT + 20):
            stack.enter_context(connect(cluster.port))
        cluster.wait_for(lambda: cluster.get("/health")[0] == 200)
        assert cluster.post("/v1/completions", ask_of(1))[1]["choices"] == right
    cluster.wait_for(lambda: cluster.get("/health")[0] == 200)
    assert cluster.post("/v1/completions", ask_of(1))[1]["choices"] == right


def test_large_bodies_at_once_are_parsed_in_turn(cluster):
    """Parsed together, four of 32 MB took 3.6 GB, and good requests waited for 7 s."""
    empty = b"{}," * MOST_VALUES
    text = b"a" * (LARGE - len(empty))
    body = b'{"prompt": [5], "max_tokens": 1, "y": "' + text + b'", "x": [' + empty + b"1]}"
    asked = request("POST", "/v1/completions", body)
    right = cluster.post("/v1/completions", ask_of(1))[1]["choices"]
    pid = cluster.pids()[0]
    before = resident_bytes(pid)
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(5) as pool:
        clients = [stack.enter_context(RawClient(cluster.port)) for _ in range(4)]
        for client in clients:
            client.socket.settimeout(120)
        answers = [pool.submit(client.ask, asked) for client in clients]

        def highest() -> int:
            sizes = [before]
            while not all(answer.done() for answer in answers):
                sizes.append(resident_bytes(pid))
                time.sleep(0.02)
            return max(sizes)

        peak = pool.submit(highest)
        while not peak.done():
            assert cluster.post("/v1/completions", ask_of(1))[1]["choices"] == right
        assert [answer.result().status for answer in answers] == [200] * 4
    # One takes about thirty times its size; waiting, all take once theirs.
    assert peak.result() - before < (45 + 2 * 4) * LARGE


def resident_bytes(pid: int) -> int:
    done = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, check=True)
    return int(done.stdout) * 1024


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=240)
