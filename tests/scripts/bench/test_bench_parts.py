"""The parts of the benchmarks that need no server: statistics, workload, taking answers apart."""

import itertools
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.lib.bench.answers import Answer, read_answer
from scripts.lib.bench.gauge import Asker, Gauge
from scripts.lib.bench.load import Load, summarise
from scripts.lib.bench.stats import median, percentile, slope, spread
from scripts.lib.bench.workload import WORDS, Lengths, poisson_arrivals, sampling, words

# Statistics.


def test_percentiles_are_linear_between_the_nearest_values():
    assert percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.5
    assert percentile([1.0, 2.0, 3.0], 0) == 1.0 and percentile([1.0, 2.0, 3.0], 100) == 3.0
    assert percentile(list(range(101)), 95) == 95
    assert percentile([7.0], 99) == 7.0


@pytest.mark.parametrize(("values", "share"), [([], 50), ([1.0], 101), ([1.0], -1)])
def test_percentiles_refuse_what_has_none(values, share):
    with pytest.raises(ValueError):
        percentile(values, share)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1), st.floats(0, 100))
def test_a_percentile_lies_within_the_values_and_grows_with_the_share(values, share):
    found = percentile(values, share)
    slack = 1e-6 * max(1.0, *map(abs, values))
    assert min(values) - slack <= found <= max(values) + slack
    assert percentile(values, 0) - slack <= found <= percentile(values, 100) + slack


def test_spread_and_median_of_nothing_are_none():
    assert spread([]) == {"count": 0, "mean": None, "p50": None, "p95": None, "p99": None,
                          "most": None}  # fmt: skip
    assert median([]) is None and median([None, 3.0, 1.0]) == 2.0


def test_slope_is_that_of_the_line():
    assert slope([(0, 1), (1, 3), (2, 5)]) == pytest.approx(2)
    assert slope([(1, 1)]) == slope([(1, 1), (1, 9)]) == 0


# Workload.


@pytest.mark.parametrize("text", ["128", "16-512", "1"])
def test_lengths_are_read_and_drawn_within_their_ends(text):
    lengths = Lengths.parse(text)
    chance = random.Random(1)
    drawn = [lengths.draw(chance) for _ in range(500)]
    assert str(lengths) == text
    assert min(drawn) >= lengths.least and max(drawn) <= lengths.most


@pytest.mark.parametrize("text", ["", "0", "5-3", "-5", "a", "1-", "1_0", "1.5"])
def test_lengths_that_make_no_sense_are_refused_by_value(text):
    with pytest.raises(ValueError, match="must be a number of tokens"):
        Lengths.parse(text)


