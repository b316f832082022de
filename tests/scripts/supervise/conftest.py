"""Stub ranks under a supervisor, ended afterwards."""

import pytest

from tests.support.supervised import Server


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    yield server
    server.close()
