"""Servers on two ranks, for faults."""

import pytest

from tests.support.faults import CONTEXT, Server
from tests.support.tiny_models import tiny_llama


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny", context=CONTEXT)


@pytest.fixture
def server(tmp_path, tiny_model):
    """server(**settings) -> Server, not started yet; ended afterwards."""
    made: list[Server] = []

    def make(**settings) -> Server:
        made.append(Server(tmp_path / f"server{len(made)}", tiny_model, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()
