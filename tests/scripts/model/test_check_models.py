"""What is told of several models before a launch, from their folders alone."""

import json
import shutil
import subprocess
import sys

from tests.support.paths import ROOT
from tests.support.tiny_models import tiny_llama, tiny_pipeline

COMMAND = [sys.executable, ROOT / "scripts/lib/module.py", "lib.model.check_models"]


def run(*words):
    return subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True, check=False)


def test_each_of_the_list_is_looked_at_and_one_that_cannot_be_served_is_named(tmp_path):
    top = tmp_path / "top"
    big = tiny_llama(tmp_path / "My models, all" / "big")
    tiny_pipeline(top / "ORG" / "layers")
    shutil.copytree(big, top / "odd")
    config = json.loads((top / "odd/config.json").read_text())
    (top / "odd/config.json").write_text(json.dumps(config | {"model_type": "nobody-knows-it"}))
    (top / "empty").mkdir()
    shutil.copytree(big, top / "half.partial")
    settings = ("", "", f"big={big}", top, "")
    done = run(2, "--json", *settings)
    told = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    by_name = {one["name"]: one for one in told["models"]}
    assert list(by_name) == ["big", "ORG/layers", "odd"]
    assert "nobody-knows-it" in by_name["odd"]["reasons"][0]
    one = by_name["big"]
    weights = sum(path.stat().st_size for path in big.glob("*.safetensors"))
    assert one["reasons"] == [] and one["folder"] == str(big) and "tokenizer.json" in one["files"]
    assert weights / 2 < one["weights"][0] < weights and 0 < one["peak"] < weights
    assert dict(told["others"]) == {
        str(top / "empty"): "there is no model in it",
        str(top / "half.partial"): "it is an unfinished copy",
    }
    # For people, before a start: the first is looked at by itself.
    done = run(2, *settings)
    assert done.returncode == 0 and done.stdout == ""
    first, *others = done.stderr.splitlines()
    assert first.startswith("warning: odd cannot be served: model_type is 'nobody-knows-it'")
    assert [line.partition(": ")[2] for line in others] == [
        f"{top / 'empty'}: there is no model in it",
        f"{top / 'half.partial'}: it is an unfinished copy",
    ]


def test_ranks_among_which_one_cannot_be_shared_are_told(tmp_path):
    a, b = tiny_llama(tmp_path / "a"), tiny_pipeline(tmp_path / "b", layers=1)
    done = run(2, "--parallel", "pipeline", a, "", f"b={b}", "", "b")
    assert done.stderr.startswith("warning: b cannot be served: pipeline: ")


def test_a_wrong_list_is_an_error_in_words(tmp_path):
    a = tiny_llama(tmp_path / "a")
    done = run(2, "--json", a, "", "a=/none", "", "")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"].startswith("MODELS='a=/none': must lead to a folder")
    done = run(2, a, "", "", "", "small")
    assert done.returncode == 2 and "PINNED='small': must be of the models: a" in done.stderr
