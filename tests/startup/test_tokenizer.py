"""Tokenizers of every layout are read, none by running code that nobody has consented to; and what
cannot be loaded is said in a sentence."""

import json
import shutil
import subprocess
import sys

import mlx.core as mx
import pytest
from transformers import AutoTokenizer

from scripts.lib.model import check_model
from server.protocol.tokenizer_code import Code, must_run, wanted_code
from server.startup.loading import Unloadable, load_shard
from server.startup.tokenizer import load
from server.wire.link import Link
from tests.models.architectures import config_of, write
from tests.support.kimi_folder import PATTERN, SPECIALS, WORDS, kimi_folder, ranks, special_ids
from tests.support.tiny_models import tiny_llama

TEXTS = [
    "the quick brown fox",
    "THE Quick  brown\n\n\n fox's don't WE'LL 1234567",
    "日本語のテスト、漢字と混ざる text 你好，世界！",
    " \t leading, trailing   ",
    "naïve Straße ﬁ é e\u0301 🙂🙃\u200d",
    "a" * 300 + " " * 50 + "\r\n\r\n",
    "",
]


@pytest.fixture(scope="module")
def kimi(tmp_path_factory):
    return kimi_folder(tmp_path_factory.mktemp("kimi") / "K2-small")


@pytest.fixture
def unknown(kimi, tmp_path):
    """The same, but for a pattern that is worked out when the code runs."""
    folder = shutil.copytree(kimi, tmp_path / "unknown")
    path = folder / "tokenization_kimi.py"
    path.write_text("class TikTokenTokenizer:\n    pat_str = make_pattern()\n")
    return folder


def read(folder, trust=False):
    return load(folder, json.loads((folder / "config.json").read_text()), trust)


def serve(folder, **more):
    return load_shard(
        folder, "tensor", Link(mx.distributed.init()), 256, lambda stage: None, **more
    )


def test_a_folder_as_kimis_is_served_without_running_its_code(kimi):
    shard = serve(kimi)
    text = "the quick brown fox"
    assert shard.tokenizer.decode(shard.tokenizer.encode(text)) == text
    assert shard.tokenizer.backend_tokenizer is not None, "grammars and the child need it"
    messages = [{"role": "user", "content": "hello"}]
    assert "hello" in shard.tokenizer.apply_chat_template(messages, tokenize=False)
    assert list(shard.tokenizer.eos_token_ids)


def test_its_ids_are_tiktokens(kimi):
    tiktoken = pytest.importorskip("tiktoken")
    right = tiktoken.Encoding(
        "k", pat_str=PATTERN, mergeable_ranks=ranks(), special_tokens=special_ids()
    )
    ours = read(kimi)
    texts = [*TEXTS, *WORDS.split(), WORDS, WORDS.replace(" ", ""), "<|im_user|>hi<|im_end|>[EOS]x"]
    for text in texts:
        ids = right.encode(text, allowed_special="all")
        assert ours.encode(text, add_special_tokens=False) == ids, text
        assert ours.decode(ids) == text


def test_its_special_tokens_have_their_ids(kimi):
    ours = read(kimi)
    for name, number in special_ids().items():
        assert ours.convert_tokens_to_ids(name) == number
    ids = ours.encode("".join(SPECIALS), add_special_tokens=False)
    shown = ours.decode(ids, skip_special_tokens=True)
    assert shown == "<|tool_call_begin|>", "what a tool's call is read from is text"


def test_code_that_cannot_be_done_without_is_named_with_the_setting(unknown):
    with pytest.raises(Unloadable, match=r"tokenization_kimi\.py.*TRUST_REMOTE_CODE=1"):
        serve(unknown)
    assert must_run(unknown) == Code("tokenization_kimi.py", "TikTokenTokenizer")
    verdict = check_model.check(unknown, 1)
    assert not verdict.ok and "TRUST_REMOTE_CODE=1" in " ".join(verdict.reasons)
    assert check_model.check(unknown, 1, trust=True).ok


def test_nobody_is_asked_on_a_terminal(unknown):
    """The ranks have none; transformers asked there, and waited."""
    program = "import sys; from tests.startup.test_tokenizer import *; read(Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", f"from pathlib import Path\n{program}", str(unknown)],
        stdin=subprocess.PIPE, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert "[y/N]" not in done.stdout + done.stderr
    assert "TRUST_REMOTE_CODE=1" in done.stderr