def test_arrivals_are_poisson_and_the_same_for_the_same_seed():
    times = list(itertools.islice(poisson_arrivals(50, 7), 4000))
    assert times == list(itertools.islice(poisson_arrivals(50, 7), 4000))
    assert times != list(itertools.islice(poisson_arrivals(50, 8), 4000))
    gaps = [after - before for before, after in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(1 / 50, rel=0.1)
    # Of an exponential distribution the deviation is as large as the mean.
    assert (sum((g - mean) ** 2 for g in gaps) / len(gaps)) ** 0.5 == pytest.approx(mean, rel=0.1)


def test_prompts_differ_from_their_first_words_on_and_repeat_for_their_seed():
    assert words(5, "a") == words(5, "a")
    heads = {words(100, f"run {number}")[:24] for number in range(300)}
    assert len(heads) == 300
    assert len(words(7, 1).split()) == 7
    assert {len(word) for word in WORDS} == {4}


def test_mixes_differ_per_client_and_seeds_per_request():
    assert sampling("greedy", 3, 9) == {"temperature": 0}
    mixed = [sampling("mixed", client, 0) for client in range(32)]
    assert len({one["temperature"] for one in mixed}) == len({one["top_p"] for one in mixed}) == 32
    assert all(0.5 <= m["temperature"] <= 1.1 and 0.75 <= m["top_p"] <= 0.95 for m in mixed)
    assert all("seed" not in one for one in mixed)
    assert sampling("seeds", 1, 0)["seed"] != sampling("seeds", 1, 1)["seed"]
    with pytest.raises(ValueError, match="greedy, mixed, seeds"):
        sampling("wild", 0, 0)


def test_gauge_finds_the_number_of_words():
    gauge = Gauge(fixed=12.0, per_word=5.0, counted=True)
    assert gauge.words_for(112) == 20
    assert gauge.words_for(1) == 1


def test_asker_makes_what_each_api_wants():
    chat = Asker("chat", "m", ignore_eos=True)
    assert chat.fields("hi", 5, {"temperature": 0}) == {
        "max_tokens": 5, "temperature": 0, "messages": [{"role": "user", "content": "hi"}],
        "model": "m", "ignore_eos": True, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    plain = Asker("completions", None, ignore_eos=False)
    assert plain.path == "/v1/completions"
    assert plain.fields("hi", 5, {}, stream=False) == {"max_tokens": 5, "prompt": "hi"}


# Answers.


def event(**fields) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def said(text: str, finish: str | None = None) -> bytes:
    return event(choices=[{"delta": {"content": text}, "finish_reason": finish}])


USAGE = event(
    choices=[],
    usage={
        "prompt_tokens": 9,
        "completion_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 4},
    },
)
DONE = b"data: [DONE]\n\n"
HEAD_10 = b"HTTP/1.0 200 OK\r\nContent-type: text/event-stream\r\n\r\n"
HEAD_11 = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n"
)
EVENTS = [b": ping\n\n", said(""), said("a"), said("b"), said("c"), said("", "length"), USAGE, DONE]


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def read(pieces: list[tuple[float, bytes]], failure: str = "") -> Answer:
    return read_answer(10.0, 99.0, pieces, failure)


def check_whole(answer: Answer) -> None:
    assert (answer.failure, answer.status, answer.text) == ("", 200, "abc")
    assert (answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens) == (9, 3, 4)
    assert answer.finish == "length"


@pytest.mark.parametrize("chunked", [False, True])
def test_only_events_with_text_count_and_each_has_its_own_time(chunked):
    pieces = [(10.5, HEAD_11 if chunked else HEAD_10)]
    pieces += [(11.0 + n, chunk(e) if chunked else e) for n, e in enumerate(EVENTS)]
    pieces += [(30.0, b"0\r\n\r\n")] if chunked else []
    answer = read(pieces)
    check_whole(answer)
    assert answer.texts == [13.0, 14.0, 15.0]
    assert answer.ttft == 3.0 and answer.gaps == [1.0, 1.0]
    assert answer.ended == pieces[-1][0]


@given(st.data())
def test_an_answer_may_come_in_any_pieces(data):
    """Bytes arrive as the network likes; an event has the time of its last byte."""
    chunked = data.draw(st.booleans())
    body = b"".join(EVENTS)
    if chunked:
        cuts = sorted(data.draw(st.sets(st.integers(1, len(body) - 1), max_size=9)))
        parts = [body[a:b] for a, b in itertools.pairwise([0, *cuts, len(body)])]
        raw = HEAD_11 + b"".join(map(chunk, parts)) + b"0\r\n\r\n"
    else:
        raw = HEAD_10 + body
    cuts = sorted(data.draw(st.sets(st.integers(1, len(raw) - 1), max_size=12)))
    ends = [0, *cuts, len(raw)]
    pieces = [(11.0 + n, raw[a:b]) for n, (a, b) in enumerate(itertools.pairwise(ends))]
    answer = read(pieces)
    check_whole(answer)
    if not chunked:
        for time, text in zip(answer.texts, (b'"a"', b'"b"', b'"c"'), strict=True):
            end = raw.index(b"\n\n", raw.index(text)) + 2
            assert time == next(11.0 + n for n, stop in enumerate(ends[1:]) if stop >= end)


@pytest.mark.parametrize(
    ("raw", "failure"),
    [
        (HEAD_10 + said("a"), "cut"),
        (HEAD_10 + said("a", "stop"), "cut"),  # without [DONE]
        (HEAD_10 + said("a") + DONE, "cut"),  # without a reason to end
        (HEAD_10 + event(error={"message": "x"}), "error in stream"),
        (HEAD_10 + b"data: {\n\n" + said("a", "stop") + DONE, "garbled"),
        (b"HTTP/1.1 429 Too Many\r\nRetry-After: 3\r\n\r\n{}", "busy"),
        (b"HTTP/1.1 503 x\r\n\r\n{}", "status 503"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\nno", "garbled"),
        (b"SSH-2.0-x\r\n", "garbled"),
    ],
)
def test_what_is_no_whole_answer_is_a_failure_with_a_name(raw, failure):
    answer = read([(11.0, raw)])
    assert answer.failure == failure
    assert answer.retry_after == (3.0 if failure == "busy" else None)


def test_a_failure_of_the_connection_stays_what_it_was():
    assert read([(11.0, HEAD_10 + said("a"))], "timeout").failure == "timeout"
    assert read([], "refused").failure == "refused"


def test_tokens_are_the_servers_count_and_a_guess_only_without_one():
    counted = Answer(0.0, 2.0, "", texts=[1.0, 1.5], completion_tokens=7, prompt_tokens=5)
    guessed = Answer(0.0, 4.0, "", texts=[1.0, 2.0, 4.0])
    lost = Answer(0.0, 1.0, "reset")
    only = summarise(Load([counted], 2.0, 0.1, [0.0]))
    assert (only["tokens_per_s"], only["tokens_counted_by"]) == (3.5, "server")
    assert only["tokens_per_event"] == 3.5
    both = summarise(Load([counted, guessed, lost], 4.0, 0.1, [0.0]))
    assert (both["tokens_per_s"], both["tokens_counted_by"]) == (2.5, "events")
    assert (both["requests"], both["answered"], both["failures"]) == (3, 2, {"reset": 1})
    assert both["itl_s"]["count"] == 3 and both["itl_s"]["most"] == 2.0
    assert both["ttft_s"]["p50"] == 1.0


def test_drafts_are_added_up_where_the_server_tells_of_them():
    def answer(tokens: int, right: int | None, wrong: int | None) -> Answer:
        return Answer(0, 1, "", completion_tokens=tokens, drafts_right=right, drafts_wrong=wrong)

    told = [answer(40, 20, 4), answer(10, 5, 1), answer(99, None, None)]
    expected = {"drafted": 30, "drafts_right": 25, "tokens_per_step": 2.0}
    assert Load(told, 1, 0, []).drafts == expected
    silent = Load([answer(9, None, None)], 1, 0, [])
    assert set(silent.drafts.values()) == {None}
    assert summarise(silent)["tokens_per_step"] is None
