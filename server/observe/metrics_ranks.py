"""The metrics of the ranks and of the server as a whole: memory, heartbeat, versions, state.

Called by metrics.py. Pure reading.
"""

import time
from collections.abc import Iterator

from prometheus_client.metrics_core import Metric

from server.observe.metric_words import Words
from server.observe.phases import PHASES
from server.observe.versions import versions
from server.observe.views import View
from server.protocol.settings import Settings

# Metric, field of Ranks.describe, help.
RANK_SIZES = (
    ("rank_memory_used_bytes", "memory_used_bytes", "MLX's arrays on the rank."),
    ("rank_memory_peak_bytes", "memory_peak_bytes", "The most that MLX's arrays took so far."),
    ("rank_memory_total_bytes", "memory_total_bytes", "Memory of the rank's computer."),
    ("rank_gpu_limit_bytes", "gpu_limit_bytes", "What Metal lets a process wire; none on a CPU."),
    ("rank_resident_memory_bytes", "rss_bytes", "Physical memory of the rank's process."),
    ("rank_loaded_bytes", "loaded_bytes", "Weights of the rank that are in memory."),
    ("rank_weights_bytes", "total_bytes", "All weights of the rank."),
)


def describe_ranks(words: Words, settings: Settings, view: View) -> Iterator[Metric]:
    """Each rank's memory and heartbeat, and what kind of server this is."""
    ranks = view.ranks.describe(view.loading)
    names = [(str(rank["rank"]), rank["host"]) for rank in ranks]
    for metric, field, text in RANK_SIZES:
        sizes = [(name, rank[field]) for name, rank in zip(names, ranks, strict=True)]
        yield words.gauges(metric, text, ("rank", "host"), sizes)
    age = view.ranks.age()
    heard = None if age is None else time.time() - age
    yield words.gauges(
        "rank_last_heartbeat_timestamp_seconds",
        "When rank 0 last ended a collective with the rank, in Unix time. A collective needs all "
        "ranks, so all show the same; when it stands still, one of them is missing.",
        ("rank", "host"),
        [(name, heard) for name in names],
    )
    yield words.gauge(
        "num_requests_running_limit", "Choices that run together at most: MAX_BATCH.",
        settings.max_batch,
    )  # fmt: skip
    yield words.gauge(
        "num_requests_waiting_limit", "Choices that wait at most: QUEUE_MAX.", settings.queue_max
    )
    yield words.gauges(
        "server_state",
        "1 for the state that the server is in.",
        ("state",),
        [((phase,), int(phase == view.state.phase)) for phase in PHASES],
    )
    yield words.gauge("start_time_seconds", "When rank 0 started, in Unix time.", view.start.at)
    yield words.counter(
        "restarts", "Restarts by the supervisor, since it was started.", view.start.restarts
    )
    built = versions()
    yield words.gauges(
        "build_info", "Versions; code is a hash of this server's sources.",
        tuple(built), [(tuple(built.values()), 1)],
    )  # fmt: skip
    facts = {
        "world_size": str(len(ranks)),
        "parallel": view.capacity.split or settings.parallel,
        "backend": view.group.backend,
        "context": str(view.capacity.context),
        "kv_precision": view.capacity.kv_precision,
    }
    yield words.gauges(
        "model_info", "How the model is served; context is in tokens.",
        tuple(facts), [(tuple(facts.values()), 1)],
    )  # fmt: skip