def test_with_consent_the_code_is_run_and_that_is_said(unknown, caplog, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(unknown / "modules"))
    (unknown / "tokenization_kimi.py").write_text(
        "from transformers import PreTrainedTokenizerFast\n"
        "from tokenizers import Tokenizer, models\n\n"
        "class TikTokenTokenizer(PreTrainedTokenizerFast):\n"
        "    def __init__(self, *arguments, **named):\n"
        "        made = Tokenizer(models.BPE({'a': 0, 'b': 1}, []))\n"
        "        named.pop('tokenizer_object', None)\n"
        "        super().__init__(tokenizer_object=made, **named)\n"
    )
    assert must_run(unknown)
    tokenizer = read(unknown, trust=True)
    assert type(tokenizer._tokenizer).__name__ == "TikTokenTokenizer"
    assert any("code of the model folder is run" in r.getMessage() for r in caplog.records)


def test_code_beside_a_tokenizer_json_is_not_needed(kimi, tmp_path):
    folder = shutil.copytree(kimi, tmp_path / "both")
    tiny = tiny_llama(tmp_path / "tiny")
    shutil.copyfile(tiny / "tokenizer.json", folder / "tokenizer.json")
    (folder / "tiktoken.model").unlink()
    assert must_run(folder) is None
    assert read(folder).encode("abc", add_special_tokens=False) == [97, 98, 99]


@pytest.mark.parametrize(
    "named", ["tokenization_kimi.X", ["tokenization_kimi.X", None], [None, "tokenization_kimi.X"],
              ["a.Slow", "tokenization_kimi.X"], "org/repo--tokenization_kimi.X"]
)  # fmt: skip
def test_the_code_is_found_however_the_config_names_it(tmp_path, named):
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": named}})
    )
    assert wanted_code(tmp_path) == Code("tokenization_kimi.py", "X")


@pytest.mark.parametrize("auto_map", [None, {}, {"AutoTokenizer": None}, {"AutoModel": "a.B"}, 3])
def test_a_config_that_names_none_wants_none(tmp_path, auto_map):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto_map}))
    assert wanted_code(tmp_path) is None


@pytest.mark.parametrize("kind", ["kimi_k2", "deepseek_v41"])
def test_a_config_that_transformers_does_not_know_has_its_tokenizer_all_the_same(tmp_path, kind):
    """It reads the model's config to find the tokenizer's class, and fails at YARN in one of a type
    that it does not know."""
    yarn = {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 128}
    folder = write(tmp_path / "model", "deepseek_v3")
    config = config_of("deepseek_v3") | {"model_type": kind, "rope_scaling": yarn}
    del config["rope_parameters"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(AttributeError, match="max_position_embeddings"):
        AutoTokenizer.from_pretrained(folder)
    assert read(folder).encode("abc", add_special_tokens=False) == [97, 98, 99]


def damaged(folder):
    yield "no config", lambda: (folder / "config.json").unlink()
    yield "no tokenizer", lambda: (folder / "tokenizer.json").unlink()
    yield "a broken tokenizer", lambda: (folder / "tokenizer.json").write_text("{")
    yield "an odd tokenizer", lambda: (folder / "tokenizer.json").write_text('{"model": 3}')
    yield "weights cut off", lambda: (folder / "model.safetensors").write_bytes(b"\x08" + bytes(20))
    yield "no weights", lambda: (folder / "model.safetensors").unlink()
    yield "an unknown kind", lambda: change(folder, model_type="never_heard_of")
    yield "sizes missing", lambda: change(folder, hidden_size=None)
    yield "other sizes", lambda: change(folder, intermediate_size=100)
    yield "a type that is none", lambda: change(folder, model_type=["llama"])


def change(folder, **more):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


@pytest.mark.parametrize("number", range(10))
def test_what_cannot_be_loaded_is_said_in_a_sentence(tmp_path, number):
    folder = tiny_llama(tmp_path / "tiny")
    what, damage = list(damaged(folder))[number]
    damage()
    with pytest.raises(Unloadable) as raised:
        serve(folder)
    assert str(raised.value).count("\n") < 12 and len(str(raised.value)) > 20, what


@pytest.mark.skipif(mx.metal.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["bitnet", "muse_spark"])
def test_a_model_that_needs_a_gpu_is_refused_with_that_reason(tmp_path, name):
    folder = write(tmp_path / name, name, max_position_embeddings=1024)
    with pytest.raises(Unloadable, match=rf"{name} cannot be computed.*needs Apple's GPU"):
        serve(folder)
