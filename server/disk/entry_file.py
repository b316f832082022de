"""One kept prefix, as a file: its layout, how it is written, and how it is proven when it is read.

On the disk's threads (worker.py); headers also at the start, on the main thread. Imports no mlx:
arrays are unsigned words here, of the size of what they stand for.

A file holds what a rank's caches have for the tokens from start to end; what comes before is in the
file that it names as its base, of which it may use a part. So the next turn of a conversation adds
a file, and prompts that part share one. What does not grow with the text (windows, states) is in
each file whole, as it is at its end.

    MAGIC, length and CRC of the header; the header (JSON); label; arrays; CRCs of label and arrays;
    CRC of those

A file is written aside and renamed when all of it is on the disk: a name that stands is a whole
file, unless the disk has lost something, which the CRCs show.
"""

import contextlib
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

MAGIC = b"MLXKEPT1"  # the 1 is the layout's version
HEAD = struct.Struct("<8sII")
CRC = struct.Struct("<I")
ENDING, UNFINISHED = ".kept", ".part"
PIECE_BYTES = 1 << 20  # between two looks at whether to go on
HEADER_MOST = 1 << 24  # bytes
LABEL_MOST = 1 << 27  # bytes

Pause = Callable[[int], None]  # is told the bytes of each piece; may wait, and may raise


class Broken(Exception):
    """A file does not hold what it should. Says why."""


@dataclass(frozen=True)
class Stored:
    """One array. dtype: as MLX calls it; words: the unsigned type of the same size. grows: has the
    tokens on its last axis but one, and holds those of its file."""

    dtype: str
    words: str
    shape: tuple[int, ...]
    grows: bool

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.words).itemsize

    def of_length(self, tokens: int) -> "Stored":
        """The same for so many tokens, if it grows."""
        if not self.grows:
            return self
        *before, _, width = self.shape
        return Stored(self.dtype, self.words, (*before, tokens, width), True)


@dataclass(frozen=True)
class Part:
    """What a file holds. maker: who may use it, the model's and the rank's fingerprint; caches: how
    the arrays stand in the caches, for who made them. label: bytes beside the arrays."""

    maker: str
    name: str
    base: str  # "": none
    start: int  # tokens
    end: int
    label: int
    arrays: tuple[Stored, ...]
    caches: Any


@dataclass(frozen=True)
class Span:
    """Tokens that are read from a file."""

    name: str
    start: int
    end: int


def path_of(folder: Path, name: str) -> Path:
    return folder / (name + ENDING)


def write_part(
    folder: Path, part: Part, label: bytes, arrays: Sequence[np.ndarray], pause: Pause
) -> int:
    """Writes a file; returns its bytes. arrays: whole ones; of those that grow the tokens from
    start to end are taken. Raises OSError, and what pause raises; then nothing is left of it."""
    aside = folder / (part.name + UNFINISHED)
    header = json.dumps(asdict(part), separators=(",", ":")).encode()
    with contextlib.suppress(FileNotFoundError):
        aside.unlink()
    try:
        number = os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with open(number, "wb", buffering=0) as file:
            _write(file, HEAD.pack(MAGIC, len(header), zlib.crc32(header)) + header + label)
            crcs = [zlib.crc32(label)]
            for stored, array in zip(part.arrays, arrays, strict=True):
                crc = 0
                for piece in _pieces(part, stored, array):
                    crc = zlib.crc32(piece, crc)
                    _write(file, piece)
                    pause(len(piece))
                crcs.append(crc)
            footer = b"".join(map(CRC.pack, crcs))
            _write(file, footer + CRC.pack(zlib.crc32(footer)))
            os.fsync(file.fileno())
            size = file.tell()
        os.rename(aside, path_of(folder, part.name))
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
    sync_folder(folder)
    return size


