"""CANARY_INTERVAL on two real ranks: idle ones prove themselves again and again, and serve."""

import re

import pytest

from tests.support.tiny_models import tiny_llama

pytestmark = pytest.mark.ranks


@pytest.fixture
def idle(cluster, tmp_path):
    return cluster(2, tiny_llama(tmp_path / "tiny"), CANARY_INTERVAL=0.5)


def proofs(log: str) -> int:
    """How often every rank agreed; each of the two says so."""
    return len(re.findall(r"canary: 2 ranks agree on", log)) // 2


def test_idle_ranks_repeat_the_canary_and_measure_the_link(idle):
    first = idle.get("/cluster")[1]["link"]
    assert first["latency_us"] > 0
    idle.wait_for(lambda: proofs(idle.log()) >= 3)  # the first is part of the start
    # Measured to the nanosecond: never the same twice.
    idle.wait_for(lambda: idle.get("/cluster")[1]["link"] != first)
    status, body = idle.post("/v1/completions", {"prompt": "Once", "max_tokens": 4})
    assert status == 200 and body["usage"]["completion_tokens"] <= 4
    before = proofs(idle.log())
    idle.wait_for(lambda: proofs(idle.log()) > before)
    health = idle.get("/health")[1]
    assert (health["status"], health["restarts"]) == ("ok", 0)
