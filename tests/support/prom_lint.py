"""What promtool's lint looks at, over a text that the library itself has parsed."""

import re
from collections.abc import Iterable

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

NAME = re.compile(r"[a-z][a-z0-9_]*")
# Units that are not base units, alone between underscores.
WRONG_UNITS = {
    "ms", "milliseconds", "us", "microseconds", "minutes", "hours", "days", "kb", "mb", "gb",
    "kilobytes", "megabytes", "gigabytes", "bits", "percent", "celsius", "s", "sec", "b",
}  # fmt: skip
TYPES = {"counter", "gauge", "histogram", "summary", "untyped"}
OWN_LABELS = {"le", "quantile", "job", "instance"}


def parse(text: str) -> dict[str, Metric]:
    """Families by name. Raises ValueError for text that Prometheus could not read."""
    return {family.name: family for family in text_string_to_metric_families(text)}


def lint(text: str) -> list[str]:
    """Every complaint, one a line."""
    complaints = [*_repeated(text)]
    for name, family in parse(text).items():
        complaints += [f"{name}: {what}" for what in _of_family(name, family)]
    return complaints


def value(text: str, name: str, **labels: str) -> float:
    """The sum of the samples of that name with those labels."""
    found = [
        sample.value
        for family in parse(text).values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    assert found, f"no sample {name} {labels}"
    return sum(found)


def _repeated(text: str) -> Iterable[str]:
    lines = [line.rsplit(" ", 1)[0] for line in text.splitlines() if not line.startswith("#")]
    yield from (f"{one} is there twice" for one in {x for x in lines if lines.count(x) > 1})
    heads = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    yield from (f"{one} has two types" for one in {x for x in heads if heads.count(x) > 1})


def _of_family(name: str, family: Metric) -> Iterable[str]:
    parts = name.split("_")
    if not NAME.fullmatch(name):
        yield "not in lower snake case"
    if not family.documentation.strip():
        yield "no HELP"
    if family.type not in TYPES - {"untyped"}:
        yield f"type {family.type}"
    if WRONG_UNITS & set(parts):
        yield "not a base unit"
    if TYPES & set(parts):
        yield "its type in its name"
    if family.type == "counter" and any(not s.name.endswith("_total") for s in family.samples):
        yield "a counter without _total"
    if family.type != "counter" and name.endswith("_total"):
        yield "_total, but not a counter"
    if family.type == "gauge" and name.endswith(("_count", "_sum", "_bucket")):
        yield "a suffix that belongs to histograms"
    if family.type == "histogram":
        for model in {s.labels.get("model_name") for s in family.samples}:
            mine = [s for s in family.samples if s.labels.get("model_name") == model]
            yield from _of_histogram(family.name, mine)
    for sample in family.samples:
        if not all(NAME.fullmatch(label) for label in sample.labels):
            yield f"a label of {sample.labels}"
        if family.type != "histogram" and OWN_LABELS & set(sample.labels):
            yield f"a label of Prometheus' own: {sample.labels}"
        if family.type == "counter" and sample.value < 0:
            yield "a negative count"


def _of_histogram(name: str, samples: list[Sample]) -> Iterable[str]:
    buckets = [s for s in samples if s.name.endswith("_bucket")]
    bounds = [float(s.labels["le"]) for s in buckets]
    counts = [s.value for s in buckets]
    if bounds != sorted(set(bounds)) or bounds[-1] != float("inf"):
        yield "bounds that do not rise to +Inf"
    if counts != sorted(counts):
        yield "buckets that fall"
    by_name = {s.name.removeprefix(name): s.value for s in samples}
    if by_name.get("_count") != counts[-1] or "_sum" not in by_name:
        yield "a count that is not that of the last bucket"
