"""What check_model refuses before launch, and that it is right about what it lets pass."""

import json
import shutil
import subprocess
import sys

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models import llama

from scripts.lib.model import check_model, look
from server.startup import mlx_lm_source
from server.startup.tensor_sizes import tensor_obstacles
from tests.support.paths import ROOT
from tests.support.tiny_models import tiny_llama, tiny_pipeline

COMMAND = [sys.executable, ROOT / "scripts/lib/module.py", "lib.model.check_model"]
PACKAGE = mlx_lm_source.mlx_lm_folder()

# Sizes as in the published models, less what sharding does not look at.
LLAMA_70B = {
    "model_type": "llama",
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "kv_lora_rank": 512,
    "v_head_dim": 128,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "first_k_dense_replace": 3,
    "num_hidden_layers": 61,
}
GPT_OSS_120B = {
    "model_type": "gpt_oss",
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 36,
    "quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
}
QWEN3_30B = {
    "model_type": "qwen3_moe",
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "mlp_only_layers": [],
    "decoder_sparse_step": 1,
    "num_hidden_layers": 48,
}
QWEN3_5 = {
    "model_type": "qwen3_5",
    "text_config": {
        "num_attention_heads": 24,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 48,
        "linear_value_head_dim": 128,
        "intermediate_size": 17408,
        "vocab_size": 248320,
        "num_hidden_layers": 64,
    },
}


@pytest.fixture
def model(tmp_path):
    return tiny_llama(tmp_path / "model")


def change(folder, **values):
    """Change config.json of a model; None takes a key out."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


def counts(config):
    """The rank counts over which mlx-lm's shard() could split a model of this config."""
    architecture = mlx_lm_source.find_architecture(config, PACKAGE)
    return [
        n
        for n in check_model.RANK_COUNTS
        if n == 1 or not tensor_obstacles(config, architecture, n)
    ]


def reason(folder, ranks=2, parallel="tensor"):
    """The only reason against a model that has to be refused."""
    verdict = check_model.check(folder, ranks, parallel)
    assert not verdict.ok
    assert len(verdict.reasons) == 1, verdict.reasons
    return verdict.reasons[0]


def obstacles(folder, ranks=2):
    """What stands against mlx-lm's shard()."""
    config = json.loads((folder / "config.json").read_text())
    return tensor_obstacles(config, mlx_lm_source.find_architecture(config, PACKAGE), ranks)


# --- the folder ---


def test_whole_model_passes(model):
    verdict = check_model.check(model, 2)
    ways = ["tensor", "generic tensor", "generic pipeline"]
    assert verdict == check_model.Verdict("llama", True, [1, 2, 4, 8], [], "tensor", ways)


def test_folder_that_is_not_there_is_refused(tmp_path):
    assert reason(tmp_path / "none") == f"{tmp_path / 'none'} is not a directory"


def test_model_file_instead_of_folder_is_refused(model):
    assert "is not a directory" in reason(model / "config.json")


def test_missing_config_is_named(model):
    (model / "config.json").unlink()
    assert reason(model) == f"{model / 'config.json'} is missing"


@pytest.mark.parametrize("text", ["{", "[]", "", '{"model_type": "llama"'])
def test_config_that_is_no_json_object_is_refused(model, text):
    (model / "config.json").write_text(text)
    assert "config.json" in reason(model)


def test_missing_tokenizer_is_named(model):
    (model / "tokenizer.json").unlink()
    assert "has no tokenizer" in reason(model)


def test_sentencepiece_tokenizer_counts(model):
    (model / "tokenizer.json").rename(model / "tokenizer.model")
    assert check_model.check(model, 2).ok


def test_folder_without_weights_is_refused(model):
    (model / "model.safetensors").unlink()
    assert "has no weights" in reason(model)


def test_weights_under_a_name_that_mlx_lm_passes_over_are_refused(model):
    (model / "model.safetensors.index.json").unlink()
    (model / "model.safetensors").rename(model / "weights.safetensors")
    assert "has no weights" in reason(model)


def test_file_that_the_index_names_and_is_missing_is_named(tmp_path):
    model = tiny_pipeline(tmp_path / "model")
    (model / "model-00003-of-00004.safetensors").unlink()
    assert reason(model) == f"{model / 'model-00003-of-00004.safetensors'} is missing"


