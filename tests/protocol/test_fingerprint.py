"""The hash of the server's code, by which ranks of different versions find each other out."""

import shutil

import pytest

from server.observe import versions
from server.protocol.fingerprint import code_fingerprint
from tests.support.paths import ROOT

SERVER = ROOT / "server"
ROOMS = sorted({path.parent.relative_to(SERVER) for path in SERVER.rglob("*.py")})


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(
        SERVER, tmp_path / "elsewhere" / "server", ignore=shutil.ignore_patterns("__pycache__")
    )


def test_a_copy_of_the_code_has_the_hash_of_the_handshake(copy):
    """Wherever the checkout lies, and whatever Python has compiled there."""
    (copy / "__pycache__").mkdir()
    (copy / "__pycache__" / "main.cpython-311.pyc").write_bytes(b"compiled")
    assert code_fingerprint(copy.parent) == versions.code_fingerprint()


@pytest.mark.parametrize("room", ROOMS, ids=str)
def test_any_change_in_any_room_is_another_hash(copy, room):
    file = max((copy / room).glob("*.py"), key=lambda path: path.stat().st_size)
    text = file.read_text("utf-8")
    hashes = [code_fingerprint(copy.parent)]
    file.write_text(text + "\n", "utf-8")
    hashes.append(code_fingerprint(copy.parent))
    file.rename(file.with_name("renamed.py"))
    hashes.append(code_fingerprint(copy.parent))
    file.with_name("renamed.py").unlink()
    hashes.append(code_fingerprint(copy.parent))
    (copy / room / "added.py").write_text("", "utf-8")
    hashes.append(code_fingerprint(copy.parent))
    assert len(set(hashes)) == 5
    (copy / room / "added.py").unlink()
    file.write_text(text, "utf-8")
    assert code_fingerprint(copy.parent) == hashes[0]


def test_a_file_in_another_room_is_another_hash(copy):
    before = code_fingerprint(copy.parent)
    (copy / "startup" / "stages.py").rename(copy / "lifecycle" / "stages.py")
    assert code_fingerprint(copy.parent) != before
