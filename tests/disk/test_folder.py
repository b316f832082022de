"""A rank's folder: what is cleared away, and what never is."""

import os
import shutil

import numpy as np
import pytest

from server.disk.entry_file import Broken, Part, Span, Stored, write_part
from server.disk.folder import Folder, Lock, Place, Unusable

MINE, OTHER, THIRD = "0" * 16, "1" * 16, "2" * 16


def part_of(maker: str, name: str, start: int = 0, end: int = 10, base: str = "") -> Part:
    return Part(
        maker,
        name,
        base,
        start,
        end,
        5,
        (Stored("float32", "uint32", (1, 2, end - start, 4), True),),
        [],
    )


def write(folder: Folder, name: str, maker: str = "", start: int = 0, end: int = 10, base=""):
    part = part_of(maker or folder.maker, name, start, end, base)
    array = np.arange(2 * end * 4, dtype=np.uint32).reshape(1, 2, end, 4)
    return write_part(folder.path, part, b"label", [array], lambda size: None)


def test_whole_files_are_found_with_their_labels_and_the_others_cleared_away(tmp_path):
    folder = Folder(tmp_path, 0, MINE, 10**9)
    for name in ("a", "b", "c", "d", "e"):
        write(folder, name)
    (folder.path / "a.part").write_bytes(b"half of it")
    os.truncate(folder.path / "b.kept", 100)
    (folder.path / "c.kept").rename(folder.path / "x.kept")  # says that it is c
    os.truncate(folder.path / "d.kept", 0)
    write(folder, "f", maker=OTHER)
    found = folder.scan(labels=True)
    assert {name: (one.place, one.label) for name, one in found.items()} == {
        name: (Place("", 0, 10), b"label") for name in ("a", "e")
    }
    assert sorted(path.name for path in folder.path.iterdir()) == ["a.kept", "e.kept"]


def test_a_folder_is_of_one_rank_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("server.disk.folder.LOCK_WAIT_S", 0)
    first = Folder(tmp_path, 0, MINE, 10**9)
    Folder(tmp_path, 1, MINE, 10**9)
    with pytest.raises(Unusable, match=r"rank-0 is in use by another server"):
        Folder(tmp_path, 0, OTHER, 10**9)
    first.close()
    Folder(tmp_path, 0, OTHER, 10**9)


def test_other_models_give_way_the_last_used_longest_and_nothing_else_does(tmp_path):
    size = 0
    for age, maker in ((3, OTHER), (2, THIRD)):
        folder = Folder(tmp_path, 0, maker, 10**9)
        size = write(folder, "a")
        os.utime(folder.path / "a.kept", (10**9 - age, 10**9 - age))
        folder.close()
    (tmp_path / "rank-0" / "pictures").mkdir()
    (tmp_path / "rank-0" / "pictures" / "a.kept").write_bytes(b"0" * 10**6)
    mine = Folder(tmp_path, 0, MINE, 3 * size)
    write(mine, "a")
    mine.make_room()
    assert (tmp_path / "rank-0" / OTHER).exists()
    mine.make_room(size)
    assert not (tmp_path / "rank-0" / OTHER).exists()
    assert (tmp_path / "rank-0" / THIRD).exists()
    mine.make_room(2 * size)
    assert not (tmp_path / "rank-0" / THIRD).exists()
    assert (tmp_path / "rank-0" / "pictures" / "a.kept").exists()
    assert (mine.path / "a.kept").exists()


def test_what_a_model_that_is_loaded_keeps_is_not_cleared_away_for_another(tmp_path):
    """It was deleted whole, as that of a model of other days, while rank 0 still counted on it."""
    lock = Lock()
    mine = Folder(tmp_path, 0, MINE, 10, lock)
    loaded = Folder(tmp_path, 0, OTHER, 10, lock)
    write(loaded, "a")
    gone = Folder(tmp_path, 0, THIRD, 10, lock)
    write(gone, "b")
    gone.close()
    mine.make_room(1000)
    assert (loaded.path / "a.kept").exists() and not gone.path.exists()
    loaded.close()
    mine.make_room(1000)
    assert not loaded.path.exists()


def test_two_models_of_the_same_files_do_not_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("server.disk.folder.LOCK_WAIT_S", 0)
    lock = Lock()
    first = Folder(tmp_path, 0, MINE, 10, lock)
    with pytest.raises(Unusable, match="same files"):
        Folder(tmp_path, 0, MINE, 10, lock)
    first.close()
    Folder(tmp_path, 0, MINE, 10, lock).close()
    Folder(tmp_path, 0, OTHER, 10).close()  # and nobody holds the lock


def test_a_text_is_read_from_the_files_that_have_it(tmp_path):
    folder = Folder(tmp_path, 0, MINE, 10**9)
    write(folder, "a", end=10)
    write(folder, "b", start=8, end=20, base="a")
    write(folder, "c", start=20, end=30, base="b")
    folder.places = {name: one.place for name, one in folder.scan(labels=False).items()}
    assert folder.chain("c", 25) == [Span("a", 0, 8), Span("b", 8, 20), Span("c", 20, 25)]
    assert folder.chain("b", 12) == [Span("a", 0, 8), Span("b", 8, 12)]
    assert folder.chain("a", 10) == [Span("a", 0, 10)]
    del folder.places["a"]
    with pytest.raises(Broken, match="a is not there"):
        folder.chain("c", 25)


def test_what_is_deleted_twice_is_gone(tmp_path):
    folder = Folder(tmp_path, 0, MINE, 10**9)
    write(folder, "a")
    folder.remove(["a", "b"])
    folder.remove(["a"])
    folder.touch(["a"])
    assert list(folder.path.iterdir()) == []


def test_a_folder_that_somebody_takes_away_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr("server.disk.folder.LOCK_WAIT_S", 0)
    folder = Folder(tmp_path / "kept", 0, MINE, 10**9)
    write(folder, "a")
    folder.make_again()
    assert list(folder.scan(labels=False)) == ["a"]  # it was there
    shutil.rmtree(tmp_path / "kept")
    folder.remove(["a"])
    folder.make_again()
    assert folder.path.stat().st_mode & 0o777 == 0o700
    write(folder, "b")
    assert list(folder.scan(labels=False)) == ["b"]
    with pytest.raises(Unusable, match="in use by another"):
        Folder(tmp_path / "kept", 0, MINE, 10**9)