def test_truncated_weight_file_is_named_with_its_sizes(model):
    path = model / "model.safetensors"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - 1)
    assert reason(model) == f"{path} has {size - 1} bytes of {size}"


@pytest.mark.parametrize(
    "content",
    [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", b"\x08" + b"\0" * 20],
)
def test_something_else_than_weights_is_refused(model, content):
    (model / "model.safetensors").write_bytes(content)
    assert "is not a safetensors file" in reason(model)


def test_index_without_weight_map_is_refused(model):
    (model / "model.safetensors.index.json").write_text("{}")
    assert "has no weight_map" in reason(model)


def test_several_faults_are_all_told(model):
    (model / "tokenizer.json").unlink()
    (model / "model.safetensors").unlink()
    change(model, model_type="nonsense")
    assert len(check_model.check(model, 2).reasons) == 3


# --- the architecture ---


def test_unknown_model_type_is_named(model):
    change(model, model_type="nonsense")
    expected = "model_type is 'nonsense', which the installed mlx-lm does not know"
    assert reason(model) == expected


@pytest.mark.parametrize("model_type", [None, 5, "../utils", "cache", "switch_layers", "", "a.b"])
def test_model_type_that_is_no_architecture_is_refused(model, model_type):
    change(model, model_type=model_type)
    assert "mlx-lm does not know" in reason(model)


def test_model_with_code_of_its_own_is_refused(model):
    change(model, model_file="evil.py")
    assert "run code of its own" in reason(model)


def test_synonyms_of_mlx_lm_are_honoured():
    def name(config):
        return mlx_lm_source.architecture_name(config, PACKAGE)

    assert name({"model_type": "mistral"}) == "llama"
    assert name({"model_type": "kimi_k2"}) == "deepseek_v3"
    special = {"model_type": "bailing_hybrid", "architectures": ["BailingMoeV3ForCausalLM"]}
    assert name(special) == "bailing_moe_v3"


def test_architecture_without_tensor_parallelism_is_split_by_names_or_into_a_pipeline(model):
    change(model, model_type="gemma")
    verdict = check_model.check(model, 2)
    # By 8 the heads do not divide, and the feed-forward blocks do, which is most of it.
    assert (verdict.arrangement, verdict.rank_counts) == ("generic tensor", [1, 2, 4, 8])
    verdict = check_model.check(model, 2, "pipeline")
    assert (verdict.arrangement, verdict.rank_counts) == ("generic pipeline of 1, 1 layers", [1, 2])
    assert check_model.check(model, 1).arrangement == "one rank"


def test_pipeline_needs_a_layer_for_each_rank(tmp_path):
    model = tiny_pipeline(tmp_path / "model", layers=3)
    verdict = check_model.check(model, 4, "pipeline")
    assert "pipeline: 3 layers are too few for a pipeline of 4 ranks" in verdict.reasons
    assert verdict.rank_counts == [1, 2, 3]


def test_every_way_that_is_impossible_says_why(tmp_path):
    model = tiny_pipeline(tmp_path / "model", layers=2)
    change(model, model_type="llama")
    kinds = [reason.partition(":")[0] for reason in check_model.check(model, 3).reasons]
    assert [*dict.fromkeys(kinds)] == ["tensor", "generic tensor", "pipeline", "generic pipeline"]


@pytest.mark.parametrize(
    "name", ["llama", "qwen3_5_moe", "glm_moe_dsa", "kimi_k25", "gemma", "mistral3", "qwen3_next"]
)
def test_source_reading_agrees_with_the_imported_class(name):
    """Inherited, delegated and absent shard() methods, against the real thing."""
    module = __import__(f"mlx_lm.models.{name}", fromlist=["Model"])
    architecture = mlx_lm_source.find_architecture({"model_type": name}, PACKAGE)
    assert architecture.can_shard == hasattr(module.Model, "shard")


@pytest.mark.parametrize(
    ("name", "can"),
    [
        ("qwen2", True),
        ("deepseek_v3", True),
        ("mistral4", True),
        ("kimi_k25", True),  # by a property that passes on an inner model
        ("qwen3_5_moe", True),  # inherited
        ("kimi_k3", True),  # its own, without the mix-in
        ("llama", False),
        ("gpt_oss", False),
        ("mistral3", False),
    ],
)
def test_pipelining_is_found_in_the_source(name, can):
    assert mlx_lm_source.find_architecture({"model_type": name}, PACKAGE).can_pipeline == can


# --- the numbers ---


def test_heads_that_do_not_divide_are_named_with_the_counts_that_work(model):
    change(model, num_attention_heads=9, num_key_value_heads=3)
    assert obstacles(model) == [
        "num_attention_heads is 9, which does not divide by 2 ranks",
        "num_key_value_heads is 3, which does not divide by 2 ranks",
    ]
    change(model, intermediate_size=144)
    assert counts(json.loads((model / "config.json").read_text())) == [1, 3]


def test_mlp_width_that_does_not_divide_is_named(model):
    change(model, intermediate_size=130)
    assert obstacles(model, 4) == ["intermediate_size is 130, which does not divide by 4 ranks"]


def test_expert_width_that_does_not_divide_is_named(model):
    change(model, model_type="qwen3_moe", moe_intermediate_size=90, mlp_only_layers=[])
    assert obstacles(model, 4) == ["moe_intermediate_size is 90, which does not divide by 4 ranks"]


def test_quantisation_groups_that_do_not_divide_are_named(model):
    change(model, intermediate_size=192, quantization={"group_size": 64, "bits": 4})
    change(model, hidden_size=256)
    expected = (
        "intermediate_size in quantisation groups (192 / 64) is 3, which does not divide by 2 ranks"
    )
    assert obstacles(model) == [expected]


def test_groups_of_a_single_layer_count_and_those_of_the_embedding_do_not(model):
    change(model, intermediate_size=256, hidden_size=256)
    quantization = {"group_size": 64, "bits": 4, "model.embed_tokens": {"group_size": 128}}
    change(model, quantization=quantization)
    assert obstacles(model, 4) == []
    quantization["model.layers.0.mlp.down_proj"] = {"group_size": 128, "bits": 4}
    change(model, quantization=quantization)
    assert "(256 / 128) is 2" in obstacles(model, 4)[0]


def test_kv_heads_do_not_matter_for_latent_attention():
    assert counts({**DEEPSEEK_V3, "num_key_value_heads": 7}) == [1, 2, 4, 8]
    assert counts({**LLAMA_70B, "num_key_value_heads": 7}) == [1]


@pytest.mark.parametrize(
    ("config", "allowed"),
    [
        (LLAMA_70B, [1, 2, 4, 8]),
        ({**LLAMA_70B, "quantization": {"group_size": 64, "bits": 4}}, [1, 2, 4, 8]),
        (DEEPSEEK_V3, [1, 2, 4, 8]),
        ({"model_type": "kimi_k25", "text_config": DEEPSEEK_V3}, [1, 2, 4, 8]),
        ({**DEEPSEEK_V3, "model_type": "kimi_k2", "num_attention_heads": 64}, [1, 2, 4, 8]),
        (GPT_OSS_120B, [1, 2]),  # 2880 / 32 = 90 groups
        ({**GPT_OSS_120B, "quantization": None}, [1, 2, 4, 8]),
        (QWEN3_30B, [1, 2, 4]),
        # Its dense width is not used by any layer, so it cannot stand in the way.
        ({**QWEN3_30B, "intermediate_size": 6143}, [1, 2, 4]),
        # 8 ranks get a copy of one of the 4 KV heads each.
        (QWEN3_5, [1, 2, 4, 8]),
    ],
)
def test_rank_counts_of_well_known_models(config, allowed):
    assert counts(config) == allowed


def test_vocabulary_counts_only_where_the_head_is_split():
    text = {**QWEN3_5["text_config"], "vocab_size": 248321}
    assert counts({**QWEN3_5, "text_config": text}) == [1]
    text["tie_word_embeddings"] = True
    assert counts({**QWEN3_5, "text_config": text}) == [1, 2, 4, 8]
    assert counts({**LLAMA_70B, "vocab_size": 128257}) == [1, 2, 4, 8]


@pytest.mark.parametrize(
    "value", [None, "4", 4.5, [[4]], {"a": 1}, 0, -4], ids=lambda value: type(value).__name__
)
def test_strange_values_in_config_do_not_crash_it(model, value):
    config = json.loads((model / "config.json").read_text())
    more = ("quantization", "text_config", "first_k_dense_replace", "head_dim", "architectures")
    for key in [*config, *more]:
        if key != "model_type":
            (model / "config.json").write_text(json.dumps({**config, key: value}))
            check_model.check(model, 2)
            check_model.check(model, 2, "pipeline")


class FakeGroup:
    """As many ranks as one likes, for cutting weights without computing with them."""

    def __init__(self, size):
        self._size = size

    def size(self):
        return self._size

    def rank(self):
        return self._size - 1


@pytest.mark.parametrize("group_size", [None, 32, 64])
def test_check_agrees_with_what_mlx_lm_can_cut(group_size):
    """Each count that is allowed cuts; each that is refused for a width fails in mlx-lm."""
    config = {
        "model_type": "llama",
        "num_attention_heads": 24,
        "num_key_value_heads": 24,
        "hidden_size": 192 * 2,
        "intermediate_size": 64 * 9,
        "num_hidden_layers": 1,
        "vocab_size": 64,
        "rms_norm_eps": 1e-5,
    }
    if group_size:
        config["quantization"] = {"group_size": group_size, "bits": 4}
    for ranks in check_model.RANK_COUNTS:
        model = llama.Model(llama.ModelArgs.from_dict(config))
        if group_size:
            nn.quantize(model, group_size=group_size, bits=4)
        try:
            model.shard(FakeGroup(ranks))
            mx.eval(model.parameters())
            cuts = True
        except ValueError:
            cuts = False
        assert (ranks in counts(config)) == cuts, ranks


# --- the command ---


def run(*arguments):
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True)


