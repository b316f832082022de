"""The metrics of requests: how many, how they ended, how long they took, their tokens.

Called by metrics.py. Pure reading.
"""

from collections import Counter
from collections.abc import Iterator

from prometheus_client.metrics_core import Metric

from server.observe.account import ANSWERED, CUT, FAILED, GENERATING, REFUSED
from server.observe.finished import HISTOGRAMS
from server.observe.metric_words import Words
from server.observe.model_view import ModelView
from server.observe.recorder import Recorder

TOO_MANY = 429
# Shown from the start, at 0: what appears only with its first event is invisible to rate().
EXPECTED = ((200, ANSWERED), (TOO_MANY, REFUSED), (500, FAILED), (0, CUT))
# Metric, field of Tokens, help.
KEY_TOKENS = (
    ("key_prompt_tokens", "prompt", "As prompt_tokens"),
    ("key_prompt_tokens_cached", "cached", "As prompt_tokens_cached"),
    ("key_generation_tokens", "generated", "As generation_tokens"),
)
FINISHES = ("stop", "length", "tool_calls")


def describe_requests(words: Words, record: Recorder, log_dropped: int) -> Iterator[Metric]:
    """Requests, whatever model they are for. log_dropped: lines of rank 0's log."""
    received, closed = record.requests()
    yield words.counters(
        "requests_received",
        "HTTP requests that reached a route (route: unreadable, if they never were requests).",
        ("method", "route"),
        _by_labels(received, [("POST", route) for route in GENERATING]),
    )
    open_now = Counter(received)
    for (method, route, _, _), count in closed.items():
        open_now[method, route] -= count
    yield words.gauges(
        "requests_in_progress",
        "HTTP requests that have been received and not ended, this one included.",
        ("method", "route"),
        _by_labels(open_now, []),
    )
    yield words.counter(
        "requests_rejected",
        "Requests refused with 429: every place in the queue, or for new grammars, was taken.",
        sum(count for (_, _, code, _), count in closed.items() if code == TOO_MANY),
    )
    yield words.counter(
        "connections_refused",
        "Connections answered with 503 unread, because too many were open.",
        record.connections_refused,
    )
    yield from _by_key(words, record)
    yield words.counter(
        "request_log_dropped",
        "Lines of the request log that were lost: the disk was full or too slow.",
        record.log_lines_dropped,
    )
    yield words.counter(
        "log_dropped",
        "Lines of rank 0's own log that were lost: the launcher did not read them.",
        log_dropped,
    )


def describe_answers(
    words: Words, record: Recorder, model: ModelView, of_several: bool
) -> Iterator[Metric]:
    """Requests for one model, waits and tokens."""
    load, mine = model.load, record.model(model.name) if of_several else record
    _, closed = record.requests(model.name)
    known = [("POST", route, code, outcome) for route in GENERATING for code, outcome in EXPECTED]
    yield words.counters(
        "requests",
        "HTTP requests that have ended; those that name no model are the first one's. outcome: "
        "answered, refused (not begun: wrong, no key, no room, not ready), failed (begun, not "
        "finished), cut (the client left first). code: the HTTP status that was sent; 0 if none "
        "was.",
        ("method", "route", "code", "outcome"),
        _by_labels(closed, known),
    )
    yield words.gauge(
        "num_requests_running", "Choices that the ranks work on. As vLLM's.", load.running
    )
    yield words.gauge(
        "num_requests_waiting",
        "Choices in the queue, paused ones included. As vLLM's.",
        load.waiting,
    )
    yield words.gauge(
        "num_requests_paused",
        "Choices that had begun and went back to the queue for want of KV memory.",
        load.paused,
    )
    yield words.counter(
        "num_preemptions",
        "How often a running choice was paused for want of KV memory. As vLLM's.",
        mine.pauses,
    )
    finishes, whole = record.answers(model.name)
    yield words.counters(
        "request_success",
        "Choices of answered requests, by their finish reason. As vLLM's.",
        ("finished_reason",),
        _by_labels(Counter({(reason,): n for reason, n in finishes.items()}),
                   [(reason,) for reason in FINISHES]),
    )  # fmt: skip
    yield words.histogram(
        "e2e_request_latency_seconds",
        "From the first byte of a request that the model answered to the last of its answer. As "
        "vLLM's.",
        whole,
    )
    yield words.histogram(
        "request_queue_time_seconds",
        "From a choice's acceptance until the ranks began on it. As vLLM's.",
        mine.queue_wait.snapshot(),
    )
    yield words.histogram(
        "time_to_first_token_seconds",
        "From a choice's acceptance (parsed and tokenized) to its first token on rank 0, the queue "
        "included. As vLLM's.",
        mine.time_to_first_token.snapshot(),
    )
    yield words.histogram(
        "inter_token_latency_seconds",
        "Between two tokens of a choice on rank 0, pauses included. As vLLM's.",
        mine.inter_token.snapshot(),
    )
    for name, snapshot in record.finished(model.name).items():
        yield words.histogram(name, HISTOGRAMS[name][1], snapshot)
    yield from _tokens(words, record, model.name)


def _tokens(words: Words, record: Recorder, model: str) -> Iterator[Metric]:
    tokens = record.tokens(model)
    counted = "the sum of the answers' usage, of those that were cut or failed, too. As vLLM's."
    yield words.counter(
        "prompt_tokens", f"Tokens of prompts that brought at least one token: {counted}",
        tokens.prompt,
    )  # fmt: skip
    yield words.counter(
        "prompt_tokens_cached",
        f"Those of them that came from the prefix cache: {counted}",
        tokens.cached,
    )
    yield words.counter("generation_tokens", f"Tokens of answers: {counted}", tokens.generated)


def _by_key(words: Words, record: Recorder) -> Iterator[Metric]:
    """Of requests for answers that came with one of the keys; the name of a key is its label."""
    usages = record.usages()
    yield words.counters(
        "key_requests",
        "Requests for answers that have ended, by the label of their API key.",
        ("key", "outcome"),
        [
            ((key, outcome), count)
            for key, usage in usages.items()
            for outcome, count in usage.outcomes.items()
        ],
    )
    for name, field, text in KEY_TOKENS:
        samples = [((key,), getattr(usage.tokens, field)) for key, usage in usages.items()]
        yield words.counters(name, f"{text}, by the label of the API key.", ("key",), samples)


def _by_labels(counts: Counter, known: list[tuple]) -> list[tuple[tuple[str, ...], int]]:
    """Samples by labels, in a steady order; the known ones also when they are 0."""
    names = sorted({*counts, *known}, key=str)
    return [(tuple(str(part) for part in name), counts[name]) for name in names]
