"""The routes against their own description, fuzzed; test_openapi.py runs it.

By hand: scripts/test.sh --all -p schemathesis.pytest.plugin tests/api/openapi_fuzz.py
FUZZ_EVERY_CASE, not empty: every case, not only a few random ones of each operation.
"""

import os
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import checks

from tests.api.test_openapi import BEYOND_SCHEMAS, DESCRIPTION, check_events
from tests.support.front_end import FrontEnd

EVERY_CASE = bool(os.environ.get("FUZZ_EVERY_CASE"))
FUZZED = schemathesis.openapi.from_dict(DESCRIPTION)
FUZZED.config.max_stream_events = 100_000  # all of them
# Every value that a schema names and its neighbours, one by one: thousands of requests.
FUZZED.config.phases.coverage.enabled = EVERY_CASE
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.unsupported_method,
]


@pytest.fixture(scope="module")
def front_end(demo_model_dir):
    one = FrontEnd(demo_model_dir)
    yield one
    one.end()


def test_a_name_that_a_route_does_not_know_may_stand_for_anything():
    unknown = {"n": [None], "structured_outputs": "abc", "tools": 1, "response_format": 2}
    body = dict(unknown)
    make_sense(body)
    assert body == {key: unknown[key] for key in ("n", "structured_outputs", "tools")}


@FUZZED.parametrize()
@settings(
    max_examples=15 if EVERY_CASE else 5,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_whatever_is_sent_the_answer_is_as_described(front_end, case):
    positive = case.meta is not None and case.meta.generation.mode.is_positive
    if positive and isinstance(case.body, dict):
        make_sense(case.body)
        case.body = integers(case.body)
    answer = case.call(base_url=front_end.url, timeout=240)
    case.validate_response(answer, checks=CHECKS)
    if answer.status_code == 400 and positive:
        assert BEYOND_SCHEMAS.search(answer.text), answer.text
    if answer.headers["content-type"][0].startswith("text/event-stream"):
        content = case.operation.definition.raw["responses"]["200"]["content"]
        check_events(answer.text, content)


def make_sense(body: dict) -> None:
    """Takes out what contradicts itself, for more bodies to get past the parsers.

    A name may stand for anything on a route that does not know it.
    """
    formats = [
        name
        for name in body
        if name.startswith("guided_")
        or name in ("response_format", "structured_outputs", "regex", "ebnf", "output_format")
    ]
    for name in formats[1:]:
        del body[name]
    outputs = body.get("structured_outputs")
    if isinstance(outputs, dict):
        for name in list(outputs)[1:]:
            del outputs[name]
    if body.get("logprobs") is not True:
        body.pop("top_logprobs", None)
    body.pop("best_of", None)
    if isinstance(body.get("n"), int):
        body["n"] = min(body["n"], 4)
    if not body.get("tools"):
        body.pop("tool_choice", None)


def integers(value: Any) -> Any:
    """The same without numbers like 1.0, which JSON Schema takes for integers and we do not."""
    if isinstance(value, dict):
        return {key: integers(child) for key, child in value.items()}
    if isinstance(value, list):
        return [integers(child) for child in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
