"""Hostile requests against two real ranks: each is answered, and the next good one is right."""

import os
import socket
import struct

import pytest

from tests.poison import bodies, fields, wire
from tests.poison.case import Case
from tests.support.cluster import Cluster
from tests.support.raw_http import RawAnswer, RawClient, request
from tests.support.tiny_models import tiny_llama

pytestmark = pytest.mark.ranks

CASES = [*fields.cases(), *bodies.cases(), *wire.cases()]
GOOD = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 6, "temperature": 0}
DEADLINE_S = 180
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends a reset


class Served:
    """Two ranks of the tiny model, started again if a case has ended them, so that every failure
    is that of its own case."""

    def __init__(self, tmp_path_factory) -> None:
        self._tmp = tmp_path_factory
        self._model = tiny_llama(self._tmp.mktemp("model") / "tiny", context=bodies.CONTEXT)
        self.cluster: Cluster | None = None

    def ensure(self) -> None:
        if self.cluster is None or self.cluster.launcher.poll() is not None:
            self.end()
            settings = {"DEFAULT_MAX_TOKENS": 8}
            self.cluster = Cluster(2, self._model, self._tmp.mktemp("poison"), settings)
            self.cluster.wait_ready()
            self._pids = self.cluster.pids()
            self._right = self._ask()

    def prove(self) -> None:
        """A good request is answered as before the first case, by the same processes."""
        assert self._ask() == self._right
        assert self.cluster.pids() == self._pids
        for pid in self._pids:
            os.kill(pid, 0)

    def _ask(self) -> str:
        # Through the chat template: that way leads through every part that a case may hurt.
        status, answer = self.cluster.post("/v1/chat/completions", GOOD, timeout=240)
        assert status == 200, (answer, self.cluster.log()[-5000:])
        assert answer["usage"]["completion_tokens"] == GOOD["max_tokens"]
        return answer["choices"][0]["message"]["content"]

    def end(self) -> None:
        if self.cluster is not None:
            self.cluster.end()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    one = Served(tmp_path_factory)
    yield one
    one.end()


@pytest.fixture
def served(server) -> Served:
    server.ensure()
    return server


@pytest.mark.sweep(5)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_poison_is_answered_and_hurts_nobody(served, case):
    with RawClient(served.cluster.port) as client:
        client.socket.settimeout(DEADLINE_S)  # of a thousand tokens on a busy machine, too
        if case.leave is None:
            meet(client, case)
        else:
            leave(client, case)
    served.prove()


def test_there_are_enough_cases_and_each_has_its_own_name():
    assert len({case.name for case in CASES}) == len(CASES) >= 200


def test_good_requests_pass_by_a_hundred_half_ones(served):
    """A client that stops in the middle holds a thread until its deadline, and nothing else."""
    whole = request("POST", "/v1/chat/completions", GOOD)
    held = [RawClient(served.cluster.port) for _ in range(100)]
    for i, client in enumerate(held):
        client.send(whole[: 1 + i * (len(whole) - 2) // 99])
    served.prove()
    for client in held:
        client.close()
    served.prove()
    served.cluster.wait_idle()


def check_error(answer: RawAnswer) -> None:
    """The error says something, in OpenAI's shape or in that of the Messages API."""
    if answer.json.get("type") == "error":
        assert set(answer.json["error"]) == {"type", "message"} and answer.json["error"]["message"]
    else:
        assert answer.error["message"]


def meet(client: RawClient, case: Case) -> None:
    """Sends the case; every answer that it should get comes, and no other."""
    answer = None
    try:
        client.send(case.make())
    except (BrokenPipeError, ConnectionResetError):
        pass  # refused before we had sent it all; the answer is waiting
    for expected in case.statuses:
        answer = client.read(case.head)
        allowed = expected if isinstance(expected, tuple) else (expected,)
        assert answer.status in allowed, (answer.status, answer.body[:500])
        if answer.status >= 400 and not case.head:
            check_error(answer)
            assert len(answer.body) < 2000, "rubbish came back whole"
        if answer.headers.get("content-type", "").startswith("text/event-stream"):
            assert answer.chunks[-1] == b"data: [DONE]\n\n"
    if answer.headers.get("connection") == "close":
        assert client.rest() == b""
        return
    # What follows on the connection is taken for what it is.
    after = client.ask(request("GET", "/queue", None, "Connection: close"))
    assert after.status == 200 and "max_running" in after.json
    assert client.rest() == b""


def leave(client: RawClient, case: Case) -> None:
    """Sends the case and goes, in the case's way."""
    try:
        client.send(case.make())
        if case.leave == "shutdown":
            client.socket.shutdown(socket.SHUT_WR)
            client.rest()  # an answer or none, but an end
    except (BrokenPipeError, ConnectionResetError):
        pass  # the server was quicker
    if case.leave == "reset":
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
