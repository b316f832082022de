"""Who gets a place and room for its bytes, and who gives way: alone, and over real connections."""

import contextlib
import select
import socket
import threading

import pytest

from server.protocol.errors import ApiError
from server.transport import places
from server.transport.http_server import Server
from server.transport.places import BODY, BUSY, FREE_BYTES, HEAD, IDLE, Place, Places, neighbourhood
from tests.support.raw_http import DEADLINE_S, RawClient, request
from tests.transport.test_http_server import App, serving

A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"
MIB = 2**20


class Wire:
    """Stands for a socket; knows whether its reader was woken."""

    woken = False

    def shutdown(self, how: int) -> None:
        self.woken = True


@pytest.fixture
def wires():
    return {}


def take(table: Places, address: str, phase: str = IDLE, since: float = 0.0) -> Place | None:
    """A place in that phase, since ages ago."""
    place = table.take(Wire(), address)
    if place is not None:
        place.phase, place.since = phase, since
    return place


# Places.


def test_one_address_may_use_everything():
    table = Places(10)
    assert all(take(table, A, BUSY) for _ in range(10))
    assert take(table, A) is None and take(table, B) is None


def test_the_oldest_idle_connection_of_the_greediest_address_gives_way():
    table = Places(6)
    first = take(table, A, IDLE, 2.0)
    oldest = take(table, A, IDLE, 1.0)
    others = [take(table, A, BUSY), take(table, A, HEAD), take(table, B, IDLE), take(table, B)]
    newcomer = take(table, C, IDLE)
    assert newcomer is not None and oldest.gave_way is not None and oldest._connection.woken
    assert oldest.gave_way.status == 503
    assert all(place.gave_way is None for place in [first, *others])
    assert take(table, C) is not None and first.gave_way is not None


def test_what_is_arriving_gives_way_after_what_is_idle_and_what_is_answered_never():
    table = Places(4)
    held = [take(table, A, phase) for phase in (BUSY, BODY, HEAD, IDLE)]
    gone = []
    for _ in range(3):
        assert take(table, f"10.1.0.{len(gone)}", BUSY) is not None
        gone += [place.phase for place in held if place.gave_way and place.phase not in gone]
    assert gone == [IDLE, HEAD, BODY]
    assert take(table, C) is None


def test_an_address_cannot_take_from_one_that_holds_less():
    table = Places(4)
    for address in (A, A, A, B):
        take(table, address, BUSY if address == A else IDLE)
    assert take(table, A) is None
    assert take(table, B) is not None, "but it may take from itself"


def test_of_the_same_address_only_the_old_gives_way(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(places.time, "monotonic", lambda: now[0])
    table = Places(2)
    fresh = [take(table, A, IDLE, 99.5), take(table, A, BODY, 95.0)]
    assert take(table, A) is None
    now[0] = 101.0
    assert take(table, A, BUSY) is not None
    assert fresh[0].gave_way is not None and fresh[1].gave_way is None
    assert take(table, A) is None
    now[0] = 106.0
    assert take(table, A) is not None and fresh[1].gave_way is not None


def test_a_place_that_gave_way_is_told_so_and_left_once():
    table = Places(1)
    old = take(table, A, IDLE)
    old.since = -(10**6)
    assert take(table, A, BUSY) is not None
    with pytest.raises(ApiError, match="Too many connections"):
        old.enter(HEAD)
    old.enter(IDLE)  # to leave in peace
    table.leave(old)
    assert take(table, A) is None, "leaving twice must not make room"


def test_a_few_more_may_look_how_the_server_is():
    table = Places(128)
    for _ in range(128):
        assert not take(table, A, BUSY).spare
    assert [take(table, A, BUSY).spare for _ in range(2)] == [True, True]
    assert take(table, A) is None


@pytest.mark.parametrize(
    ("host", "same"),
    [
        ("10.0.0.1", "::ffff:10.0.0.1"),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9"),
        ("fe80::1%eth0", "fe80::2%eth1"),
    ],
)
def test_a_machine_is_one_neighbour_whatever_addresses_it_takes(host, same):
    assert neighbourhood(host) == neighbourhood(same)
    assert neighbourhood(host) != neighbourhood("2001:db8:1:3::1")


# Bytes.


def test_small_requests_are_never_refused_for_want_of_room():
    table = Places(10, bytes_held=0)
    place = take(table, A, HEAD)
    place.hold(FREE_BYTES)
    with pytest.raises(ApiError) as refused:
        place.hold(1)
    assert refused.value.status == 503 and refused.value.retry_after


def test_the_largest_request_of_the_greediest_address_gives_way():
    table = Places(10, bytes_held=100 * MIB)
    large, larger, small = (take(table, A, BODY) for _ in range(3))
    other = take(table, B, BODY)
    for place, size in ((large, 30), (larger, 31), (small, 1), (other, 35)):
        place.hold(size * MIB)
    newcomer = take(table, C, BODY)
    newcomer.hold(10 * MIB)
    assert larger.gave_way is not None and larger._connection.woken
    assert not any(place.gave_way for place in (large, small, other, newcomer))
    with pytest.raises(ApiError) as refused:
        larger.hold(1)
    assert refused.value.code == "overloaded"
    with pytest.raises(ApiError):
        other.hold(30 * MIB)  # it would be the greediest itself
    assert other.gave_way is None


def test_a_request_gives_back_what_it_held_when_it_is_admitted_answered_or_gone():
    table = Places(10, bytes_held=10 * MIB)
    admitted, answered, gone = (take(table, A, BUSY) for _ in range(3))
    for place in (admitted, answered, gone):
        place.hold(3 * MIB)
    asking = take(table, A, BODY)
    with pytest.raises(ApiError):
        asking.hold(3 * MIB)  # nobody who is worked for gives way
    admitted.admit()
    asking.hold(3 * MIB)
    answered.drop()
    asking.hold(3 * MIB)
    table.leave(gone)
    asking.hold(3 * MIB)
    table.leave(asking)
    assert table.held == 0


# Over real connections.


@contextlib.contextmanager
def silent(port: int, count: int, first: bytes = b""):
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawClient(port)) for _ in range(count)]
        for client in clients:
            client.send(first)
        yield clients


