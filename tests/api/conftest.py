"""A front end whose model is a stub, and the openai client for it."""

import contextlib
import functools
import ssl

import openai
import pytest

from tests.support.api_service import Service

# A client of an SDK reads the certificates of all authorities when it is made, to ask loopback.
ssl.create_default_context = functools.cache(ssl.create_default_context)


@pytest.fixture
def start(tmp_path):
    """start(**env) -> a service that has loaded."""
    with contextlib.ExitStack() as stack:

        def make(**env: str) -> Service:
            service = Service(tmp_path, **env)
            stack.callback(service.end)
            return service.finish_loading()

        yield make


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    service = Service(tmp_path_factory.mktemp("model")).finish_loading()
    yield service
    service.end()


@pytest.fixture
def service(shared) -> Service:
    """The shared one, with nothing in it."""
    shared.wait_for(lambda: shared.line.held() == 0)
    shared.engine.dropped.clear()
    shared.engine.seen.clear()
    return shared


@pytest.fixture
def client(service) -> openai.OpenAI:
    return service.client()
