"""How a rank knows that a sum over the ranks is the one that was due, and whole.

Pure arithmetic, for link.py; runs on the main thread of every rank. A link may lose a message, or
bring it twice or changed, and nothing below tells: later sums then hand over each other's bytes.
So every rank adds to a message its number, and beside each value a mirror of it: a constant of the
place less the value. In the sum, a value and its mirror make as many constants as there are ranks,
or some rank's part is missing, changed, or from another message; and the numbers make as many times
the number. Long bytes have a CRC among the values in place of mirrors.
"""

import functools
import zlib

import numpy as np

NUMBERS = 2**26  # messages, until their numbers begin again
CONSTANTS = 2**26  # times 8 ranks, with any value taken off, they still fit int32


class Garbled(Exception):
    """What a collective brought is not what the ranks sent. This rank must not go on with it."""

    def __init__(self, what: str, found: str) -> None:
        super().__init__(f"the link lost or garbled a message: {what}: {found}")


@functools.lru_cache(maxsize=1024)
def constants(what: str, count: int) -> np.ndarray:
    """[count] int32, not negative, from which mirrors are taken; other ones for each kind."""
    mixed = np.arange(count, dtype=np.uint64) * 0x9E3779B1 + zlib.crc32(f"{what} {count}".encode())
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = ((mixed ^ (mixed >> np.uint64(shift))) * factor) & 0xFFFFFFFF
    return (mixed % CONSTANTS).astype(np.int32)


def prove(total: np.ndarray, ranks: int, what: str, number: int) -> list[int]:
    """The values of a sum over so many ranks, without number and mirrors. Raises Garbled.

    total: [values, number, their mirrors] int32.
    """
    count = len(total) // 2
    made, due = total[:count] + total[count:], _due(what, count, ranks)
    values = total[:count].tolist()
    if (made != due).any():
        wrong = np.flatnonzero(made != due)
        place = wrong[0]
        raise Garbled(
            f"{what} (message {number} of {ranks} ranks)",
            f"{len(wrong)} of {count} values do not add up with their mirrors, the first is "
            f"{values[place]} with {total[count + place]}, which should make {due[place]}",
        )
    if values[-1] != ranks * number:
        raise Garbled(
            f"{what} (message {number} of {ranks} ranks)",
            f"the ranks' message numbers make {values[-1]}, which should be {ranks * number}",
        )
    return values[:-1]


@functools.lru_cache(maxsize=1024)
def _due(what: str, count: int, ranks: int) -> np.ndarray:
    return constants(what, count) * ranks


def split_crc(data: bytes) -> list[int]:
    """Its CRC as two values, since four bytes would not fit an int32 that others are added to."""
    crc = zlib.crc32(data)
    return [crc & 0xFFFF, crc >> 16]
