"""The metrics of the models themselves: which are loaded, how often they came and went, and why.

Called by metrics.py. Pure reading. There are as many samples as the list of models has, whatever
clients ask for.
"""

from collections.abc import Iterator

from prometheus_client.metrics_core import Metric

from server.observe.metric_words import Words
from server.observe.model_view import ModelView


def describe_models(words: Words, model: ModelView) -> Iterator[Metric]:
    """Of one of them."""
    yield words.gauge(
        "model_loaded", "Whether the model is in the ranks' memory.", int(model.loaded)
    )
    yield words.gauge(
        "model_weights_bytes",
        "Its weights, over all ranks, when it is loaded.",
        model.bytes or None,
    )
    yield words.counter("model_loads", "How often it was loaded, the start included.", model.loads)
    yield words.counter(
        "model_load_failures",
        "How often it could not be loaded: its files, memory, or models that stay.",
        model.failures,
    )
    yield words.counters(
        "model_unloads",
        "How often it was unloaded. reason: room (another was asked for), idle (IDLE_UNLOAD).",
        ("reason",),
        [((reason,), count) for reason, count in model.unloads],
    )
    yield words.gauge(
        "model_load_seconds",
        "What its last load took, beside what else the ranks did.",
        model.load_s or None,
    )
