"""What a model folder holds: handshake, doctor, copy and check see the same files."""

import json
import pathlib
from pathlib import Path

import pytest

from scripts.lib.doctor import probe
from scripts.lib.model.model_folder import folder_problems
from scripts.lib.sync import hub
from scripts.lib.sync.manifest import list_names
from server.protocol import fingerprint
from server.protocol.fingerprint import fingerprint_files

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "generation_config.json": b"{}",
    "tokenizer_config.json": b'{"auto_map": {"AutoTokenizer": ["tokenization_x.Tok", null]}}',
    "special_tokens_map.json": b"{}",
    "tiktoken.model": b"AA== 0",
    "added.tiktoken": b"AA== 0",
    "merges.txt": b"a b",
    "chat_template.jinja": b"{{ messages }}",
    "chat_template.json": b'{"chat_template": "{{ messages }}"}',
    "tokenization_x.py": b"class Tok:\n    pass\n",
    "model.safetensors": b"\2\0\0\0\0\0\0\0{}",
}
NOT_THE_MODEL_S = {"README.md": b"words", "._config.json": b"\0", ".hub.json": b"{}"}


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, content in (FILES | NOT_THE_MODEL_S).items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def probed(folder: Path) -> dict[str, str]:
    """What the doctor's probe says, run as on a host: its text behind the shared one."""
    text = "\n".join(
        Path(module.__file__).read_text("utf-8") for module in (fingerprint, probe)
    )  # fmt: skip
    names: dict = {"__name__": "probe", "pathlib": pathlib}
    exec(compile(text, "probe", "exec"), names)
    return names["look_at_model"]({"root": "", "model_dir": str(folder)}, None)["files"]


def test_the_doctor_and_the_handshake_describe_the_same_files_in_the_same_words(folder):
    assert probed(folder) == fingerprint_files(folder)
    assert fingerprint_files(folder).keys() == FILES.keys()


def test_the_copy_and_the_download_bring_all_of_them(folder):
    assert FILES.keys() <= set(list_names(folder))
    assert [name for name in FILES if not hub._is_wanted(name)] == []


def test_a_whole_folder_is_whole(folder):
    assert folder_problems(folder) == []


@pytest.mark.parametrize("name", FILES)
def test_a_changed_or_missing_file_is_seen_by_all_that_compare_hosts(folder, name):
    for see in (fingerprint_files, probed):
        before = see(folder)
        (folder / name).write_bytes(FILES[name] + b" ")
        assert {n for n in before if see(folder)[n] != before[n]} == {name}
        (folder / name).unlink()
        assert before.keys() - see(folder).keys() == {name}
        (folder / name).write_bytes(FILES[name])
    (folder / name).unlink()
    assert name not in list_names(folder)


@pytest.mark.parametrize(
    "name", ["config.json", "tiktoken.model", "tokenization_x.py", "model.safetensors"]
)
def test_the_check_sees_that_a_file_is_missing(folder, name):
    (folder / name).unlink()
    assert folder_problems(folder)


@pytest.mark.parametrize("name", FILES)
def test_the_check_sees_a_file_that_broke_off(folder, name):
    (folder / name).write_bytes(b"")
    (problem,) = (p for p in folder_problems(folder) if name in p)
    assert str(folder / name) in problem
    if name.endswith((".json", ".py")):
        (folder / name).write_bytes(b"{(")
        assert any(name in problem for problem in folder_problems(folder))


def test_code_that_the_tokenizer_json_makes_needless_may_be_missing(folder):
    (folder / "tokenizer.json").write_text(json.dumps({}))
    (folder / "tokenization_x.py").unlink()
    assert folder_problems(folder) == []
