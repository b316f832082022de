"""One line a request, without what people wrote; a bad disk loses lines and nothing else."""

import json
import logging
import stat
import time
from datetime import datetime

import pytest

from server.observe.account import Account
from server.observe.recorder import Recorder
from server.observe.request_log import RequestLog, describe
from server.observe.rotating_file import KEPT
from server.protocol.errors import engine_failed
from server.protocol.events import Failed, Token
from server.protocol.settings import SettingError, read_settings
from tests.support.front_end import MODEL, TEXT, FrontEnd
from tests.support.raw_http import RawClient, request

SECRET = "zebra"
ROUTE = "/v1/chat/completions"
KEY = "Authorization: Bearer sk-alice"
DEADLINE_S = 20


class Logged:
    """A front end with a request log."""

    def __init__(self, model_dir, folder, **env: str) -> None:
        (folder / "keys").write_text("sk-alice Alice's laptop\n\nsk-bob\n")
        env["API_KEY_FILE"] = str(folder / "keys")
        self.path = folder / "logs" / "requests-1.jsonl"
        record = Recorder()
        self._log = RequestLog(self.path, MODEL, 0, record.line_dropped)
        self._seen = 0
        self.front_end = FrontEnd(model_dir, record, self._log.add, **env)

    def lines(self, count: int) -> list[dict]:
        """The next lines, at least so many, by when their requests began: an answer is sent before
        its line is written, so that the next request's may come first."""
        end = time.monotonic() + DEADLINE_S
        while True:
            text = self.path.read_text() if self.path.exists() else ""
            lines = text.splitlines()
            if text.endswith("\n") and len(lines) >= self._seen + count:
                break
            assert time.monotonic() < end, text
            time.sleep(0.005)
        new, self._seen = lines[self._seen :], len(lines)
        return sorted(map(json.loads, new), key=lambda line: line["time"])

    def chat(self, *headers: str, **fields):
        body = {"messages": [{"role": "user", "content": SECRET}]} | fields
        return self.front_end.ask("POST", ROUTE, body, *(headers or (KEY,)))

    def end(self) -> None:
        self.front_end.end()
        self._log.close()


@pytest.fixture(scope="module")
def plain(demo_model_dir, tmp_path_factory):
    one = Logged(demo_model_dir, tmp_path_factory.mktemp("log"))
    yield one
    one.end()


def test_an_answer_has_its_line(plain):
    usage = plain.chat(n=2).json["usage"]
    (line,) = plain.lines(1)
    assert line["id"].startswith("req_")
    assert datetime.fromisoformat(line["time"]).tzinfo is not None
    told = ("key", "route", "model", "outcome", "status", "error", "stream", "choices", "finish")
    assert [line[name] for name in told] == [
        "Alice's laptop", ROUTE, MODEL, "answered", 200, None, False, 2, ["stop", "stop"],
    ]  # fmt: skip
    assert line["prompt_tokens"] == usage["prompt_tokens"]
    assert line["generated_tokens"] == usage["completion_tokens"]
    assert line["cached_tokens"] == 0
    assert 0 <= line["queue_s"] <= line["ttft_s"] <= line["seconds"]
    assert line["tokens_per_s"] > 0


def test_no_line_holds_a_key_or_what_was_said(plain):
    plain.chat(stream=True)
    plain.chat("Authorization: Bearer sk-wrong")
    plain.chat("Authorization: Bearer sk-bob", stop=SECRET)
    plain.chat(temperature=5)
    plain.chat(model="other")
    plain.front_end.ask("POST", "/v1/other", {}, KEY)
    lines = plain.lines(6)
    text = json.dumps(lines)
    for secret in (SECRET, TEXT, "sk-"):
        assert secret not in text
    assert [line["status"] for line in lines] == [200, 401, 200, 400, 404, 404]
    assert [line["outcome"] for line in lines] == ["answered", "refused", "answered"] + 3 * [
        "refused"
    ]
    assert [line["key"] for line in lines][:3] == ["Alice's laptop", None, "key 2"]
    assert [line["error"] for line in lines][1] == "invalid_api_key"
    assert lines[0]["stream"] is True


def test_a_refusal_has_its_message_printable_and_bounded(plain, caplog):
    """Nobody could tell why a client failed. A refused value is quoted, as the client saw it."""
    with caplog.at_level(logging.WARNING):
        told = plain.chat(temperature="\x1b[2J\n" + "x" * 10**5).json["error"]["message"]
        plain.chat("Authorization: Bearer sk-wrong")
        plain.chat()
        refused, stranger, answered = plain.lines(3)
    assert refused["error_message"] == told and told.startswith("Invalid value for 'temperature'")
    assert told.isprintable() and len(told) < 1000
    assert stranger["error_message"].startswith("Missing or wrong API key")
    assert answered["error_message"] is None
    logged = [r.getMessage() for r in caplog.records if r.name == "server.api.routes"]
    assert sorted(logged) == sorted([
        f"{refused['id']} POST {ROUTE} refused, 400: {told}",
        f"{stranger['id']} POST {ROUTE} refused, 401: {stranger['error_message']}",
    ])  # fmt: skip  # each by its own thread, after its answer


