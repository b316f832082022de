"""docs/prometheus-rules.yml: promtool finds it right, and each alert tells of its fault alone."""

import re
import shutil
import subprocess

import pytest
import yaml

from tests.house.test_docs import anchors
from tests.observe.test_grafana_dashboard import METRIC, SUFFIXES
from tests.support.front_end import FrontEnd
from tests.support.paths import ROOT
from tests.support.prom_lint import parse

RULES = ROOT / "docs" / "prometheus-rules.yml"
CASES = ROOT / "tests" / "observe" / "prometheus_rules_cases.yml"
ALERTS = yaml.safe_load(RULES.read_text("utf-8"))["groups"][0]["rules"]


def promtool(*arguments) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("no promtool here (Debian: apt-get install prometheus)")
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def cases_with_annotations(path) -> None:
    """The cases name labels; promtool compares annotations, too, so these are filled in."""
    cases = yaml.safe_load(CASES.read_text("utf-8"))
    said = {alert["alert"]: alert["annotations"] for alert in ALERTS}
    for case in cases["tests"]:
        for expected in case["alert_rule_test"]:
            for alert in expected.get("exp_alerts", []):
                model = alert["exp_labels"].get("model_name", "")
                words = dict(said[expected["alertname"]])
                words["summary"] = words["summary"].replace("{{ $labels.model_name }}", model)
                words["summary"] = words["summary"].replace(
                    "{{ $value | humanizeDuration }}", "4.5s"
                )
                alert["exp_annotations"] = words
    (path / "cases.yml").write_text(yaml.safe_dump(cases))


def test_promtool_finds_the_rules_right():
    promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)


def test_every_fault_has_its_alert_and_a_healthy_server_has_none(tmp_path):
    shutil.copy(RULES, tmp_path)
    cases_with_annotations(tmp_path)
    promtool("test", "rules", tmp_path / "cases.yml")


def test_the_cases_try_every_alert_both_ways():
    cases = yaml.safe_load(CASES.read_text("utf-8"))["tests"]
    tried = [(one["alertname"], bool(one.get("exp_alerts")))
             for case in cases for one in case["alert_rule_test"]]  # fmt: skip
    for alert in ALERTS:
        assert {(alert["alert"], True), (alert["alert"], False)} <= set(tried)


def test_every_metric_and_label_of_a_rule_is_one_that_a_server_has(demo_model_dir):
    front_end = FrontEnd(demo_model_dir)
    try:
        families = parse(front_end.ask("GET", "/metrics").body.decode()).values()
    finally:
        front_end.end()
    known = {
        family.name + suffix: {label for sample in family.samples for label in sample.labels}
        for family in families
        for suffix in SUFFIXES[family.type]
    }
    for alert in ALERTS:
        names = re.findall(METRIC, alert["expr"])
        assert set(names) <= known.keys(), alert["alert"]
        assert names or "up{" in alert["expr"]
        for name, label in re.findall(rf"({METRIC})\{{(\w+)=", alert["expr"]):
            assert label in known[name], alert["alert"]


def test_every_alert_leads_to_what_to_do():
    for alert in ALERTS:
        page, _, anchor = alert["annotations"]["runbook"].partition("#")
        assert anchor in anchors(ROOT / page), alert["alert"]
        assert alert["labels"]["severity"] in ("warning", "critical")
