"""The tables of fields in the docs are those that the server reads by."""

import pytest

from server.api.openapi.tables import ROUTES, costs, field_tables
from tests.support.paths import ROOT

HOW = "python -m server.api.openapi.tables prints what should stand in docs/"


def lines_of(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("route", ROUTES)
def test_api_md_lists_every_field_as_it_is_read(route):
    assert field_tables()[route] + "\n\n" in lines_of("docs/api.md"), HOW


def test_operations_md_tells_what_each_field_may_cost():
    assert f"\n{costs()}\n| all other fields |" in lines_of("docs/operations.md"), HOW
