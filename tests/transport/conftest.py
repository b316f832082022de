"""A front end with an app that answers by path."""

import pytest

from tests.support.http_app import App, serving
from tests.support.raw_http import RawClient


@pytest.fixture(scope="module")
def shared():
    app = App()
    with serving(app) as server:
        yield app, server.port


@pytest.fixture
def app(shared) -> App:
    shared[0].paths.clear()
    return shared[0]


@pytest.fixture
def port(shared) -> int:
    return shared[1]


@pytest.fixture
def client(port):
    with RawClient(port) as client:
        yield client
