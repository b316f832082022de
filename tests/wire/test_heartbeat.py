"""What the ranks tell of themselves, beside what their collectives carry anyway."""

import mmap

import pytest

pytest.importorskip("mlx.core")

import mlx.core as mx
import numpy as np

from server.observe.fleet import Fleet, Vitals
from server.observe.machine import describe_machine, measure_vitals, resident_bytes
from server.observe.recorder import Recorder
from server.wire.heartbeat import BEAT_S, Heartbeat
from server.wire.messages import Beat, Cancel, decode, encode
from tests.support.linked import Wire, WiredLink, on_links

GIB = 2**30
KIB = 1024


TOLD = [Vitals(3 * GIB, 5 * GIB, 6 * KIB), Vitals(7 * KIB, 8 * KIB, 9 * KIB)]


def on_heartbeats(life) -> list:
    """What life(heartbeat, fleet) returned on each of two ranks, whose memory is as TOLD."""

    def run(link):
        fleet = Fleet()
        beat = Heartbeat(link, fleet, Recorder(), lambda: TOLD[link.rank])
        return life(beat, fleet), fleet.ranks.vitals, fleet.ranks.age(), link.wire.sums[link.rank]

    return on_links(2, run)


def heartbeat(**vitals) -> tuple[Heartbeat, Fleet]:
    """Of a rank alone."""
    fleet = Fleet()
    told = Vitals(**{"memory_used": 3 * GIB, "memory_peak": 5 * GIB, "rss": 6 * KIB} | vitals)
    return Heartbeat(WiredLink(Wire(1), 0), fleet, Recorder(), lambda: told), fleet


def test_a_meeting_brings_the_header_and_every_ranks_memory_in_one_sum():
    def life(beat, fleet):
        # A worker's own word counts for nothing.
        return beat.share_ints([99, 99, 99] if beat.rank else [4, 5, 6])

    for shared, vitals, age, sums in on_heartbeats(life):
        assert shared == [4, 5, 6]
        assert vitals == tuple(TOLD)
        assert age < 5 and sums == 1


@pytest.mark.parametrize("length", [1, 4, 7, 1000])
def test_a_bundle_comes_whole_with_the_memory_behind_it(length):
    data = bytes(np.random.default_rng(length).integers(0, 256, length, dtype=np.uint8))

    def life(beat, fleet):
        return beat.share_bytes(b"" if beat.rank else data, length)

    for shared, vitals, _, sums in on_heartbeats(life):
        assert shared == data
        assert vitals == tuple(TOLD)
        assert sums == 1


def test_memory_beyond_the_counter_is_told_as_the_most_there_is():
    beat, fleet = heartbeat(rss=2**50)
    beat.share_ints([])
    assert fleet.ranks.vitals[0].rss == (2**31 - 1) * KIB


def test_a_beat_is_sent_only_when_nothing_was_heard_for_long():
    beat, _ = heartbeat()
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
