"""What must hold of a server after a fault: its clients are told, and service comes back."""

from tests.support.faults import (
    CUT,
    ERROR_EVENT,
    REFUSED,
    Client,
    Server,
)

SOON_S = 90  # for what takes a few seconds on a quiet machine


def start(server: Server) -> Server:
    assert server.start() == 0, server.output
    return server


def assert_told(clients: list[Client], code: str = "restarting") -> None:
    """Each has an error that says so: a 503, or an event that ends its stream."""
    for client in clients:
        client.join(SOON_S)
        assert client.outcome in ("503", ERROR_EVENT), (client.outcome, client.text[-20:])
        assert client.error["type"] == "server_error"
        assert (client.error["code"], bool(client.error["message"])) == (code, True), client.error
        if client.outcome == "503":
            assert int(client.retry_after) >= 1


def assert_served_again(server: Server, struck: float, failure: str, restarts: int = 1) -> float:
    """Good answers, nobody left over, and /health tells of it. Seconds since the fault."""
    seconds, newcomers = server.wait_good_answer(struck)
    # A newcomer may be cut if it arrives in the very moment in which the process ends.
    assert not newcomers.keys() - {"503", REFUSED, CUT} and newcomers[CUT] <= 1, newcomers
    assert server.orphans() == []
    status, health = server.get("/health")
    assert (status, health["restarts"]) == (200, server.restarts + restarts)
    assert failure in health["last_failure"], health["last_failure"]
    assert health["running"] == health["queued"] == health["kv_tokens"]["used"] == 0
    return seconds
