"""GET /metrics: everything that is counted, in Prometheus' words, put together when asked for.

Called on rank 0's HTTP threads. Nothing is kept here: prometheus-client only writes the text, from
what the Recorder and the views hold, so that being measured costs the engine next to nothing.
Imports no mlx.

Names that vLLM has, with the same meaning, are vLLM's behind our prefix, so that its dashboards
and alerts can be adapted by replacing "vllm:". The colon itself is reserved for recording rules.
"""

from collections.abc import Iterator

from prometheus_client.core import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric

from server.observe.metric_words import Words
from server.observe.metrics_ranks import describe_ranks
from server.observe.metrics_requests import describe_requests
from server.observe.metrics_work import describe_work
from server.observe.status import Status
from server.protocol.settings import Settings


class Metrics:
    """All metrics of one server. A collector, as prometheus-client calls it."""

    def __init__(self, settings: Settings, status: Status) -> None:
        self._settings = settings
        self._status = status
        self._registry = CollectorRegistry(auto_describe=False)  # ours alone: not the process's
        self._registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Every family, as things stand."""
        status, view = self._status, self._status.look()
        words = Words(view.start.model_id)
        yield from describe_requests(words, status.record, view.load, status.log_dropped())
        yield from describe_work(words, status.record, view)
        yield from describe_ranks(words, self._settings, view)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The text, and its content type: the best that the Accept header allows."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type
