"""check_model.sh as people run it: a folder or a repo, hosts or what they would have."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("mlx_lm")

from tests.models import architectures
from tests.support.fake_hub import FakeHub, files_of
from tests.support.kimi_folder import kimi_folder
from tests.support.paths import FAULT_SITE, ROOT
from tests.support.tiny_models import tiny_llama

SCRIPT = ROOT / "scripts/check_model.sh"


def check(*arguments: object, **env: str) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HOSTFILE"))}
    clean |= {"PYTHON": sys.executable, "CLUSTER_ENV": os.devnull, "HF_HUB_OFFLINE": "0"}
    clean |= {"PYTHONPATH": str(FAULT_SITE)} | env
    return subprocess.run(
        [SCRIPT, *map(str, arguments)], env=clean, capture_output=True, text=True, timeout=240
    )


def report(*arguments: object, code: int = 0, **env: str) -> dict:
    done = check(*arguments, "--json", **env)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def model(tmp_path):
    return tiny_llama(tmp_path / "model")


@pytest.fixture
def hub(tmp_path):
    model = architectures.write(tmp_path / "source", "gpt_oss")
    files = files_of(model)
    hub = FakeHub("org/gpt", {**files, "model.gguf": b"x" * 1000, "README.md": b"read me"})
    hub.env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
    yield hub
    hub.close()


def test_a_folder_is_sized_on_every_number_of_ranks(model):
    told = report(model, "--memory", "16")
    assert (told["ok"], told["reasons"], told["architecture"]) == (True, [], "llama")
    assert [row["ranks"] for row in told["ranks"]] == [*range(1, 9)]
    one, two = told["ranks"][:2]
    assert (one["how"], two["how"]) == ("one rank", "tensor")
    assert one["weights_bytes"] == [told["weights_bytes"]]
    assert two["kv"][0]["token_bytes"] * 2 == one["kv"][0]["token_bytes"] > 0
    assert one["context"] == told["context"]
    assert told["formats"]["calls"] == "none"


def test_text_for_people_has_a_line_for_every_number_of_ranks(model):
    done = check(model, "--memory", "16")
    assert done.returncode == 0, done.stderr
    table = done.stdout.partition("  ranks  how ")[2].splitlines()[1:]
    assert [line.split()[0] for line in table] == [str(n) for n in range(1, 9)]
    assert "no format is known: what it writes as a call reaches clients as text" in done.stdout


def test_several_are_reported_one_by_one_and_beside_each_other(model, tmp_path):
    other = tiny_llama(tmp_path / "my models, all", hidden=128)
    told = report(model, other, "--memory", "16,16")
    assert [one["model"] for one in told["models"]] == [str(model), str(other)]
    assert told["ok"] and told["together"]["fit"] == [[str(model), str(other)]]
    assert told["together"]["ranks"] == 2 and "model" not in told
    done = check(model, other, "--memory", "16")
    assert f"{model}: llama" in done.stdout and f"{other}: llama" in done.stdout
    assert done.stdout.endswith("beside each other, on 1 rank(s):\n  all 2 of them fit\n")
    done = check(model, "/none", "--json")
    assert done.returncode == 2 and json.loads(done.stdout)["model"] == [str(model), "/none"]
    assert "9 models: must be 8 at most" in check(*[model] * 9).stderr


def test_it_agrees_with_what_the_server_measures(model):
    from mlx_lm.utils import load_model

    from server.engine.kv_memory import row_bytes

    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"torch_dtype": "float32"}))
    row = row_bytes(load_model(model, lazy=True)[0])
    told = report(model, "--memory", "16", "--ranks", "1")
    assert told["ranks"][0]["kv"] == [{"request_bytes": row.fixed, "token_bytes": row.token}]


def test_memory_that_is_too_small_is_told_with_what_would_do(model, tmp_path):
    big = json.loads((model / "config.json").read_text()) | {"max_position_embeddings": 10**9}
    (model / "config.json").write_text(json.dumps(big))
    told = report(model, "--memory", "1,2")
    assert 0 < told["ranks"][1]["context"] < 10**9
    assert told["ranks"][2]["context"] is None and told["ranks"][2]["usable_bytes"] == []
    told = report(model, "--memory", "1", KV_BUDGET_GB="0.00001", code=1)
    assert "no room is left for the KV cache" in " ".join(told["reasons"])


def test_this_machine_is_asked_where_nobody_is_named(model):
    told = report(model, "--ranks", "2")
    (host,) = told["hosts"]
    assert host["name"] == "127.0.0.1" and host["usable_bytes"] > 10**8
    halves = told["ranks"][0]["usable_bytes"]
    assert halves == [host["usable_bytes"] // 2] * 2, "the ranks share it"


def test_hosts_are_asked_over_ssh_and_one_that_is_away_is_said_to_be(model, nodes):
    env = {k: v for k, v in nodes.env.items() if k in ("PATH", "HOME") or k.startswith("SSH")}
    told = report(model, "--hosts", "node-1,node-gone", **env)
    first, gone = told["hosts"]
    assert first["usable_bytes"] > 10**8
    assert gone["usable_bytes"] is None and gone["why"]
    assert told["ranks"][0]["context"] and told["ranks"][1]["context"] is None


def test_of_a_repo_only_small_files_and_headers_are_read(hub):
    told = report("org/gpt", "--memory", "512,512", **hub.env)
    assert told["model_type"] == "gpt_oss" and told["weights_bytes"] > 10**5
    assert len(told["ranks"]) == 8 and told["problems"] == []
    weights = [name for name in hub.files if name.endswith(".safetensors")]
    assert weights and all(hub.sent[name] <= 100_001 for name in weights)
    assert not {"model.gguf", "README.md"} & hub.sent.keys()
    local = report("org/gpt", "--memory", "512", **hub.env)
    assert local["weights_bytes"] == told["weights_bytes"]


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (404, "RepoNotFound", "there is no org/gpt at http"),
        (401, "", "HF_TOKEN is not set to a token"),
        (401, "GatedRepo", "is gated: ask for access"),
        (403, "GatedRepo", "is gated: ask for access"),
        (404, "RevisionNotFound", "has no revision 'v9'"),
        (429, "", "asked too often: try again later"),
        (500, "", "answers 500"),
    ],
)
def test_a_repo_that_the_hub_does_not_give_says_why(hub, status, kind, words):
    hub.answers = (status, kind)
    done = check("org/gpt", "--memory", "16", "--revision", "v9", **hub.env)
    assert (done.returncode, done.stdout) == (3, "")
    assert words in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_no_network_is_said_in_a_line(tmp_path):
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = check("org/gpt", "--memory", "16", **env)
    assert (done.returncode, done.stdout) == (3, "")
    assert "http://127.0.0.1:9 cannot be reached" in done.stderr
    offline = check("org/gpt", "--memory", "16", **env | {"HF_HUB_OFFLINE": "1"})
    assert offline.returncode == 3 and "HF_HUB_OFFLINE is set" in offline.stderr
    told = report("org/gpt", "--memory", "16", code=3, **env)
    assert (told["model"], told["ok"]) == ("org/gpt", None)
    assert "cannot be reached" in told["error"]


def test_another_hub_may_stand_among_the_kept_settings(hub, tmp_path):
    kept = tmp_path / "cluster.env"
    kept.write_text(f"HF_ENDPOINT={hub.url}\n")
    env = {"HF_HOME": hub.env["HF_HOME"], "CLUSTER_ENV": str(kept)}
    assert report("org/gpt", "--memory", "16", "--ranks", "1", **env)["ok"]


def test_a_config_of_absurd_sizes_is_refused_and_not_built(model):
    config = json.loads((model / "config.json").read_text()) | {"num_hidden_layers": 10**9}
    (model / "config.json").write_text(json.dumps(config))
    told = report(model, "--memory", "16", code=1)
    assert told["reasons"] == ["num_hidden_layers is 1000000000: must be at most 1000"]


def test_a_repo_without_weights_for_mlx_is_refused(hub):
    hub.files = {name: data for name, data in hub.files.items() if "safetensors" not in name}
    done = check("org/gpt", "--memory", "16", **hub.env)
    assert "has no model*.safetensors" in done.stderr and done.returncode == 1
    told = report("org/gpt", "--memory", "16", code=1, **hub.env)
    assert told["ok"] is False and "has no model*.safetensors" in told["error"]


def test_an_architecture_that_mlx_lm_does_not_know_is_refused(hub):
    hub.files["config.json"] = b'{"model_type": "zebra"}'
    told = report("org/gpt", "--memory", "16", code=1, **hub.env)
    assert told["reasons"] == ["model_type is 'zebra', which the installed mlx-lm does not know"]
    assert told["ranks"] == []


def test_a_number_of_ranks_that_does_not_work_is_refused_with_those_that_do(model):
    done = check(model, "--memory", "16", "--ranks", "8", PARALLEL="pipeline")
    assert done.returncode == 1 and "on 8 ranks: pipeline: " in done.stderr


def test_more_ranks_than_hosts_are_refused(model):
    told = report(model, "--memory", "16,16", "--ranks", "4", code=1)
    assert told["reasons"] == ["on 4 ranks: too few hosts: there are 2"]
    assert report(model, "--memory", "16", "--ranks", "4")["ok"], "any number of such Macs"


def test_a_hostfile_that_cannot_be_read_tells_nothing_of_the_model(model, tmp_path):
    (tmp_path / "hosts.json").write_text("{")
    told = report(model, "--hostfile", tmp_path / "hosts.json", code=3)
    assert told["ok"] is None and "hosts.json" in told["error"]


def test_a_tokenizer_of_code_that_is_known_is_not_run(tmp_path):
    told = report(kimi_folder(tmp_path / "kimi"), "--memory", "16")
    assert told["tokenizer_code"]["needed"] is False
    assert told["formats"]["calls"] == "kimi-k2"


def test_a_tokenizer_that_transformers_cannot_read_is_a_reason(model):
    (model / "tokenizer.json").write_text("{}")
    told = report(model, "--memory", "16", code=1)
    assert "the tokenizer cannot be loaded: " in told["reasons"][-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "MODEL is missing"),
        (("nowhere",), "neither a folder that is there nor a Hugging Face repo"),
        ((ROOT, "--revision", "x"), "--revision is for repos"),
        ((ROOT, "--memory", "zero"), "must be gigabytes from 1 to 100000"),
        ((ROOT, "--memory", "1,2,3,4,5,6,7,8,9"), "8 numbers at most"),
        ((ROOT, "--hosts", "a b"), "a name that ssh takes"),
        ((ROOT, "--hosts", "a", "--memory", "1"), "one of them"),
        ((ROOT, "--ranks", "9"), "a number of ranks from 1 to 8"),
        ((ROOT, "--what"), "unknown argument"),
    ],
)
def test_wrong_usage_exits_2_in_one_line(arguments, words):
    done = check(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("model", [(), ("nowhere",), ("a/b/c",), (ROOT, "--revision", "x")])
def test_a_wrong_model_is_told_to_programs_too(model):
    told = report(*model, code=2)
    assert told["model"] == (str(model[0]) if model else None)
    assert told["ok"] is None and told["error"]


def test_help_is_the_header():
    done = check("--help")
    assert done.returncode == 0 and "--memory GB" in done.stdout
