"""A link that loses or garbles messages between two real ranks."""

import re
import time

import pytest

from tests.support.fault_checks import assert_served_again, assert_told, start
from tests.support.faults import (
    ANSWERED,
    DECODE,
    LONG_ANSWER,
    PROBE,
    STREAMS,
    Client,
    Server,
)

pytestmark = pytest.mark.ranks


GARBLED_WORDS = "code 76 (the link lost or garbled a message): the link lost or garbled a message: "


def assert_garbled(server: Server, count: int, clients: list[Client], struck: float) -> str:
    """Clients are told, and the count-th failure has its name. What /health says of it."""
    assert_told(clients)
    for client in clients:
        assert server.answers_right(client), "a wrong token was handed out"
    assert_served_again(server, struck, "code 76", restarts=count)
    assert "SIGSEGV" not in server.log()
    failure = server.get("/health")[1]["last_failure"]
    assert GARBLED_WORDS in failure, failure
    return failure


@pytest.fixture
def told_long_answer(server):
    """server(), started, which knows what LONG_ANSWER begins with."""
    one = start(server())
    right = Client(one.port, LONG_ANSWER | {"max_tokens": 200}, stream=True)
    right.join()
    assert right.outcome == ANSWERED
    one.long_answer = right.text
    return one


def test_garbled_tokens_reach_no_client_and_end_the_ranks_with_the_reason(told_long_answer):
    """A token id out of range was a SIGSEGV; the log named no cause."""
    one = told_long_answer
    spoilt = [(0, "step", "flipped"), (1, "step", "wild"), (1, "step", "repeated"),
              (0, "first tokens", "wild")]  # fmt: skip
    for count, (rank, kind, how) in enumerate(spoilt, 1):
        held = one.hold(DECODE)
        struck = time.monotonic()
        one.garble(rank, kind, how)
        if kind == "first tokens":
            held.append(Client(one.port, PROBE, stream=True))
        failure = assert_garbled(one, count, held, struck)
        assert f"rank {rank} on 127.0.0.1 exited with code 76" in failure
        assert f"a message: {kind} (message " in failure


@pytest.mark.thorough
def test_garbled_headers_and_bundles_end_the_ranks_with_the_reason(told_long_answer):
    """A header once announced a bundle of a billion numbers, and rank 0 tried to take them in."""
    one = told_long_answer
    spoilt = [(0, "meeting", "wild"), (1, "meeting", "emptied"), (1, "bundle", "flipped"),
              (1, "meeting", "shifted")]  # fmt: skip
    for count, (rank, kind, how) in enumerate(spoilt, 1):
        held = []
        struck = time.monotonic()
        one.garble(rank, kind, how)
        if kind == "bundle":
            held = [Client(one.port, PROBE, stream=True)]
        failure = assert_garbled(one, count, held, struck)
        # A stream that is shifted is shifted for both.
        assert how == "shifted" or f"rank {rank} on 127.0.0.1 exited with code 76" in failure
        assert f"a message: {kind} (message " in failure


@pytest.mark.thorough
def test_a_stream_that_is_shifted_amid_the_models_own_sums_hangs_nobody(told_long_answer):
    """The sums have other sizes, so what comes of it may be anything: a lost peer, or silence."""
    one = told_long_answer
    held = one.hold(STREAMS)
    struck = time.monotonic()
    one.garble(1, "step", "shifted")
    assert_told(held)
    assert all(map(one.answers_right, held))
    assert_served_again(one, struck, "exited with code ")
    assert re.search("code (69|75|76) ", one.get("/health")[1]["last_failure"])
    assert "SIGSEGV" not in one.log()


@pytest.mark.sweep(3)
@pytest.mark.parametrize(
    ("rank", "kind", "how"),
    [(0, "lengths", "wild"), (1, "gathered", "flipped"), (1, "step", "emptied")],
)
def test_what_is_garbled_at_the_start_is_named(server, rank, kind, how):
    """In the handshake, and in the canary: neither is taken for ranks that differ, which would be
    the end. Another start finds the link in order."""
    one = server()
    one.garble(rank, kind, how)
    assert one.start() == 0, one.output
    told = one.get("/health")[1]
    assert GARBLED_WORDS + kind in told["last_failure"] and told["restarts"] == 1
    assert one.orphans() == []
