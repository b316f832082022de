"""Runs calls in a closed or an open loop, and adds up what came back.

Closed: each of N clients sends its next request when its last one has ended. Open: requests are
sent at their times, however many still run; this shows what a queue does to people who don't wait
for each other. Called on one thread; the swarm does the waiting.
"""

import collections
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from scripts.lib.bench.answers import Answer
from scripts.lib.bench.stats import spread
from scripts.lib.bench.swarm import Call, Swarm

BUSY_PAUSE_MOST_S = 1.0  # after a 429, whatever longer wait the server asked for
FAILED_PAUSE_S = 0.2  # after a refused or reset connection: a loop without would only spin

Make = Callable[[int, int], Call]  # (client, number of the request among all) -> call


@dataclass
class Load:
    """What a run gave. seconds: from the first request sent to the last byte; client_cpu: CPU
    time of this process in that time, in cores; lags: open loop, seconds sent too late."""

    answers: list[Answer]
    seconds: float
    client_cpu: float
    lags: list[float]

    @property
    def good(self) -> list[Answer]:
        """Whole answers."""
        return [answer for answer in self.answers if not answer.failure]

    @property
    def tokens(self) -> int:
        """Generated tokens of all answers, whole or not, by the server's count where it has one."""
        return sum(count_tokens(answer) for answer in self.answers)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def drafts(self) -> dict[str, float | None]:
        """What the server tells of drafts: how many there were, how many of them were right, and
        the tokens that a step brought an answer. None where it tells nothing."""
        told = [answer for answer in self.good if answer.drafts_right is not None]
        right = sum(answer.drafts_right for answer in told)
        drafted = right + sum(answer.drafts_wrong or 0 for answer in told)
        tokens = sum(count_tokens(answer) for answer in told)
        if not told:
            return dict.fromkeys(("drafted", "drafts_right", "tokens_per_step"))
        # A draft that is right is a token without a step of its own.
        pace = tokens / (tokens - right) if tokens > right else 1.0
        return {"drafted": drafted, "drafts_right": right, "tokens_per_step": pace}

    @property
    def failures(self) -> dict[str, int]:
        """How many requests failed, by kind."""
        return dict(collections.Counter(a.failure for a in self.answers if a.failure))

    @property
    def gaps(self) -> list[float]:
        """All gaps between two events of an answer."""
        return list(itertools.chain.from_iterable(answer.gaps for answer in self.good))


def count_tokens(answer: Answer) -> int:
    """The server's count; else one for each event with text, which is a guess."""
    return len(answer.texts) if answer.completion_tokens is None else answer.completion_tokens


def run_closed(
    swarm: Swarm,
    clients: int,
    make: Make,
    *,
    requests: int | None = None,
    seconds: float | None = None,
    ramp_s: float = 0.0,
) -> Load:
    """N clients until so many requests were sent, or for so long; then waits for the last ones.

    ramp_s spreads the clients' first requests.
    """
    numbers = itertools.count() if requests is None else iter(range(requests))
    calls: list[Call] = []
    begin = time.perf_counter()

    def send(client: int, at: float) -> None:
        if seconds is not None and at - begin >= seconds:
            return
        number = next(numbers, None)
        if number is not None:
            call = make(client, number)
            calls.append(call)
            swarm.start(call, at, lambda done: send(client, time.perf_counter() + _pause(done)))

    for client in range(clients):
        send(client, begin + ramp_s * client / clients)
    return _watch(swarm, calls)


def run_open(
    swarm: Swarm,
    arrivals: Iterator[float],
    make: Make,
    *,
    requests: int | None = None,
    seconds: float | None = None,
) -> Load:
    """Sends at the arrivals (seconds from now), so many or for so long; waits for the last ones."""
    calls: list[Call] = []
    begin = time.perf_counter()

    def send() -> None:
        number = len(calls)
        after = next(arrivals)
        if (requests is not None and number >= requests) or (
            seconds is not None and after >= seconds
        ):
            return
        calls.append(make(number, number))
        swarm.start(calls[-1], begin + after)
        swarm.call_at(begin + after, send)

    send()
    return _watch(swarm, calls)


def _pause(call: Call) -> float:
    if call.failure:
        return FAILED_PAUSE_S
    if call.pieces and call.pieces[0][1][9:12] == b"429":
        return min(call.read().retry_after or BUSY_PAUSE_MOST_S, BUSY_PAUSE_MOST_S)
    return 0.0


def _watch(swarm: Swarm, calls: list[Call]) -> Load:
    cpu = time.process_time()
    began = time.perf_counter()
    try:
        swarm.run()
    except KeyboardInterrupt:
        swarm.abandon(calls)  # what was measured so far is worth telling
    wall = max(time.perf_counter() - began, 1e-9)
    cpu = time.process_time() - cpu
    sent = [call for call in calls if call.sent]
    answers = [call.read() for call in sent]
    first = min((call.sent for call in sent), default=0.0)
    last = max((answer.ended for answer in answers), default=first)
    lags = [call.sent - call.due for call in sent]
    return Load(answers, last - first, cpu / wall, lags)


def summarise(load: Load) -> dict:
    """The numbers of a run by name; times in seconds. Defined in docs/performance.md."""
    good = load.good
    events = sum(len(answer.texts) for answer in good)
    counted = sum(answer.completion_tokens is not None for answer in good)
    prompt = [answer.prompt_tokens for answer in good if answer.prompt_tokens is not None]
    cached = [answer.cached_tokens for answer in good if answer.cached_tokens is not None]
    tokens = sum(count_tokens(answer) for answer in good)
    return {
        "requests": len(load.answers),
        "answered": len(good),
        "failures": load.failures,
        "seconds": load.seconds,
        "requests_per_s": len(good) / load.seconds if load.seconds else 0.0,
        "tokens_per_s": load.tokens_per_s,
        "completion_tokens": load.tokens,
        "prompt_tokens": sum(prompt),
        "prompt_tokens_mean": sum(prompt) / len(prompt) if prompt else None,
        "cached_tokens": sum(cached),
        "tokens_counted_by": "server" if counted == len(good) else "events",
        "tokens_per_event": tokens / events if events else None,
        **load.drafts,
        "ended_early": sum(answer.finish == "stop" for answer in good),
        "ttft_s": spread([a.ttft for a in good if a.ttft is not None]),
        "itl_s": spread(load.gaps),
        "request_s": spread([answer.seconds for answer in good]),
        "lag_s": spread(load.lags),
        "client_cpu": load.client_cpu,
    }
