"""Bundles reach every rank once and in order.

Ranks here are threads, and a collective is a sum that waits for all of them, so that ranks which
disagree about what comes next hang or mix their data, as they would on a real link.
"""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from server.wire.mailbox import Header, Mailbox
from server.wire.messages import Cancel, Message, Submit

DEADLINE_S = 30


class Meeting:
    """Sums what all ranks bring. A rank that brings another shape breaks it for all."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.sums = 0
        self._brought: dict[int, np.ndarray] = {}
        self._barrier = threading.Barrier(size, timeout=DEADLINE_S)

    def sum(self, rank: int, values: np.ndarray) -> np.ndarray:
        self._brought[rank] = values
        self._barrier.wait()
        parts = [self._brought[r] for r in range(self.size)]
        shapes = {part.shape for part in parts}
        self._barrier.wait()
        assert len(shapes) == 1, f"ranks parted ways: {shapes}"
        self.sums += rank == 0
        return sum(parts)

    def leave(self) -> None:
        self._barrier.abort()


class FakeLink:
    """server.wire.link.Link without MLX, as the mailbox uses it."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.meeting, self.rank, self.size = meeting, rank, meeting.size

    def share_ints(self, values: list[int]) -> list[int]:
        mine = values if self.rank == 0 else [0] * len(values)
        return self.meeting.sum(self.rank, np.array(mine, dtype=np.int32)).tolist()

    def share_bytes(self, data: bytes, length: int) -> bytes:
        mine = np.zeros(length, dtype=np.int32)
        if self.rank == 0:
            mine[:] = np.frombuffer(data, dtype=np.uint8)
        return self.meeting.sum(self.rank, mine).astype(np.uint8).tobytes()


class Scribe:
    """Rank 0's source of messages: numbered, and remembered in the order of composing."""

    def __init__(self) -> None:
        self.waiting: list[Message] = []
        self.composed: list[Message] = []
        self._next = 1

    def write(self) -> None:
        n, self._next = self._next, self._next + 1
        self.waiting.append(Submit(n, list(range(n % 5)), n) if n % 2 else Cancel(n))

    def compose(self) -> list[Message]:
        messages, self.waiting = self.waiting, []
        self.composed += messages
        return messages


def nobody() -> list[Message]:
    raise AssertionError("a worker was asked for messages")


def on_ranks(size: int, life) -> list:
    """Runs life(rank, mailbox) on every rank; returns what each returned. Rank 0's has a Scribe."""
    meeting = Meeting(size)
    scribe = Scribe()

    def run(rank: int):
        compose = scribe.compose if rank == 0 else nobody
        nap = (lambda: 7) if rank == 0 else nobody
        mailbox = Mailbox(FakeLink(meeting, rank), compose, nap, lambda: 7, lambda: True)
        try:
            return life(rank, mailbox, scribe, meeting)
        except BaseException:
            meeting.leave()
            raise

    with ThreadPoolExecutor(size) as pool:
        return [future.result(DEADLINE_S) for future in [pool.submit(run, r) for r in range(size)]]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_meeting_brings_messages_and_the_nap_to_every_rank(size):
    def life(rank, mailbox, scribe, meeting):
        if rank == 0:
            scribe.write()
            scribe.write()
        header = mailbox.meet()
        got = mailbox.receive(header)
        again = mailbox.receive(mailbox.meet())
        return header.nap_ms, got, again

    for nap, got, again in on_ranks(size, life):
        assert nap == 7
        assert got == [Submit(1, [0], 1), Cancel(2)]
        assert again == []


def test_an_idle_meeting_costs_one_collective():
    def life(rank, mailbox, scribe, meeting):
        assert mailbox.receive(mailbox.meet()) == []
        return meeting.sums

    assert on_ranks(2, life)[0] == 1


def test_what_arrives_while_a_bundle_is_on_its_way_goes_into_the_next():
    scribe = Scribe()
    mailbox = Mailbox(FakeLink(Meeting(1), 0), scribe.compose, lambda: 0, lambda: 7, lambda: True)
    scribe.write()
    first = mailbox.header()
    scribe.write()
    assert mailbox.receive(Header(*first)) == [Submit(1, [0], 1)]
    assert mailbox.receive(Header(*mailbox.header())) == [Cancel(2)]
    assert mailbox.receive(Header(*mailbox.header())) == []


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("size", [1, 2, 3])
def test_bundles_come_once_and_in_order_whatever_carries_the_headers(size, seed):
    """A step's collective carries it, or the ranks meet while nothing decodes. All ranks take the
    same turns, as the loop makes them do."""
    turns = 120

    def life(rank, mailbox, scribe, meeting):
        chance = random.Random(seed)  # the same course on every rank
        arrivals = random.Random(seed + 1)  # only rank 0 knows
        got = []

        def step_header():
            """As the step's collective carries it: rank 0's values, on every rank."""
            link = mailbox._link
            return link.share_ints(mailbox.header() if rank == 0 else [0] * Header.SIZE)

        for turn in range(turns):
            if rank == 0 and turn < turns - 10 and arrivals.random() < 0.4:
                for _ in range(arrivals.randint(1, 3)):
                    scribe.write()
            if turn < turns - 10 and chance.random() < 0.7:
                header = Header(*step_header())
            else:
                header = mailbox.meet()
            got += mailbox.receive(header)
        return got, scribe.composed

    ranks = on_ranks(size, life)
    composed = ranks[0][1]
    assert len(composed) > 20
    for got, _ in ranks:
        assert got == composed
    assert [message.uid for message in composed] == list(range(1, len(composed) + 1))
