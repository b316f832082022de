"""Keys of a file that changes while the server runs."""

import os
import threading

from server.protocol.settings import read_keys
from server.transport.keys import KeyRing


class KeyFile:
    """API_KEY_FILE, and a ring that began with it."""

    def __init__(self, path) -> None:
        self.path = path
        self.write("one\n")
        self.ring = KeyRing(read_keys(("given",), str(path)), ("given",), str(path))

    def write(self, text: str) -> None:
        """As editors do: another file takes its place."""
        fresh = self.path.with_suffix(".new")
        fresh.write_text(text)
        os.replace(fresh, self.path)

    def keys(self) -> list[str]:
        return [key for key, _ in self.ring.now()]


def test_a_new_key_opens_and_an_old_one_closes_at_once(tmp_path):
    file = KeyFile(tmp_path / "keys")
    assert file.keys() == ["given", "one"]
    file.write("one\ntwo  of bob\n")
    assert file.ring.now() == (("given", "key 1"), ("one", "key 2"), ("two", "of bob"))
    file.write("two\n")
    assert file.keys() == ["given", "two"]


def test_a_change_in_place_of_the_same_length_is_seen(tmp_path):
    file = KeyFile(tmp_path / "keys")
    assert file.keys() == ["given", "one"]
    with file.path.open("r+") as kept:
        kept.write("two")
    os.utime(file.path, ns=(1, 1))
    assert file.keys() == ["given", "two"]


def test_what_is_no_list_of_keys_changes_nothing_and_is_said_once(tmp_path, caplog):
    """An editor may empty the file before it writes; nobody must be let in, or locked out."""
    path = tmp_path / "keys"
    path.write_text("one\n")
    ring = KeyRing(read_keys((), str(path)), (), str(path))
    for spoil in (lambda: path.write_bytes(b"\xff"), lambda: path.write_text(""), path.unlink):
        ring.now()
        caplog.clear()
        spoil()
        assert [[key for key, _ in ring.now()] for _ in range(3)] == [["one"]] * 3
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "API_KEY_FILE" in caplog.text and "the 1 keys from before hold on" in caplog.text
    path.write_text("two\n")
    assert ring.now()[0][0] == "two"


def test_a_file_that_did_not_change_is_not_read_again(tmp_path):
    file = KeyFile(tmp_path / "keys")
    reads = []

    def read(given, path):
        reads.append(path)
        return read_keys(given, path)

    ring = KeyRing((), (), str(file.path), read)
    threads = [threading.Thread(target=ring.now) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ring.now()
    assert len(reads) == 1


def test_without_a_file_the_keys_of_the_start_hold():
    assert KeyRing((("a", "key 1"),)).now() == (("a", "key 1"),)