@pytest.mark.parametrize("first", [b"", b"GET /ok HT", b"POST /echo HTTP/1.1\r\nX: "])
def test_silent_and_slow_connections_keep_nobody_out(monkeypatch, first):
    """A thousand silent ones kept everybody out for 75 s at a time."""
    monkeypatch.setattr(places, "YIELDS_AFTER_S", dict.fromkeys((IDLE, HEAD, BODY), 0.0))
    app = App()
    with serving(app, max_connections=8) as server, silent(server.port, 8, first) as others:
        wait_for_phase(server, HEAD if first else IDLE, 8)
        with RawClient(server.port) as client:
            assert client.ask(request("GET", "/ok")).status == 200
        ready = select.select([client.socket for client in others], [], [], DEADLINE_S)[0]
        told = [client.rest() for client in others if client.socket in ready]
        assert len(told) == 1 and (b" 503 " in told[0] if first else told[0] == b"")


def wait_for_phase(server: Server, phase: str, count: int) -> None:
    moved = threading.Event()
    for _ in range(int(DEADLINE_S / 0.01)):
        if sum(place.phase == phase for place in list(server.places._taken)) == count:
            return
        moved.wait(0.01)
    pytest.fail(f"no {count} connections in phase {phase}")


@pytest.mark.skipif(not hasattr(socket, "TCP_CORK"), reason="only Linux has all of 127.0.0.0/8")
def test_one_address_cannot_keep_another_out():
    """However young its connections are."""
    app = App()
    with serving(app, max_connections=8) as server, silent(server.port, 8):
        wait_for_phase(server, IDLE, 8)
        with socket.create_connection(
            ("127.0.0.1", server.port), DEADLINE_S, source_address=("127.0.0.2", 0)
        ) as other:
            other.sendall(request("GET", "/ok", None, "Connection: close"))
            assert other.makefile("rb").read().startswith(b"HTTP/1.1 200 ")


def test_health_is_answered_while_every_place_is_busy():
    app = App()
    app.go_on.clear()
    with serving(app, max_connections=64) as server, contextlib.ExitStack() as stack:
        held = [stack.enter_context(RawClient(server.port)) for _ in range(64)]
        for client in held:
            client.send(request("GET", "/look"))
        wait_for_phase(server, BUSY, 64)
        with RawClient(server.port) as client:
            answer = client.ask(request("GET", "/ok"))
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert client.rest() == b""
        wait_for_phase(server, BUSY, 64)
        with RawClient(server.port) as client:
            answer = client.ask(request("POST", "/echo", "hello"))
            assert (answer.status, answer.error["code"]) == (503, "too_many_connections")
        app.go_on.set()
        assert [client.read().status for client in held] == [200] * 64


def test_unfinished_bodies_have_one_limit_in_all():
    """Each had a limit of its own, and all together none: 1,024 times 32 MB."""
    app = App()
    with serving(app) as server, contextlib.ExitStack() as stack:
        server.places._bytes = 3 * MIB
        unfinished = request("POST", "/echo", b"x" * MIB)[:-1]
        held = [stack.enter_context(RawClient(server.port)) for _ in range(3)]
        for client in held[:2]:
            client.send(unfinished)
        held[2].send(request("POST", "/echo", b"x" * (MIB + 10_000))[:-1])
        for _ in range(int(DEADLINE_S / 0.01)):
            if server.places.held > 3 * (MIB - FREE_BYTES) + 10_000:
                break
            threading.Event().wait(0.01)
        else:
            pytest.fail("not all has come in")
        with RawClient(server.port) as client:  # small, and smaller than what is there
            assert client.ask(request("POST", "/echo", b"x" * 1000)).status == 200
            assert client.ask(request("POST", "/echo", b"x" * 500_000)).status == 200
        answer = held[2].read()
        assert (answer.status, answer.error["code"]) == (503, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        for client in held[:2]:
            client.send(b"x")
            assert client.read().json["length"] == MIB
        assert server.places.held == 0
