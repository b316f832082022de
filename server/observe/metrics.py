"""GET /metrics: everything that is counted, in Prometheus' words, put together when asked for.

Called on rank 0's HTTP threads. Nothing is kept here: prometheus-client only writes the text, from
what the Recorder and the views hold, so that being measured costs the engine next to nothing.
Imports no mlx.

Names that vLLM has, with the same meaning, are vLLM's behind our prefix, so that its dashboards
and alerts can be adapted by replacing "vllm:". The colon itself is reserved for recording rules.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client.core import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric

from server.observe.metric_words import Words
from server.observe.metrics_models import describe_models
from server.observe.metrics_ranks import describe_ranks
from server.observe.metrics_requests import describe_answers, describe_requests
from server.observe.metrics_work import describe_links, describe_work
from server.observe.model_view import ModelView
from server.observe.status import Status
from server.protocol.settings import Settings


class Metrics:
    """All metrics of one server. A collector, as prometheus-client calls it. models: those that are
    served, the first of them first."""

    def __init__(
        self, settings: Settings, status: Status, models: Callable[[], Sequence[ModelView]]
    ) -> None:
        self._settings = settings
        self._status = status
        self._models = models
        self._registry = CollectorRegistry(auto_describe=False)  # ours alone: not the process's
        self._registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Every family, as things stand."""
        status, view = self._status, self._status.look()
        first, *others = self._models()
        words, record = Words(first.name), status.record
        seen = record.names()
        families = [
            describe_requests(words, record, status.log_dropped()),
            describe_links(words, record, view),
            describe_ranks(words, self._settings, view),
        ]
        # The histograms only of models that there was something to tell of.
        for model in [first, *(one for one in others if one.loads or one.name in seen)]:
            mine = Words(model.name)
            families.append(describe_answers(mine, record, model, bool(others)))
            own = record.model(model.name) if others else record
            families.append(describe_work(mine, own, model))
        families += [describe_models(Words(one.name), one) for one in (first, *others)]
        yield from _together(families)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The text, and its content type: the best that the Accept header allows."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


def _together(families: Iterable[Iterable[Metric]]) -> list[Metric]:
    """Each family once, with the samples of all models."""
    found: dict[str, Metric] = {}
    for family in (one for some in families for one in some):
        if family.name in found:
            found[family.name].samples += family.samples
        else:
            found[family.name] = family
    return list(found.values())