def sync_folder(folder: Path) -> None:
    """So that a name that was given or taken survives a crash."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def read_header(file: IO[bytes]) -> Part:
    """What the file says that it holds, if it is as long as it says. Raises OSError and Broken."""
    data = file.read(HEAD.size)
    if len(data) < HEAD.size or data[: len(MAGIC)] != MAGIC:
        raise Broken("is not of this layout")
    _, length, crc = HEAD.unpack(data)
    header = file.read(length) if length <= HEADER_MOST else b""
    if len(header) != length or zlib.crc32(header) != crc:
        raise Broken("its header is damaged")
    said = json.loads(header)
    try:
        arrays = tuple(Stored(**{**one, "shape": tuple(one["shape"])}) for one in said["arrays"])
        part = Part(**{**said, "arrays": arrays})
    except (TypeError, KeyError) as error:
        raise Broken(f"its header lacks something: {error}") from None
    size = os.fstat(file.fileno()).st_size
    if size != _size(part, length):
        raise Broken(f"has {size} bytes, not {_size(part, length)}")
    return part


def read_label(file: IO[bytes], part: Part) -> bytes:
    """The label, proven; file stands behind the header. Raises OSError and Broken."""
    label = file.read(part.label) if part.label <= LABEL_MOST else b""
    if len(label) != part.label or zlib.crc32(label) != _crcs(file, part)[0]:
        raise Broken("its label is damaged")
    return label


def read_arrays(
    folder: Path, maker: str, chain: Sequence[Span], pause: Pause
) -> Iterator[tuple[Stored, np.ndarray]]:
    """The arrays of the last file of the chain, one after another, each proven; those that grow
    with the tokens of all spans, one span after another. Raises OSError, Broken, what pause raises.
    """
    with contextlib.ExitStack() as opened:
        files, parts, crcs, places = [], [], [], []
        for span in chain:
            file = opened.enter_context(path_of(folder, span.name).open("rb", buffering=0))
            part = read_header(file)
            if (part.maker, part.name) != (maker, span.name):
                raise Broken(f"{span.name} is of somebody else")
            if not part.start <= span.start <= span.end <= part.end:
                raise Broken(f"{span.name} has other tokens than it should")
            places.append(file.tell() + part.label)
            files.append(file)
            parts.append(part)
            crcs.append(_crcs(file, part))
        tip, length = parts[-1], chain[-1].end
        for one in parts:
            if _alike(one) != _alike(tip):
                raise Broken(f"{one.name} and {tip.name} do not go together")
        for number, stored in enumerate(tip.arrays):
            whole = stored.of_length(length)
            into = np.empty(whole.shape, dtype=whole.words)
            for place, part in enumerate(parts):
                here = part.arrays[number]
                if stored.grows or part is tip:
                    files[place].seek(places[place])
                    crc = _read_array(files[place], part, here, chain[place], into, pause)
                    if crc != crcs[place][number + 1]:
                        raise Broken(f"{part.name}: an array is damaged")
                places[place] += here.nbytes
            yield whole, into


def _read_array(
    file: IO[bytes], part: Part, stored: Stored, span: Span, into: np.ndarray, pause: Pause
) -> int:
    """One array of a file into its place in the whole one. Returns the CRC of all of it."""
    if not stored.grows:
        return _fill(file, _bytes_of(into.reshape(-1)), 0, pause)
    *_, tokens, width = stored.shape
    before = span.start - part.start
    word = into.dtype.itemsize
    lost = np.empty(max(before, tokens) * width * word, dtype=np.uint8)
    after = part.end - span.end
    crc = 0
    for row in _rows(into):
        crc = _fill(file, lost[: before * width * word].data, crc, pause)
        crc = _fill(file, _bytes_of(row[span.start : span.end]), crc, pause)
        crc = _fill(file, lost[: after * width * word].data, crc, pause)
    return crc


def _fill(file: IO[bytes], place: memoryview, crc: int, pause: Pause) -> int:
    while len(place):
        got = file.readinto(place[:PIECE_BYTES])
        if not got:
            raise Broken("ends too soon")
        crc = zlib.crc32(place[:got], crc)
        place = place[got:]
        pause(got)
    return crc


def _pieces(part: Part, stored: Stored, array: np.ndarray) -> Iterable[memoryview]:
    """What of an array goes into the file. Nothing is copied where it lies in one piece."""
    rows = [array]
    if stored.grows:
        rows = [row[part.start : part.end] for row in _rows(array)]
    for row in rows:
        data = _bytes_of(np.ascontiguousarray(row).reshape(-1))
        for at in range(0, len(data), PIECE_BYTES):
            yield data[at : at + PIECE_BYTES]


def _rows(array: np.ndarray) -> np.ndarray:
    """[rows, tokens, width]; a width may be 0."""
    *before, tokens, width = array.shape
    return array.reshape(int(np.prod(before)), tokens, width)


def _bytes_of(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _write(file: IO[bytes], data: bytes | memoryview) -> None:
    data = memoryview(data)
    while len(data):
        data = data[file.write(data) :]


def _size(part: Part, header: int) -> int:
    arrays = sum(one.nbytes for one in part.arrays)
    return HEAD.size + header + part.label + arrays + (len(part.arrays) + 2) * CRC.size


def _crcs(file: IO[bytes], part: Part) -> list[int]:
    """Of the label and the arrays."""
    size = (len(part.arrays) + 2) * CRC.size
    file.seek(-size, os.SEEK_END)
    footer = file.read(size)
    *crcs, own = [number for (number,) in CRC.iter_unpack(footer)] or [0]
    if len(footer) != size or zlib.crc32(footer[: -CRC.size]) != own:
        raise Broken("its checksums are damaged")
    return crcs


def _alike(part: Part) -> tuple:
    """What files of one text must have in common."""
    return tuple(one.of_length(0) if one.grows else () for one in part.arrays)
