"""A kept prefix as a file: what is written comes back, and what has changed is noticed."""

import os

import numpy as np
import pytest

from server.disk.entry_file import (
    Broken,
    Part,
    Span,
    Stored,
    path_of,
    read_arrays,
    read_header,
    read_label,
    write_part,
)

HEADS, WIDTH, TOKENS = 3, 4, 40
KEYS = np.random.default_rng(1).integers(0, 2**16, (1, HEADS, TOKENS, WIDTH), dtype=np.uint16)
STATE = np.arange(35, dtype=np.uint32).reshape(5, 7)
SPANS = [Span("a", 0, 10), Span("b", 10, 25), Span("c", 25, 40)]


def part_of(name: str, base: str, start: int, end: int, width: int = WIDTH) -> Part:
    arrays = (
        Stored("bfloat16", "uint16", (1, HEADS, end - start, width), True),
        Stored("float32", "uint32", STATE.shape, False),
        Stored("float32", "uint32", (0, 3), False),
        Stored("int32", "uint32", (), False),
    )
    return Part("maker", name, base, start, end, 5, arrays, [{"any": 1}])


def write_chain(folder) -> None:
    """Three files; the second one uses part of the first."""
    for name, base, start, end in (("a", "", 0, 12), ("b", "a", 10, 25), ("c", "b", 25, 40)):
        arrays = [KEYS, STATE + end, np.empty((0, 3), np.uint32), np.array(7, np.uint32)]
        write_part(folder, part_of(name, base, start, end), b"LABEL", arrays, lambda size: None)


def read(folder, spans=SPANS, maker: str = "maker") -> list[np.ndarray]:
    return [array for _, array in read_arrays(folder, maker, spans, lambda size: None)]


def test_a_text_in_several_files_comes_back_whole(tmp_path):
    write_chain(tmp_path)
    keys, state, empty, scalar = read(tmp_path)
    assert (keys == KEYS).all() and (state == STATE + 40).all()
    assert empty.shape == (0, 3) and scalar == 7
    keys, state, *_ = read(tmp_path, [Span("a", 0, 10), Span("b", 10, 17)])
    assert (keys == KEYS[:, :, :17]).all()


def test_its_header_and_label_come_back(tmp_path):
    write_chain(tmp_path)
    with path_of(tmp_path, "b").open("rb") as file:
        part = read_header(file)
        assert part == part_of("b", "a", 10, 25)
        assert read_label(file, part) == b"LABEL"


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_a_changed_bit_anywhere_is_noticed(tmp_path, name):
    write_chain(tmp_path)
    path = path_of(tmp_path, name)
    whole = path.read_bytes()
    label = whole.index(b"LABEL")
    for place in range(len(whole)):
        if label <= place < label + 5:
            continue  # that is looked at by who needs it
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        try:
            # What does not grow is read of the last file alone: elsewhere it may be anything.
            arrays = read(tmp_path)
            assert name != "c"
            assert (arrays[0] == KEYS).all() and (arrays[1] == STATE + 40).all()
        except (Broken, ValueError):
            pass
    path.write_bytes(whole)
    read(tmp_path)


def test_a_changed_label_is_noticed(tmp_path):
    write_chain(tmp_path)
    path = path_of(tmp_path, "a")
    path.write_bytes(path.read_bytes().replace(b"LABEL", b"LAPEL"))
    with path.open("rb") as file, pytest.raises(Broken, match="label"):
        read_label(file, read_header(file))


def test_a_file_of_any_other_length_is_noticed(tmp_path):
    write_chain(tmp_path)
    path = path_of(tmp_path, "c")
    whole = path.read_bytes()
    for data in (whole + b"\0", *(whole[:length] for length in range(0, len(whole), 7))):
        path.write_bytes(data)
        with pytest.raises(Broken):
            read(tmp_path)


def test_files_that_do_not_go_together_are_refused(tmp_path):
    write_chain(tmp_path)
    with pytest.raises(Broken, match="somebody else"):
        read(tmp_path, maker="another")
    with pytest.raises(Broken, match="other tokens"):
        read(tmp_path, [Span("a", 0, 13)])
    wide = np.zeros((1, HEADS, TOKENS, 5), np.uint16)
    arrays = [wide, STATE, np.empty((0, 3), np.uint32), np.array(7, np.uint32)]
    write_part(tmp_path, part_of("d", "a", 10, 40, 5), b"LABEL", arrays, lambda size: None)
    with pytest.raises(Broken, match="do not go together"):
        read(tmp_path, [Span("a", 0, 10), Span("d", 10, 40)])


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_of_what_was_not_finished_nothing_is_left(tmp_path, error):
    def stop(size: int) -> None:
        raise error

    with pytest.raises(type(error)):
        arrays = [KEYS, STATE, np.empty((0, 3), np.uint32), np.array(7, np.uint32)]
        write_part(tmp_path, part_of("a", "", 0, 40), b"LABEL", arrays, stop)
    assert os.listdir(tmp_path) == []


def test_large_arrays_are_written_and_read_in_pieces(tmp_path):
    large = np.random.default_rng(2).integers(0, 2**32, (1, 1, 700, 1024), dtype=np.uint32)
    part = Part("maker", "a", "", 0, 700, 0, (Stored("float32", "uint32", large.shape, True),), [])
    sizes: list[int] = []
    write_part(tmp_path, part, b"", [large], sizes.append)
    assert sum(sizes) == large.nbytes and max(sizes) <= 2**20
    sizes.clear()
    ((_, array),) = read_arrays(tmp_path, "maker", [Span("a", 0, 700)], sizes.append)
    assert (array == large).all() and max(sizes) <= 2**20
