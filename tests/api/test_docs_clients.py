"""Each Python and curl snippet of the docs, run as it stands there against the front end."""

import json
import os
import re
import subprocess
import sys
import tomllib

import pytest

from tests.support.client_snippets import PLACES, TEXT, snippets
from tests.support.front_end import MODEL, FrontEnd
from tests.support.paths import ROOT

KEY = "sesame"
API = (ROOT / "docs/api.md").read_text(encoding="utf-8")
RUN = [one for one in [*snippets(), *snippets(API)] if one.language in ("python", "bash")]
FILLED = {
    "url": "http://127.0.0.1:1",
    "model": "org/model",
    "small": "org/small",
    "key": "k",
    "context": "4096",
}


@pytest.fixture(scope="module")
def front_end(demo_model_dir):
    one = FrontEnd(demo_model_dir, API_KEY=KEY)
    yield one
    one.end()


@pytest.mark.parametrize("one", RUN, ids=lambda one: one.client)
def test_a_snippet_of_the_documentation_runs(front_end, one):
    code = one.filled(url=front_end.root, model=MODEL, small=MODEL, key=KEY, context="2048")
    code = code.replace("http://127.0.0.1:8080", front_end.root).replace("KEY", KEY)
    if one.language == "python":
        command = [sys.executable, "-W", "error::SyntaxWarning", "-c", code]
    else:
        command = ["bash", "-euc", code.replace("curl -s", "curl -sS --fail-with-body")]
    environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip(), "it printed nothing"


def test_there_is_a_snippet_for_each_client_that_can_be_run():
    assert {one.client for one in RUN} >= {
        "curl", "openai (Python)", "anthropic (Python)", "LangChain", "pydantic-ai",
    }  # fmt: skip


def test_each_client_has_a_section_in_the_list_at_the_top_and_a_snippet_with_the_url():
    headings = [name for name in re.findall(r"^## (.*)$", TEXT, re.M) if name != "For all agents"]
    top = TEXT[: TEXT.index("## For all agents")]
    listed = re.findall(r"\[([^]]+)\]\(#", top)
    assert sorted(listed) == sorted(headings)
    for name in headings:
        mine = [one.code for one in snippets() if one.client == name]
        assert any("{url}" in code for code in mine), name


def test_snippets_have_no_places_but_those_that_are_explained():
    for one in snippets():
        unknown = set(re.findall(r"\{([a-z_]+)\}", one.code)) - {*PLACES, "city"}
        assert not unknown, one.client
        assert not re.search(r"\{(url|model|small|key|context)\}", one.filled(**FILLED))


def test_configurations_can_be_read_when_they_are_filled_in():
    read = 0
    for one in snippets():
        if one.language in ("json", "toml"):
            (json.loads if one.language == "json" else tomllib.loads)(one.filled(**FILLED))
            read += 1
    assert read >= 4
