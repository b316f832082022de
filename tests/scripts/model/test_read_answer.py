"""read_answer.py: a raw answer as the server would tell it, and errors that name what is wrong."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mlx_lm")

from scripts.lib.model import read_answer
from tests.support.families import FAMILIES, write_tokenizer
from tests.support.paths import ROOT

CASES = [
    json.loads(line)
    for line in (ROOT / "tests/text/cases/tool_calls.jsonl").read_text("utf-8").splitlines()
]
QWEN = next(family for family in FAMILIES if family.name == "qwen3.5")
CALL = (
    "<tool_call>\n<function=weather>\n<parameter=city>\nA\n</parameter>\n</function>\n</tool_call>"
)
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tokenizer(QWEN, tmp_path_factory.mktemp("model") / "qwen", [CALL] * 3)


@pytest.fixture
def run(model, tmp_path, monkeypatch, capsys):
    """run(text, *options, request=...) -> exit code, what it printed, its errors."""

    def run(text: str | bytes, *options: str, request: object = None, folder: Path = model):
        path = tmp_path / "answer.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        arguments = ["--model", str(folder), "--text", str(path), *options]
        if request is not None:
            body = tmp_path / "request.json"
            text = request if isinstance(request, str | bytes) else json.dumps(request)
            body.write_bytes(text if isinstance(text, bytes) else text.encode())
            arguments += ["--request", str(body)]
        monkeypatch.setattr(sys, "argv", ["read_answer.py", *arguments])
        code = read_answer.main()
        return code, *capsys.readouterr()

    return run


def test_content_reasoning_calls_and_finish_of_an_answer(run):
    text = f"<think>\nHm\n</think>\n\nI look.\n{CALL}"
    code, out, _ = run(text, "--json", request={"tools": [TOOL]})
    answer = json.loads(out)
    (call,) = answer.pop("calls")
    assert code == 0 and call.pop("id").startswith("call_")
    assert call == {"name": "weather", "arguments": {"city": "A"}}
    assert answer == {
        "content": "I look.", "reasoning": "Hm", "finish": "tool_calls", "format": "tags",
    }  # fmt: skip
    code, out, _ = run(text, request={"tools": [TOOL]})
    assert code == 0 and 'call: weather {"city": "A"}\n' in out and 'content: "I look."\n' in out


def test_why_markup_is_no_call_is_said_once_and_only_here(run):
    """The handler goes with the call: left behind it wrote on a closed stream ever after."""
    for _ in range(2):
        _, _, errors = run(
            "<tool_call>\nnothing\n</tool_call>", "--json", request={"tools": [TOOL]}
        )
        assert errors.count("no tool call") == 1
    assert logging.getLogger("server.text").handlers == []


def test_without_tools_calls_are_text(run):
    code, out, _ = run(CALL, "--json")
    assert (code, json.loads(out)["content"]) == (0, CALL)


def test_why_something_is_no_call_is_told(run):
    tool = {**TOOL, "function": {**TOOL["function"], "name": "other"}}
    code, out, err = run(CALL, "--json", request={"tools": [tool]})
    assert (code, json.loads(out)["content"]) == (0, CALL)
    assert "no tool call: no call of a tool" in err


@pytest.mark.parametrize("text", [CALL, "[TOOL_CALLS]weather{}", "<unheard of>weather</>"])
def test_a_model_of_no_known_format_is_told(run, model, tmp_path, text):
    folder = tmp_path / "plain"
    shutil.copytree(model, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = "{{ messages[0].content }}"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    code, out, err = run(text, "--json", request={"tools": [TOOL]}, folder=folder)
    assert (code, json.loads(out)["format"], json.loads(out)["content"]) == (0, "none", text)
    assert err.count("no tool call: the model's format of calls is not known (format: none)") == 1


def test_calls_that_nobody_asked_for_are_told(run):
    assert "no tool call: the request has no tools" in run(CALL)[2]
    request = {"tools": [TOOL], "tool_choice": "none"}
    assert "no tool call: tool_choice is 'none'" in run(CALL, request=request)[2]
    assert run("Hello")[2] == run("Hello", request=request)[2] == ""
    assert run(CALL, request={"tools": [TOOL]})[2] == ""


def test_a_cut_answer_says_length(run):
    code, out, _ = run(CALL[:-30], "--json", "--finish", "length", request={"tools": [TOOL]})
    answer = json.loads(out)
    assert (answer["content"], answer["calls"], answer["finish"]) == (CALL[:-30], [], "length")


def test_a_forced_call_is_read_as_the_server_forces_it(run):
    choice = {"type": "function", "function": {"name": "weather"}}
    request = {"tools": [TOOL], "tool_choice": choice}
    answer = json.loads(run('{"city": "A"}', "--json", request=request)[1])
    assert [call["arguments"] for call in answer["calls"]] == [{"city": "A"}]


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        ("{", 1, "request.json: no JSON"),
        ("", 1, "request.json: no JSON"),
        ("[1]", 1, "not a JSON object"),
        (b"\xff\xfe", 1, "request.json: not UTF-8"),
        ('{"tools": []}'.encode("utf-16"), 1, "request.json: not UTF-8"),
        ({"tools": 5}, 1, "'tools'"),
        ({"messages": []}, 1, "'messages'"),
    ],
)
def test_a_bad_request_is_refused_with_its_reason(run, request_, code, words):
    got, out, err = run("x", request=request_)
    assert (got, out) == (code, "") and words in err


def test_missing_and_bad_files_are_named(run, tmp_path):
    assert "there is no such folder" in run("x", folder=tmp_path / "none")[2]
    (tmp_path / "empty").mkdir()
    code, out, err = run("x", folder=tmp_path / "empty")
    assert (code, out) == (1, "") and "no tokenizer" in err
    code, _, err = run("x", "--request", str(tmp_path / "no.json"))
    assert code == 3 and "no.json" in err
    code, _, err = run(b"\xff\xfe")
    assert code == 1 and "not UTF-8" in err


def test_a_request_may_begin_with_a_byte_order_mark(run):
    body = b"\xef\xbb\xbf" + json.dumps({"tools": [TOOL]}).encode()
    code, out, _ = run(CALL, "--json", request=body)
    assert code == 0 and json.loads(out)["calls"]


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"config.json": {"model_type": "llama"}},
        {"tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer"}},
        {"tokenizer_config.json": {"tokenizer_class": "Qwen2Tokenizer"}, "vocab.json": {}},
    ],
)
def test_a_folder_without_a_tokenizer_is_told_in_a_line(run, tmp_path, files):
    folder = tmp_path / "bare"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    code, out, err = run("x", folder=folder)
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1 and "tokenizer.json (or tokenizer.model) is missing" in err


def test_a_damaged_tokenizer_is_told_in_a_line(run, tmp_path):
    (tmp_path / "bad").mkdir()
    for content in ("{}", "", '{"decoder": null, "model": {"type": "?"}}'):
        (tmp_path / "bad/tokenizer.json").write_text(content)
        code, out, err = run("x", folder=tmp_path / "bad")
        assert (code, out) == (1, "") and "no tokenizer: " in err
        assert len(err.splitlines()) == 1


def test_the_command_reads_standard_input_and_has_help(model):
    command = [sys.executable, str(ROOT / "scripts/read_answer.py")]
    done = subprocess.run(
        [*command, "--model", str(model), "--json"], input=b"Hello\n", capture_output=True,
        check=True, timeout=120,
    )  # fmt: skip
    assert json.loads(done.stdout)["content"] == "Hello\n"
    assert b"--finish" in subprocess.run([*command, "--help"], capture_output=True).stdout
    missing = subprocess.run(command, capture_output=True, timeout=120)
    assert missing.returncode == 2 and b"--model" in missing.stderr


@pytest.mark.parametrize("case", CASES[::7], ids=[case["id"] for case in CASES[::7]])
def test_what_models_wrote_comes_out_as_from_the_server(case, run, tmp_path):
    """The template ends in the case's prompt, as the model's own would."""
    family = next(family for family in FAMILIES if family.name == case["family"])
    folder = write_tokenizer(family, tmp_path / "model", ["some text"] * 3)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    prompt = json.dumps(case.get("prompt", "<|turn|>assistant\n"))
    config["chat_template"] = (
        config["chat_template"]
        .split("{% if false")[0]
        .replace("<|turn|>assistant\n", "{{" + prompt + "}}")
        + f"{{% if false %}}{{% raw %}}{family.telltale}{{% endraw %}}{{% endif %}}"
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    usual = {"write_file": ("path", "content"), "weather": ("city",)}
    tools = case.get("tools") or {
        name: {key: {"type": "string"} for key in keys} for name, keys in usual.items()
    }
    functions = [
        {"name": name, "parameters": {"type": "object", "properties": of}}
        for name, of in tools.items()
    ]
    request = {"tools": [{"type": "function", "function": of} for of in functions]}
    finish = case.get("finish", "stop")
    code, out, _ = run(case["text"], "--json", "--finish", finish, request=request, folder=folder)
    answer, want = json.loads(out), case["want"]
    assert code == 0
    assert [(c["name"], c["arguments"]) for c in answer["calls"]] == [
        (c["name"], c["arguments"]) for c in want["calls"]
    ]
    assert answer["content"] == want.get("content", answer["content"])
