"""A front end with an app that answers by path; and a browser on a cluster of words."""

import pytest

from tests.support.browser import Browser, programs
from tests.support.http_app import App, serving
from tests.support.raw_http import RawClient
from tests.support.scripted_cluster import ScriptedCluster


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


@pytest.fixture(scope="module")
def shared_browser(tmp_path_factory):
    programs()
    one = Browser(tmp_path_factory.mktemp("chromium") / "profile")
    yield one
    one.end()


@pytest.fixture
def browser(shared_browser):
    shared_browser.screen(1280, 900)
    shared_browser.complaints(network=True)
    return shared_browser


@pytest.fixture
def cluster(browser):
    """A cluster of words, and the page open on it."""
    one = ScriptedCluster()
    browser.open(one.url)
    browser.wait_text("#state", "Serving")
    yield one
    one.end()
