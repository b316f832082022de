"""Usage by the label of a key: in /metrics and /cluster, bounded, and the sum of what was answered;
and the histograms of finished requests."""

import time

import pytest

from server.observe.account import Account
from server.observe.recorder import Recorder
from server.observe.usage import LABEL_CHARS, LABELS_KEPT, OTHERS, shown
from server.protocol.events import Token
from server.protocol.pieces import Usage
from tests.observe.test_metrics import settled as settle
from tests.support.front_end import FrontEnd
from tests.support.prom_lint import lint, parse, value
from tests.support.raw_http import RawClient, request

ROUTE = "/v1/completions"
KEYS = {"sesame": "ann", "twosame": "ann", "threesame": "", "foursame": 'b"o\\b é'}
TOKENS = ("prompt_tokens", "prompt_tokens_cached", "generation_tokens")


@pytest.fixture(scope="module")
def front_end(demo_model_dir, tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text("".join(f"{key} {label}\n" for key, label in KEYS.items()))
    one = FrontEnd(demo_model_dir, API_KEY_FILE=str(file))
    one.file = file
    yield one
    one.end()


def ask(front_end, key, **fields):
    body = {"prompt": "Paris is", "max_tokens": 3} | fields
    return front_end.ask("POST", ROUTE, body, f"Authorization: Bearer {key}")


def by_key(front_end) -> dict[str, dict]:
    answer = front_end.ask("GET", "/cluster", None, "x-api-key: sesame").json
    return {one.pop("key"): one for one in answer["keys"]}


def test_labels_of_keys_are_there_before_their_first_request(front_end):
    text = settle(front_end)
    for label in ("ann", "key 3", 'b"o\\b é'):
        assert value(text, "mlx_cluster_key_requests_total", key=label, outcome="answered") >= 0


def test_what_each_key_used_is_the_sum_of_its_usages(front_end):
    before = by_key(front_end)
    usages = [ask(front_end, key).json["usage"] for key in ("sesame", "twosame", "threesame")]
    assert ask(front_end, "threesame", n=0).status == 400
    assert ask(front_end, "wrong").status == 401
    text, after = settle(front_end), by_key(front_end)
    gained = {
        key: {name: count - before[key][name] for name, count in one.items()}
        for key, one in after.items()
    }
    assert gained["ann"]["answered"] == 2  # two keys of one label are one
    assert gained["ann"]["generated_tokens"] == sum(u["completion_tokens"] for u in usages[:2])
    assert gained["key 3"]["prompt_tokens"] == usages[2]["prompt_tokens"]
    assert (gained["key 3"]["answered"], gained["key 3"]["refused"]) == (1, 1)
    assert not any(gained['b"o\\b é'].values())
    for name in TOKENS:  # every request had a key, so the parts make the whole
        assert value(text, f"mlx_cluster_key_{name}_total") == value(
            text, f"mlx_cluster_{name}_total"
        )
    assert lint(text) == []


def test_no_key_is_in_what_is_told(front_end):
    ask(front_end, "twosame")
    text = settle(front_end)
    assert not [key for key in KEYS if key in text]


def test_a_key_that_is_new_in_the_file_is_counted(front_end):
    before = front_end.file.read_text()
    front_end.file.write_text(before + "fivesame eve\n")
    assert ask(front_end, "fivesame").status == 200
    front_end.file.write_text(before)
    assert value(settle(front_end), "mlx_cluster_key_requests_total", key="eve") == 1


def test_an_open_server_has_no_keys_to_tell_of(demo_model_dir):
    one = FrontEnd(demo_model_dir)
    try:
        assert one.ask("POST", ROUTE, {"prompt": "hi", "max_tokens": 2}).status == 200
        assert one.ask("GET", "/cluster").json["keys"] == []
        families = parse(one.ask("GET", "/metrics").body.decode())
        assert not families["mlx_cluster_key_requests"].samples
    finally:
        one.end()


def closed(record: Recorder, label: str) -> None:
    record.closed(Account("r", "POST", ROUTE, key=label, code=400))


def test_labels_without_end_do_not_make_series_without_end():
    """A file of keys may be written anew every minute."""
    record = Recorder()
    for n in range(3 * LABELS_KEPT):
        closed(record, f"person {n}")
    usages = record.usages()
    assert len(usages) == LABELS_KEPT + 1
    assert sum(sum(one.outcomes.values()) for one in usages.values()) == 3 * LABELS_KEPT
    assert OTHERS in usages


@pytest.mark.parametrize("label", ["x" * 10_000, "a\x1b[2Jb", "e\u202evil", "\x85"])
def test_a_label_is_shown_printable_and_not_without_end(label):
    name = shown(label)
    assert name.isprintable()
    assert len(name) <= LABEL_CHARS


def test_a_running_request_counts_for_its_key_at_once():
    class Half:
        def usage(self) -> Usage:
            return Usage(prompt=7, completion=2, cached=5, reasoning=0)

    record, account = Recorder(), Account("r", "POST", ROUTE, key="ann")
    account.generation = Half()
    record.admitted(account)
    for _ in range(2):  # looking does not count it twice
        tokens = record.usages()["ann"].tokens
        assert (tokens.prompt, tokens.cached, tokens.generated) == (7, 5, 2)


def test_histograms_of_finished_requests_are_those_of_vllm(front_end):
    def sums(text):
        names = ("prompt_tokens", "generation_tokens", "params_max_tokens", "params_n",
                 "max_num_generation_tokens")  # fmt: skip
        return {
            (name, part): value(text, f"mlx_cluster_request_{name}_{part}")
            for name in names
            for part in ("sum", "count")
        }

    before = settle(front_end)
    usage = ask(front_end, "sesame", max_tokens=4, n=2).json["usage"]
    after = settle(front_end)
    old, new = sums(before), sums(after)
    gained = {name: new[name] - old[name] for name in new}
    assert gained == {
        ("prompt_tokens", "sum"): 2 * usage["prompt_tokens"], ("prompt_tokens", "count"): 2,
        ("generation_tokens", "sum"): usage["completion_tokens"],
        ("generation_tokens", "count"): 2,
        ("params_max_tokens", "sum"): 8, ("params_max_tokens", "count"): 2,
        ("params_n", "sum"): 2, ("params_n", "count"): 1,
        ("max_num_generation_tokens", "sum"): 4, ("max_num_generation_tokens", "count"): 1,
    }  # fmt: skip
    times = [
        value(after, f"mlx_cluster_request_{part}_time_seconds_sum")
        - value(before, f"mlx_cluster_request_{part}_time_seconds_sum")
        for part in ("prefill", "decode", "inference")
    ]
    assert times[0] + times[1] == pytest.approx(times[2])


def test_cut_requests_are_in_no_histogram_of_finished_ones(front_end):
    before = settle(front_end)
    script = front_end.engine.script
    front_end.engine.script = lambda ticket: iter([Token(5, None)])
    with RawClient(front_end.server.port) as client:
        client.send(request("POST", ROUTE, {"prompt": "x"}, "x-api-key: sesame"))
        while not front_end.line.held():
            time.sleep(0.005)
    after = settle(front_end)
    front_end.engine.script = script
    name = "mlx_cluster_request_prompt_tokens_count"
    assert value(after, name) == value(before, name)


# What vLLM's own dashboard asks for (examples/online_serving/prometheus_grafana), without "vllm:".
VLLM_DASHBOARD = (
    "e2e_request_latency_seconds_bucket", "e2e_request_latency_seconds_sum",
    "e2e_request_latency_seconds_count", "prompt_tokens_total", "generation_tokens_total",
    "inter_token_latency_seconds_bucket", "inter_token_latency_seconds_sum",
    "inter_token_latency_seconds_count", "num_requests_running", "num_requests_waiting",
    "time_to_first_token_seconds_bucket", "time_to_first_token_seconds_sum",
    "time_to_first_token_seconds_count", "kv_cache_usage_perc", "request_prompt_tokens_bucket",
    "request_generation_tokens_bucket", "request_success_total", "request_queue_time_seconds_sum",
    "request_prefill_time_seconds_sum", "request_decode_time_seconds_sum",
    "request_max_num_generation_tokens_sum",
)  # fmt: skip


def test_vllm_s_own_dashboard_fills(front_end):
    samples = {
        sample.name: sample
        for family in parse(settle(front_end)).values()
        for sample in family.samples
    }
    for name in VLLM_DASHBOARD:
        assert "model_name" in samples[f"mlx_cluster_{name}"].labels