def test_looking_leaves_no_line_unless_it_is_refused(plain):
    for path in ("/health", "/metrics", "/cluster", "/queue", "/v1/models"):
        assert plain.front_end.ask("GET", path, None, KEY).status == 200
    assert plain.front_end.ask("GET", "/metrics").status == 401
    (line,) = plain.lines(1)
    assert (line["method"], line["route"], line["status"]) == ("GET", "/metrics", 401)
    assert "generated_tokens" not in line


def test_a_failure_and_a_client_that_leaves_are_told_apart(plain):
    def fail(ticket):
        yield Token(5, None)
        yield Failed(engine_failed("a fault"))

    def speak_on(ticket):
        while True:
            yield Token(5, None)

    engine = plain.front_end.engine
    speaking, engine.script = engine.script, fail
    assert plain.chat().status == 500
    engine.script = speak_on
    body = {"messages": [{"role": "user", "content": "on"}], "stream": True}
    with RawClient(plain.front_end.server.port) as client:
        client.send(request("POST", ROUTE, body, KEY))
        client.read_head()
    engine.script = speaking
    failed, cut = plain.lines(2)
    assert [failed[name] for name in ("outcome", "status", "error", "generated_tokens")] == [
        "failed", 500, "engine_error", 1,
    ]  # fmt: skip
    assert (cut["outcome"], cut["status"], cut["finish"]) == ("cut", 200, [None])
    assert cut["generated_tokens"] > 0


def test_the_file_is_its_owners_alone(plain):
    plain.chat()
    plain.lines(1)
    assert stat.S_IMODE(plain.path.stat().st_mode) == 0o600


def test_with_log_prompts_the_line_says_it_all(demo_model_dir, tmp_path):
    one = Logged(demo_model_dir, tmp_path, LOG_PROMPTS="1")
    tool = {"type": "function", "function": {"name": "go", "parameters": {"type": "object"}}}
    try:
        one.chat(n=2, stream=True)
        one.chat(tools=[tool], tool_choice="required")
        one.chat(temperature=SECRET)
        said, called, wrong = one.lines(3)
    finally:
        one.end()
    assert SECRET in said["prompts"][0]
    assert said["answers"] == [{"text": TEXT}, {"text": TEXT}]
    assert called["answers"][0]["calls"][0]["name"] == "go"
    assert json.loads(called["answers"][0]["calls"][0]["arguments"]) is not None
    assert "answers" not in wrong  # it never came to one


# The file.


def account(n: int) -> Account:
    return Account(f"req_{n:03d}", "POST", ROUTE, code=200)


def test_full_parts_are_turned_and_the_oldest_goes(tmp_path):
    path = tmp_path / "requests-1.jsonl"
    record = Recorder()
    log = RequestLog(path, "m", 1000, record.line_dropped)
    for n in range(100):
        log.add(account(n))
    log.close()
    parts = [path, *(path.with_name(f"{path.name}.{n}") for n in range(1, KEPT + 1))]
    assert sorted(tmp_path.iterdir()) == sorted(parts)
    ids = []
    for part in reversed(parts):
        assert part.stat().st_size <= 1000
        ids += [json.loads(line)["id"] for line in part.read_text().splitlines()]
    assert ids == [f"req_{n:03d}" for n in range(100)][-len(ids) :]
    assert record.log_lines_dropped == 0


def test_a_log_goes_on_where_the_last_process_left_it(tmp_path):
    path = tmp_path / "requests-1.jsonl"
    for n in range(2):
        log = RequestLog(path, "m", 0, Recorder().line_dropped)
        log.add(account(n))
        log.close()
    assert [json.loads(x)["id"] for x in path.read_text().splitlines()] == ["req_000", "req_001"]


def test_a_full_disk_costs_lines_and_one_warning(caplog, tmp_path):
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    record = Recorder()
    log = RequestLog(full, "m", 0, record.line_dropped)
    for n in range(5):
        log.add(account(n))
    log.close()
    assert record.log_lines_dropped == 5
    assert len(caplog.messages) == 1
    assert "going on" in caplog.messages[0]


def test_a_folder_that_cannot_be_made_is_no_reason_to_stop(caplog, tmp_path):
    (tmp_path / "file").write_text("")
    record = Recorder()
    log = RequestLog(tmp_path / "file" / "requests-1.jsonl", "m", 0, record.line_dropped)
    log.add(account(1))
    log.close()
    assert record.log_lines_dropped == 1


def test_settings_of_the_log(tmp_path):
    env = {"MODEL_DIR": str(tmp_path)}
    assert read_settings(env).log_dir is None
    settings = read_settings(env | {"LOG_DIR": str(tmp_path), "LOG_MAX_MB": "0.5"})
    assert (settings.log_dir, settings.log_max_mb, settings.log_prompts) == (tmp_path, 0.5, False)
    for name, value in (("LOG_PROMPTS", "yes"), ("LOG_MAX_MB", "-1")):
        with pytest.raises(SettingError, match=name):
            read_settings(env | {name: value})


def test_the_model_is_the_one_that_was_asked_as_far_as_it_is_known():
    assert describe(Account("req_1", model="b"), "a")["model"] == "b"
    assert describe(Account("req_2"), "a")["model"] == "a"
