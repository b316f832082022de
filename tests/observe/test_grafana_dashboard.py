"""docs/grafana-dashboard.json against /metrics of a server that runs."""

import json
import re
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.cluster import ROOT
from tests.support.tiny_models import tiny_llama

DASHBOARD = json.loads((ROOT / "docs" / "grafana-dashboard.json").read_text("utf-8"))
METRIC = r"\bmlx_cluster_\w+"
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",), "gauge": ("",)}


def expressions() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel.get("targets", []))
    yield from (one["expr"] for one in DASHBOARD["annotations"]["list"])
    yield from (
        one["query"]["query"]
        for one in DASHBOARD["templating"]["list"]
        if isinstance(one["query"], dict)
    )


@pytest.fixture
def families(cluster, tmp_path):
    """What /metrics of one rank tells, after a request."""
    server = cluster(1, tiny_llama(tmp_path / "tiny"))
    server.chat("hello", max_tokens=5)
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=240) as answer:
        return list(text_string_to_metric_families(answer.read().decode()))


def test_every_metric_and_label_is_one_that_a_server_has(families):
    known: dict[str, set[str]] = {}
    for family in families:
        for suffix in SUFFIXES.get(family.type, ()):
            known[family.name + suffix] = set()
        for sample in family.samples:
            known.setdefault(sample.name, set()).update(sample.labels)
    asked = 0
    for expression in expressions():
        names = re.findall(METRIC, expression)
        assert names, expression
        assert set(names) <= known.keys(), expression
        asked += len(names)
        labels = set().union(*(known[name] for name in names))
        # Matchers within braces, and what sums are taken by.
        used = re.findall(r"[{,](\w+)(?:=~|!=|=|!~)", expression)
        for listed in re.findall(r"\bby \(([^)]*)\)", expression):
            used += listed.split(", ")
        assert set(used) <= labels, expression
    assert asked > 40


def test_counters_are_shown_as_rates_and_histograms_as_quantiles_or_means():
    for expression in expressions():
        for name in re.findall(METRIC, expression):
            before = expression.partition(name)[0]
            if name.endswith(("_bucket", "_sum", "_count")):
                assert before.endswith("rate("), expression
            if name.endswith("_bucket"):
                assert before.startswith("histogram_quantile(0."), expression
            if name.endswith("_total"):
                assert before.endswith(("rate(", "increase(", "max(")), expression


def test_panels_have_their_own_place_and_number():
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(numbers) == len(set(numbers))
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        own = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not own & taken and at["x"] + at["w"] <= 24, panel["title"]
        taken |= own
        if panel["type"] != "row":
            assert panel["description"] and panel["targets"]
            assert panel["datasource"]["uid"] == "${datasource}", "whatever Prometheus one has"
