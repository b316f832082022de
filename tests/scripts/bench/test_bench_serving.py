"""scripts/bench_serving.py: the whole front end, a server that misbehaves, and a real rank."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest

from scripts.lib.bench.load import run_closed, run_open
from scripts.lib.bench.serving import prepare
from scripts.lib.bench.swarm import Call, Swarm
from tests.support.cluster import ROOT, Cluster
from tests.support.front_end import FrontEnd
from tests.support.tiny_models import tiny_llama

PROGRAM = ROOT / "scripts" / "bench_serving.py"
DEADLINE_S = 20.0


def bench(*arguments: object, **env: str) -> subprocess.CompletedProcess:
    command = [sys.executable, PROGRAM, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, check=False, env=env or None
    )


def summary(done: subprocess.CompletedProcess) -> dict:
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def front_end(demo_model_dir):
    one = FrontEnd(demo_model_dir, MAX_BATCH="64", QUEUE_MAX="64")
    with one.saying("word " * 40):
        yield one
    one.end()


def test_closed_loop_counts_what_the_server_counts(front_end):
    seen = len(front_end.engine.seen)
    done = bench("--url", front_end.url, "--clients", 5, "--requests", 20, "--warmup", 3,
                 "--prompt-tokens", 60, "--output-tokens", 12, "--seed", 4)  # fmt: skip
    result = summary(done)
    assert (result["requests"], result["answered"], result["failures"]) == (20, 20, {})
    assert result["completion_tokens"] == 20 * 12
    assert result["tokens_counted_by"] == "server"
    assert (result["drafted"], result["tokens_per_step"]) == (0, 1.0)
    assert result["prompt_tokens_mean"] == pytest.approx(60, abs=3)
    assert result["tokens_per_s"] == pytest.approx(240 / result["seconds"])
    assert result["ttft_s"]["count"] == 20
    assert 0 < result["ttft_s"]["p50"] <= result["ttft_s"]["p95"] <= result["request_s"]["most"]
    assert (result["model"], result["loop"], result["seed"]) == ("demo", "closed", 4)
    assert 0 < result["client_cpu"] < 1.5
    assert (
        "time to first token" in done.stdout
        and "1.00; 0 drafted" in done.stdout
        and "of a core" in done.stdout
    )
    prompts = [tuple(ticket.prompt) for ticket in front_end.engine.seen[seen:]]
    assert len(prompts) == 3 + 3 + 20, "ignore_eos, two of the gauge, the warm-up, the run"
    assert len(set(prompts)) == len(prompts), "no two prompts may be the same"


def test_open_loop_draws_lengths_and_sampling_from_the_seed(front_end):
    arguments = ("--url", front_end.root, "--rate", 200, "--requests", 24, "--api", "completions",
                 "--prompt-tokens", "20-40", "--output-tokens", "3-9", "--sampling", "seeds",
                 "--shared-prefix", 30, "--warmup", 0, "--seed", 8)  # fmt: skip
    runs = []
    for _ in range(2):
        seen = len(front_end.engine.seen)
        result = summary(bench(*arguments))
        assert (result["loop"], result["answered"], result["rate"]) == ("open", 24, 200)
        assert result["lag_s"]["count"] == 24
        runs.append(front_end.engine.seen[seen + 3 :])
    first, again = (
        Counter((tuple(t.prompt), t.max_tokens, t.common.sampling) for t in run) for run in runs
    )
    assert first == again and len(first) == 24
    prompts = [ticket.prompt for ticket in runs[0]]
    assert len({tuple(prompt[:28]) for prompt in prompts}) == 1, "the shared prefix"
    assert {len(prompt) for prompt in prompts} <= set(range(48, 73))
    assert {ticket.max_tokens for ticket in runs[0]} <= set(range(3, 10))
    assert len({ticket.common.sampling.seed for ticket in runs[0]}) == 24


def test_seconds_end_a_run_after_its_last_answers(front_end):
    result = summary(bench("--url", front_end.url, "--clients", 2, "--seconds", 0.5,
                           "--output-tokens", 5, "--warmup", 0))  # fmt: skip
    assert result["answered"] == result["requests"] >= 2


def test_a_server_that_wants_a_key_gets_that_of_the_environment(demo_model_dir):
    one = FrontEnd(demo_model_dir, API_KEY="secret")
    arguments = ("--url", one.url, "--clients", 1, "--requests", 1, "--output-tokens", 2)
    try:
        assert summary(bench(*arguments, API_KEY="secret"))["answered"] == 1
        without = bench(*arguments)
        assert without.returncode == 1 and "does not serve: status 401" in without.stderr
    finally:
        one.end()


def test_a_full_queue_is_counted_as_busy(demo_model_dir):
    one = FrontEnd(demo_model_dir, MAX_BATCH="1", QUEUE_MAX="0")
    try:
        swarm = Swarm(one.url)

        def ask(client: int, number: int) -> Call:
            fields = {"prompt": "a", "max_tokens": 30, "stream": True}
            return Call("/v1/completions", fields, DEADLINE_S)

        with one.saying("word " * 40):
            load = run_closed(swarm, 3, ask, requests=3)
        assert load.failures == {"busy": 2} and len(load.good) == 1
    finally:
        one.end()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--url", "ftp://x"), "must be a URL"),
        (("--url", "http://x", "--clients", "0"), "--clients '0': must be a whole number from 1"),
        (("--url", "http://x", "--rate", "nan"), "--rate 'nan': must be a number"),
        (
            ("--url", "http://x", "--clients", "1", "--rate", "2"),
            "--clients and --rate: one of them",
        ),
        (("--url", "http://x", "--prompt-tokens", "9-3"), "'9-3': must be a number of tokens"),
        ((), "--url"),
    ],
)
def test_wrong_arguments_are_usage_errors(arguments, says):
    done = bench(*arguments)
    assert done.returncode == 2 and says in done.stderr


def test_help_is_the_header_and_nobody_there_is_said_in_one_line():
    shown = bench("--help")
    assert shown.returncode == 0 and "usage: bench_serving.py" in shown.stdout
    done = bench("--url", "http://127.0.0.1:1")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "does not answer" in done.stderr


# The swarm, against a server that misbehaves.


@pytest.fixture
def rude():
    """serve(deeds) -> port: what to do with the first connection, the second, ..."""
    listeners = []

    def serve(*deeds) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def run() -> None:
            with contextlib.suppress(OSError):  # closed at the end of the test
                for deed in deeds:
                    connection, _ = listener.accept()
                    with connection:
                        deed(connection)

        threading.Thread(target=run, daemon=True).start()
        return listener.getsockname()[1]

    yield serve
    for listener in listeners:
        listener.close()


def take(connection: socket.socket) -> None:
    connection.recv(65536)


def reset(connection: socket.socket) -> None:
    take(connection)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def cut(connection: socket.socket) -> None:
    take(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {}\n\n")


def silent(connection: socket.socket) -> None:
    take(connection)
    connection.settimeout(DEADLINE_S)
    connection.recv(1)


def test_each_way_to_fail_has_its_name(rude):
    port = rude(lambda connection: None, reset, take, cut, silent)
    swarm = Swarm(f"http://127.0.0.1:{port}")  # which connects once, to see
    calls = [Call("/v1/completions", {"prompt": "a"}, DEADLINE_S) for _ in range(3)]
    calls.append(Call("/v1/completions", {"prompt": "a"}, 0.3))
    for call in calls:  # one after another, as the server's deeds
        swarm.start(call)
        swarm.run()
    assert [call.read().failure for call in calls] == ["reset", "reset", "cut", "timeout"]


def test_a_server_that_left_refuses(rude):
    swarm = Swarm(f"http://127.0.0.1:{rude(take)}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # taken, but nobody listens
        swarm._address = free.getsockname()
        load = run_closed(swarm, 2, lambda c, n: Call("/x", {"a": 1}, DEADLINE_S), requests=2)
    assert load.failures == {"refused": 2} and load.tokens_per_s == 0


def test_calls_can_be_abandoned_while_others_go_on(front_end):
    swarm = Swarm(front_end.url)
    fields = {"prompt": "a", "max_tokens": 40, "stream": True}
    leaving = Call("/v1/completions", fields, DEADLINE_S)
    staying = Call("/v1/completions", fields, DEADLINE_S)
    never = Call("/v1/completions", fields, DEADLINE_S)
    swarm.start(leaving)
    swarm.start(staying)
    swarm.start(never, at=leaving.due + 60)

    def leave(call: Call) -> None:
        if call is leaving and len(call.pieces) > 3:
            swarm.abandon([leaving, never])

    swarm.on_piece = leave
    swarm.run()
    assert leaving.read().failure == "abandoned" and staying.read().failure == ""
    assert not never.sent


def test_a_call_can_be_abandoned_although_its_bytes_have_come(front_end):
    swarm = Swarm(front_end.url)
    fields = {"prompt": "a", "max_tokens": 40, "stream": True}
    calls = [Call("/v1/completions", fields, DEADLINE_S) for _ in range(2)]
    for call in calls:
        swarm.start(call)

    def let_bytes_come() -> None:
        time.sleep(0.3)  # for both, so the loop has the two to look at in one go
        swarm.on_piece = lambda call: swarm.abandon(calls)

    swarm.call_at(calls[0].due + 0.02, let_bytes_come)
    swarm.run()
    assert [call.read().failure for call in calls] == ["abandoned", "abandoned"]


def test_open_loop_sends_at_its_times_whatever_runs(front_end):
    swarm = Swarm(front_end.url)
    fields = {"prompt": "a", "max_tokens": 40, "stream": True}
    load = run_open(
        swarm, iter([0.0, 0.0, 0.01, 0.02, 9.0]),
        lambda c, n: Call("/v1/completions", fields, DEADLINE_S), seconds=1.0,
    )  # fmt: skip
    assert len(load.good) == 4
    sent = sorted(answer.sent for answer in load.answers)
    assert sent[-1] < min(answer.ended for answer in load.answers), "none waits for another"


class Listing:
    """Lists models, and notes what is asked of them."""

    def __init__(self, *names: str) -> None:
        self.names, self.asked = names, []

    def ask(self, path: str, fields: dict | None = None, deadline_s: float = 0.0):
        if path == "/v1/models":
            return SimpleNamespace(body={"data": [{"id": name} for name in self.names]})
        self.asked.append((fields.get("model"), deadline_s))
        tokens = len(str(fields["messages"]).split())
        return SimpleNamespace(status=200, failure="", prompt_tokens=tokens)


@pytest.mark.parametrize(
    ("listed", "named", "asks"),
    [
        (("only",), None, "only"),
        (("large", "small"), None, None),
        (("large", "small"), "small", "small"),
    ],
)
def test_of_several_models_one_is_named_and_may_have_to_be_loaded(listed, named, asks, capsys):
    """It took two minutes for the longest that a first answer may take."""
    swarm = Listing(*listed)
    arguments = SimpleNamespace(model=named, api="chat", ignore_eos="auto", seed=1, deadline=900.0)
    prepare(arguments, swarm)
    assert swarm.asked[0] == (asks, 900.0)
    assert {model for model, _ in swarm.asked} == {asks}
    said = capsys.readouterr().err
    assert ("2 models are listed (large, small), so none is named" in said) == (asks is None)


# Real ranks.


def test_a_real_rank_is_measured(tmp_path_factory):
    model = tiny_llama(tmp_path_factory.mktemp("model") / "tiny", context=1024)
    small = tiny_llama(model.parent / "s, 1", context=1024, layers=1)
    env = {"MAX_BATCH": 8, "MODELS": f"small={small}"}
    one = Cluster(1, model, tmp_path_factory.mktemp("bench"), env)
    try:
        one.wait_ready()
        result = summary(bench("--url", one.url, "--clients", 4, "--requests", 8, "--sampling",
                               "mixed", "--prompt-tokens", 100, "--output-tokens", 20))  # fmt: skip
        other = summary(bench("--url", one.url, "--model", "small", "--clients", 1, "--requests", 1,
                              "--output-tokens", 4))  # fmt: skip
        none = bench("--url", one.url, "--model", "none", "--requests", 1)
    finally:
        one.end()
    assert (other["answered"], other["model"]) == (1, "small")
    assert none.returncode == 1 and "404" in none.stderr
    assert (result["answered"], result["completion_tokens"], result["ended_early"]) == (8, 160, 0)
    # Of bytes there are exactly as many as asked for, give or take half a word.
    assert result["prompt_tokens_mean"] == pytest.approx(100, abs=3)
    assert result["tokens_per_event"] == pytest.approx(1, abs=0.2)
