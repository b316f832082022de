"""What the ranks tell of themselves, beside what their collectives carry anyway."""

import mmap

import pytest

pytest.importorskip("mlx.core")

import mlx.core as mx
import numpy as np

from server.fleet import Fleet, Vitals
from server.heartbeat import BEAT_S, Heartbeat
from server.machine import describe_machine, measure_vitals, resident_bytes
from server.messages import Beat, Cancel, decode, encode
from server.recorder import Recorder

GIB = 2**30
KIB = 1024


class TwoLink:
    """This rank's side of a link of two; `theirs` is what the other rank brings to the next sum."""

    size = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.theirs: list[int] = []
        self.sums: list[list[int]] = []

    def sum(self, values: mx.array) -> mx.array:
        mine = values.tolist()
        self.sums.append(mine)
        assert len(mine) == len(self.theirs), "ranks parted ways"
        return values + mx.array(self.theirs, dtype=mx.int32)


def heartbeat(rank: int, **vitals) -> tuple[Heartbeat, TwoLink, Fleet]:
    link, fleet = TwoLink(rank), Fleet()
    told = Vitals(**{"memory_used": 3 * GIB, "memory_peak": 5 * GIB, "rss": 6 * KIB} | vitals)
    return Heartbeat(link, fleet, Recorder(), lambda: told), link, fleet


def test_a_meeting_brings_the_header_and_every_ranks_memory_in_one_sum():
    beat, link, fleet = heartbeat(0)
    link.theirs = [0, 0, 0, 0, 0, 0, 7, 8, 9]
    assert beat.share_ints([4, 5, 6]) == [4, 5, 6]
    assert len(link.sums) == 1
    assert fleet.vitals == (
        Vitals(3 * GIB, 5 * GIB, 6 * KIB), Vitals(7 * KIB, 8 * KIB, 9 * KIB),
    )  # fmt: skip
    assert fleet.age() < 5


def test_a_worker_adds_to_its_own_slots_alone():
    beat, link, _ = heartbeat(1)
    link.theirs = [4, 5, 6, 1, 2, 3, 0, 0, 0]
    assert beat.share_ints([99, 99, 99]) == [4, 5, 6]  # its own word counts for nothing
    assert link.sums == [[0, 0, 0, 0, 0, 0, 3 * GIB // KIB, 5 * GIB // KIB, 6]]


@pytest.mark.parametrize("length", [1, 4, 7, 1000])
def test_a_bundle_comes_whole_with_the_memory_behind_it(length):
    data = bytes(np.random.default_rng(length).integers(0, 256, length, dtype=np.uint8))
    first, link, fleet = heartbeat(0)
    link.theirs = [0] * -(-length // 4) + [0, 0, 0, 1, 2, 3]
    assert first.share_bytes(data, length) == data
    second, other, _ = heartbeat(1)
    other.theirs = link.sums[0]
    assert second.share_bytes(b"", length) == data
    assert len(link.sums) == len(other.sums) == 1
    assert fleet.vitals[1] == Vitals(KIB, 2 * KIB, 3 * KIB)


def test_memory_beyond_the_counter_is_told_as_the_most_there_is():
    beat, link, fleet = heartbeat(0, rss=2**50)
    link.theirs = [0] * 6
    beat.share_ints([])
    assert fleet.vitals[0].rss == (2**31 - 1) * KIB


def test_a_beat_is_sent_only_when_nothing_was_heard_for_long():
    beat, _, _ = heartbeat(0)
    waiting = []
    compose = beat.beating(lambda: list(waiting))
    assert compose() == []
    beat._heard -= BEAT_S + 1
    assert compose() == [Beat()]
    waiting.append(Cancel(1))
    assert compose() == [Cancel(1)]


def test_a_beat_survives_the_wire():
    assert decode(encode([Beat()])) == [Beat()]


# The machine itself.


def test_this_machine_describes_itself():
    machine = describe_machine()
    assert machine.chip and machine.os
    assert machine.memory_total > GIB


def test_memory_grows_with_what_is_held():
    before = measure_vitals()
    held = mx.ones((4 * 2**20,), dtype=mx.float32)
    mx.eval(held)
    after = measure_vitals()
    assert after.memory_used - before.memory_used >= held.nbytes
    assert after.memory_peak >= after.memory_used
    # MLX may give its arrays memory that it had before, so this is told by pages of our own.
    resident = resident_bytes()
    with mmap.mmap(-1, 64 * 2**20) as pages:
        pages.write(b"x" * len(pages))
        assert measure_vitals().rss - resident >= len(pages) // 2