def test_command_passes_a_good_model_in_silence(model):
    done = run(model, "2")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_command_refuses_with_the_value_and_the_counts_that_work(model):
    done = run(model, "3", "--parallel", "tensor")
    assert done.returncode == 1
    assert done.stdout == ""
    assert (
        "check_model: tensor: num_attention_heads is 4, which does not divide by 3 ranks"
        in done.stderr
    )
    assert done.stderr.splitlines()[-1].endswith("rank counts that work: 1, 2, 4, 8")


def test_command_prints_json_for_programs(model):
    done = run(model, "3", "--json")
    verdict = json.loads(done.stdout)
    assert done.returncode == 1
    assert list(verdict) == [
        *("model_type", "ok", "rank_counts", "reasons", "arrangement", "ways", "formats", "kv"),
        "draft_bytes",
    ]
    assert (verdict["model_type"], verdict["ok"]) == ("llama", False)
    assert verdict["rank_counts"] == [1, 2, 4, 8]
    assert verdict["arrangement"] is None
    assert json.loads(run(model, "4", "--json").stdout)["ok"] is True


@pytest.mark.parametrize("arguments", [(), ("model",), ("model", "0"), ("model", "two")])
def test_wrong_usage_exits_2(arguments):
    assert run(*arguments).returncode == 2


def test_help_is_the_header():
    assert run("--help").stdout == check_model.__doc__


def test_check_never_imports_mlx(model):
    code = (
        "import pathlib, sys\nfrom scripts.lib.model import check_model\n"
        "assert check_model.check(pathlib.Path(sys.argv[1]), 2).ok\n"
        "sys.exit(str(sorted({'mlx', 'mlx_lm', 'transformers', 'numpy'} & set(sys.modules))))\n"
    )
    command = [sys.executable, "-c", code, model]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == "[]"


def test_missing_mlx_lm_exits_3(model, monkeypatch, capsys):
    monkeypatch.setattr(look, "mlx_lm_folder", lambda: None)
    assert check_model.main([str(model), "2"]) == 3
    assert "mlx-lm is not installed" in capsys.readouterr().err


def test_copied_model_with_spaces_in_its_name_passes(model, tmp_path):
    copy = tmp_path / "a model; with $HOME 'n spaces"
    shutil.copytree(model, copy)
    assert run(copy, "2").returncode == 0
