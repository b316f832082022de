"""How the metrics are written: families of prometheus-client, each with our prefix and the model.

Used by metrics.py and its parts. Keeps nothing.
"""

from collections.abc import Iterable

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from server.observe.histogram import Snapshot

PREFIX = "mlx_cluster_"
Samples = Iterable[tuple[tuple[str, ...], float | None]]  # labels' values, value


class Words:
    """Writes families of metrics, each sample with the model's name."""

    def __init__(self, model_name: str) -> None:
        self._model_name = model_name

    def gauge(self, name: str, text: str, value: float | None) -> Metric:
        """One value; None is no sample: not known, or not here."""
        return self.gauges(name, text, (), [((), value)])

    def counter(self, name: str, text: str, value: float) -> Metric:
        """One count. name without _total."""
        return self.counters(name, text, (), [((), value)])

    def gauges(
        self,
        name: str,
        text: str,
        labels: tuple[str, ...],
        samples: Samples,
    ) -> Metric:
        """Values by their labels' values."""
        family = GaugeMetricFamily(PREFIX + name, text, labels=("model_name", *labels))
        return self._fill(family, samples)

    def counters(
        self,
        name: str,
        text: str,
        labels: tuple[str, ...],
        samples: Samples,
    ) -> Metric:
        """Counts by their labels' values. name without _total."""
        family = CounterMetricFamily(PREFIX + name, text, labels=("model_name", *labels))
        return self._fill(family, samples)

    def histogram(self, name: str, text: str, snapshot: Snapshot) -> Metric:
        """Counts by upper bound, and the sum."""
        buckets, total = snapshot
        family = HistogramMetricFamily(PREFIX + name, text, labels=("model_name",))
        family.add_metric((self._model_name,), buckets, total)
        return family

    def _fill(self, family, samples: Samples) -> Metric:
        for values, value in samples:
            if value is not None:
                family.add_metric((self._model_name, *values), value)
        return family
