"""Each Python and curl snippet of docs/api.md, run as it stands there against the front end."""

import os
import re
import subprocess
import sys

import pytest

from tests.support.front_end import MODEL, FrontEnd
from tests.support.paths import ROOT

TEXT = (ROOT / "docs/api.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^### (.*?)$|^```(python|bash)\n(.*?)^```$", TEXT, re.M | re.S)
KEY = "sesame"


def snippets() -> list:
    found, title = [], ""
    for heading, language, code in SNIPPETS:
        title = heading or title
        if code:
            found.append(pytest.param(language, code, id=f"{title}-{len(found)}"))
    return found


@pytest.fixture(scope="module")
def front_end(demo_model_dir):
    one = FrontEnd(demo_model_dir, API_KEY=KEY)
    yield one
    one.end()


@pytest.mark.parametrize(("language", "code"), snippets())
def test_a_snippet_of_the_documentation_runs(front_end, language, code):
    code = code.replace("http://127.0.0.1:8080", front_end.root)
    code = code.replace("MODEL_ID", MODEL).replace("KEY", KEY)
    if language == "python":
        command = [sys.executable, "-W", "error::SyntaxWarning", "-c", code]
    else:
        command = ["bash", "-euc", code.replace("curl -s", "curl -sS --fail-with-body")]
    environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip(), "it printed nothing"


def test_there_is_a_snippet_for_each_client_that_can_be_run():
    titles = {one.id.rpartition("-")[0] for one in snippets()}
    assert titles >= {
        "curl", "openai (Python)", "anthropic (Python)", "LangChain", "pydantic-ai",
    }  # fmt: skip
