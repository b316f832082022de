"""A model folder in a few hashes: what changes them, and what does not."""

import json
import struct

import pytest

from server.protocol.fingerprint import fingerprint, fingerprint_files


def write_weights(path, header: dict, data: bytes = b"\x00" * 64) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text('{"a": 1}')
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "chat_template.jinja").write_text("{{ x }}")
    write_weights(tmp_path / "model-1.safetensors", {"w": {"shape": [4, 4]}})
    return tmp_path


def test_every_file_that_matters_is_in_it(folder):
    (folder / "README.md").write_text("not part of the model")
    assert list(fingerprint_files(folder)) == [
        "chat_template.jinja", "config.json", "model-1.safetensors", "tokenizer.json",
    ]  # fmt: skip


def test_the_same_folder_gives_the_same_result(folder):
    assert fingerprint_files(folder) == fingerprint_files(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja"])
def test_a_small_file_counts_by_content(folder, name):
    before = fingerprint_files(folder)
    (folder / name).write_text('{"a": 2}')
    after = fingerprint_files(folder)
    assert [n for n in before if before[n] != after[n]] == [name]


def test_weights_count_by_header_and_size(folder):
    path = folder / "model-1.safetensors"
    before = fingerprint_files(folder)[path.name]
    write_weights(path, {"w": {"shape": [4, 4]}}, b"\x01" * 64)
    assert fingerprint_files(folder)[path.name] == before  # reading it all would take too long
    write_weights(path, {"w": {"shape": [4, 5]}})
    assert fingerprint_files(folder)[path.name] != before
    write_weights(path, {"w": {"shape": [4, 4]}}, b"\x00" * 63)
    assert fingerprint_files(folder)[path.name] != before


def test_a_missing_or_added_file_shows(folder):
    before = fingerprint_files(folder)
    (folder / "model-1.safetensors").rename(folder / "model-2.safetensors")
    assert set(before) ^ set(fingerprint_files(folder)) == {
        "model-1.safetensors", "model-2.safetensors",
    }  # fmt: skip


def test_what_the_system_leaves_behind_does_not_count(folder):
    """macOS writes ._config.json beside config.json on some disks; ranks would differ by it."""
    before = fingerprint_files(folder)
    (folder / "._config.json").write_bytes(b"\x00\x05\x16\x07")
    (folder / "._model-1.safetensors").write_bytes(b"\x00")
    (folder / "a-folder.json").mkdir()
    (folder / "dangling.json").symlink_to(folder / "nowhere")
    assert fingerprint_files(folder) == before


@pytest.mark.parametrize("content", [b"", b"\x01", b"\xff" * 8, b"\xff" * 20, struct.pack("<Q", 0)])
def test_broken_weights_are_described_too(folder, content):
    (folder / "model-1.safetensors").write_bytes(content)
    assert fingerprint_files(folder)["model-1.safetensors"].startswith(f"{len(content)} bytes")


def test_a_fingerprint_ignores_the_order_of_keys_only():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint([1, 2]) != fingerprint([2, 1])
    assert fingerprint("a", "b") != fingerprint("ab")
