"""The list of requests in GET /cluster, and DELETE /requests/{id}: who may stop what, and what the
client of a stopped request is told."""

import contextlib
import time

import pytest

from server.protocol.events import Token
from server.protocol.settings import SettingError, read_settings
from tests.support.front_end import FrontEnd
from tests.support.launch_helpers import wait_until
from tests.support.raw_http import RawClient, request

ROUTE = "/v1/completions"
KEYS = "ann-1 ann\nann-2 ann\nbob-1 bob\nops-1 ops\nplace-1\n"


def endless(ticket):
    while True:
        yield Token(5, None)


def silent(ticket):
    while True:
        yield None


@pytest.fixture(scope="module")
def front_end(demo_model_dir, tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(KEYS)
    one = FrontEnd(
        demo_model_dir, API_KEY_FILE=str(file), OPERATOR_KEYS="ops", MAX_BATCH="2", QUEUE_MAX="2"
    )
    yield one
    one.end()


def call(front_end, method, path, key):
    return front_end.ask(method, path, None, f"x-api-key: {key}")


def live(front_end, asker="ops-1", **wanted) -> list[dict]:
    """The list, once some request is as wanted."""
    for _ in range(2000):
        found = call(front_end, "GET", "/cluster", asker).json["requests"]
        if not wanted or any(wanted.items() <= one.items() for one in found):
            return found
        time.sleep(0.005)
    raise AssertionError(found)


@contextlib.contextmanager
def asked(front_end, key="ann-1", script=endless, **fields):
    """A request that runs on, and its client."""
    speaking, front_end.engine.script = front_end.engine.script, script
    before = front_end.line.held()
    body = {"prompt": "on", "max_tokens": 2000} | fields
    with RawClient(front_end.server.port) as client:
        client.send(request("POST", ROUTE, body, f"x-api-key: {key}"))
        try:
            while front_end.line.held() <= before:
                time.sleep(0.005)
            yield client
        finally:
            front_end.engine.script = speaking
            client.close()
            while front_end.line.held() > before:
                time.sleep(0.005)


def test_a_running_request_is_told_with_its_phase_and_key(front_end):
    assert live(front_end) == []
    with asked(front_end, script=silent, n=2):
        (one,) = live(front_end, phase="prefill")
        assert (one["key"], one["route"], one["choices"]) == ("ann", ROUTE, 2)
        assert one["kv_tokens"] == 2 * one["prompt_tokens"] and not one["generated_tokens"]
        assert one["max_tokens"] == 4000
        with asked(front_end, "bob-1"):
            live(front_end, phase="queued", key="bob")
    with asked(front_end, stream=True):
        (one,) = live(front_end, phase="decode", stream=True)
        (later,) = live(front_end)
        assert later["age_s"] >= one["age_s"]
        assert later["kv_tokens"] == later["prompt_tokens"] + later["generated_tokens"]


@pytest.mark.parametrize("key", ["ann-1", "ann-2", "ops-1"])
def test_its_own_key_one_of_the_same_name_and_an_operators_stop_it(front_end, key):
    with asked(front_end) as client:
        (one,) = live(front_end, key, phase="decode")
        assert one["stop"]
        answer = call(front_end, "DELETE", f"/v1/requests/{one['id']}", key)
        assert answer.json == {"id": one["id"], "object": "request", "stopped": True}
        told = client.read()
        assert (told.status, told.json["error"]["code"]) == (403, "request_stopped")
        assert told.headers["x-request-id"] == one["id"]
        # It is told before the request has ended on this side.
        again = ("DELETE", f"/requests/{one['id']}", key)
        assert wait_until(lambda: call(front_end, *again).status == 404)


@pytest.mark.parametrize("key", ["bob-1", "place-1"])
def test_another_key_does_not(front_end, key):
    with asked(front_end):
        (one,) = live(front_end, key, phase="decode")
        assert not one["stop"]
        refused = call(front_end, "DELETE", f"/requests/{one['id']}", key)
        assert (refused.status, refused.json["error"]["code"]) == (403, "not_your_request")
        assert call(front_end, "DELETE", f"/requests/{one['id']}", "wrong").status == 401
        assert live(front_end)[0]["id"] == one["id"]


def test_one_that_waits_is_stopped_too(front_end):
    with asked(front_end, n=2), asked(front_end, "bob-1") as client:
        live(front_end, phase="queued", key="bob")
        (one,) = [one for one in live(front_end) if one["key"] == "bob"]
        assert call(front_end, "DELETE", f"/requests/{one['id']}", "bob-1").status == 200
        assert client.read().status == 403
        assert [one["key"] for one in live(front_end)] == ["ann"]


def test_a_stream_ends_with_the_error(front_end):
    with asked(front_end, stream=True) as client:
        client.read_head()
        (one,) = live(front_end, phase="decode")
        call(front_end, "DELETE", f"/requests/{one['id']}", "ann-1")
        text = b""
        while chunk := client.read_chunk():
            text = chunk
        assert b"request_stopped" in text


def test_the_ranks_drop_it_though_its_client_does_not_read(front_end):
    """Its own thread hangs in a write, and would look at nothing for a minute."""
    with asked(front_end, stream=True):
        (one,) = live(front_end, phase="decode")
        assert call(front_end, "DELETE", f"/requests/{one['id']}", "ann-1").status == 200
        for _ in range(2000):
            if not front_end.line.held():
                break
            time.sleep(0.005)
        assert not front_end.line.held()


@pytest.mark.parametrize("id", ["", "nobody", "x" * 5000, "a/b", "%00", "..%2F.."])
def test_what_is_no_request_is_a_404(front_end, id):
    assert call(front_end, "DELETE", f"/v1/requests/{id}", "ops-1").status == 404


def test_other_methods_are_refused(front_end):
    answer = call(front_end, "GET", "/requests/some", "ops-1")
    assert (answer.status, answer.headers["allow"]) == (405, "DELETE, OPTIONS")


def test_a_page_of_another_site_stops_nothing(front_end):
    with asked(front_end):
        (one,) = live(front_end, phase="decode")
        answer = front_end.ask(
            "DELETE", f"/requests/{one['id']}", None, "x-api-key: ops-1", "Origin: http://evil.test"
        )
        assert answer.status == 403 and live(front_end)


def test_without_keys_anybody_may(demo_model_dir):
    one = FrontEnd(demo_model_dir)
    try:
        with asked(one):
            (found,) = live(one, phase="decode")
            assert found["stop"] and found["key"] is None
            assert one.ask("DELETE", f"/requests/{found['id']}").status == 200
    finally:
        one.end()


@pytest.mark.parametrize(("names", "keys"), [
    ("ann", ""), ("eve", "k1 ann\n"), ("ann,eve", "k1 ann\n"), ("key", "k1\n"),
])  # fmt: skip
def test_an_operator_that_no_key_names_is_refused_at_the_start(tmp_path, names, keys):
    env = {"MODEL_DIR": str(tmp_path), "OPERATOR_KEYS": names}
    if keys:
        (tmp_path / "keys").write_text(keys)
        env["API_KEY_FILE"] = str(tmp_path / "keys")
    with pytest.raises(SettingError, match="OPERATOR_KEYS='(ann|eve|key)': must be names"):
        read_settings(env)
    assert read_settings(env, rank=1).operator_keys  # which has no keys to compare with
