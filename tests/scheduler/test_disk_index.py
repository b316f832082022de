"""What rank 0 has the disks do: when, for whom, and how long it waits for them."""

import random

import pytest

from server.scheduler.disk_entries import DiskEntries
from server.scheduler.disk_index import FLUSH_S, PATIENCE_S, REST_S, DiskIndex, Rank0
from server.scheduler.kv_budget import RankMemory
from server.wire.messages import Abandon, Forget, Restore, Settle, Settled, Store

MEMORY = RankMemory(10**9, 0, 1024)  # so a token is a KiB


class Desk:
    """An index whose ranks do at once what they are told, unless it is slow."""

    def __init__(self, limit: int = 10**6, entry_cost: int = 0) -> None:
        self.now = 100.0
        self.over: set[int] = set()
        self.memory: set[int] = set()
        self.numbers = 1000
        self.labels: dict[str, bytes] = {}
        self.touched: list[str] = []
        mine = Rank0(self.over.__contains__, self.touched.extend, self.labels)
        entries = DiskEntries(limit, 2, cuttable=True)
        self.index = DiskIndex(entries, [MEMORY] * 2, mine, entry_cost, lambda: self.now)

    def compose(self):
        self.now += 1
        return self.index.compose(self.memory.__contains__)

    def keep(self, number: int, tokens: list[int]) -> None:
        self.memory.add(number)
        self.index.offer(number, tokens)

    def settle(self, job: int, whole: bool = True, kib: int = 100):
        return self.index.settle([Settled(job, whole, not whole, (kib, kib))])

    def write(self, number: int, tokens: list[int], kib: int = 100) -> Store:
        """A whole Store."""
        self.keep(number, tokens)
        (store,) = [m for m in self.compose() if isinstance(m, Store)]
        assert self.settle(store.job, kib=kib) == []
        return store

    def number(self) -> int:
        self.numbers += 1
        return self.numbers

    def fetch(self, prompt: list[int], held: int = 0, room: int = 10**6) -> int:
        return self.index.fetch(prompt, held, room, self.number)


def text(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(1000), k=length)


def test_what_memory_keeps_is_written_one_after_another():
    desk = Desk()
    desk.keep(1, text(1, 300))
    desk.keep(2, text(2, 300))
    (store,) = desk.compose()
    assert (store.entry, store.length, store.base, store.start) == (1, 300, "", 0)
    assert store.name in desk.labels
    assert desk.compose() == []
    desk.over.add(store.job)
    assert desk.compose() == [Settle((store.job,))]
    desk.settle(store.job)
    assert [message.entry for message in desk.compose()] == [2]


def test_ranks_that_are_not_as_far_are_asked_less_and_less_often():
    desk = Desk()
    desk.keep(1, text(1, 300))
    (store,) = desk.compose()
    desk.over.add(store.job)
    asked = []
    for _ in range(1000):
        desk.now += 0.001
        if desk.index.compose(desk.memory.__contains__):
            asked.append(desk.now)
            desk.index.settle([Settled(store.job, False, False, (1, 0))])
    gaps = [b - a for a, b in zip(asked, asked[1:], strict=False)]
    assert 4 <= len(asked) <= 7 and gaps == sorted(gaps)


def test_only_what_is_new_is_written_and_nothing_twice():
    desk = Desk()
    first = desk.write(1, text(1, 300))
    again = desk.write(2, text(1, 300) + text(2, 200))
    assert (again.base, again.start, again.length) == (first.name, 300, 500)
    desk.keep(3, text(1, 300))
    desk.keep(4, text(1, 300) + text(2, 200) + text(3, 50))  # too little for a file
    assert desk.compose() == []


def test_what_is_gone_from_memory_is_not_written():
    desk = Desk()
    desk.keep(1, text(1, 300))
    desk.index.gone([1])
    desk.keep(2, text(2, 300))
    desk.memory.clear()
    assert desk.compose() == []


def test_a_queued_prompt_is_read_back_once_for_all_who_ask():
    desk, prompt = Desk(), text(1, 300)
    name = desk.write(1, prompt).name
    job = desk.fetch([*prompt, 1])
    assert job and desk.fetch([*prompt, 2, 3]) == job
    assert desk.compose() == [Restore(job, 1001, name, 300)]
    assert desk.index.is_reading(job)
    assert desk.settle(job) == [(1001, prompt, "")]
    assert not desk.index.is_reading(job)
    assert desk.index.look().hit_tokens == 300


@pytest.mark.parametrize(("held", "room"), [(250, 10**6), (0, 250)])
def test_what_memory_has_or_has_no_room_for_is_not_read(held, room):
    desk, prompt = Desk(), text(1, 300)
    desk.write(1, prompt)
    assert desk.fetch([*prompt, 1], held, room) == 0


def test_reading_holds_memory_and_gives_way_to_who_runs():
    desk, prompt = Desk(entry_cost=20), text(1, 300)
    desk.write(1, prompt)
    job = desk.fetch([*prompt, 1])
    assert desk.index.reserved == 320
    desk.compose()
    desk.index.give_way()
    assert desk.index.reserved == 0 and not desk.index.is_reading(job)
    assert desk.compose() == [Abandon((job,))]


def test_an_entry_that_leaves_while_it_is_written_counts_until_that_is_over():
    desk = Desk()
    desk.keep(1, text(1, 300))
    (store,) = desk.compose()
    assert desk.index.reserved == 0
    desk.index.gone([1])
    assert desk.index.reserved == 300
    desk.settle(store.job)
    assert desk.index.reserved == 0


def test_a_disk_that_takes_longer_than_computing_is_not_waited_for():
    desk, prompt = Desk(), text(1, 300)
    desk.write(1, prompt)
    for _ in range(50):
        desk.index.observe(1000, 1.0)  # tokens and seconds
    job = desk.fetch([*prompt, 1])
    desk.compose()
    desk.now += PATIENCE_S
    assert desk.compose() == [Abandon((job,))]
    assert not desk.index.is_reading(job) and desk.index.look().failures == 1
    # Nor is the next prompt kept waiting by it.
    assert desk.fetch([*prompt, 1]) == 0
    desk.now += REST_S
    assert desk.fetch([*prompt, 1])


def test_who_comes_back_with_many_waits_for_those_before_it():
    """As the ranks would compute one prompt after another, too."""
    desk, prompts = Desk(), [text(seed, 700) for seed in range(20)]
    for number, prompt in enumerate(prompts):
        desk.write(number, prompt)
    jobs = [desk.fetch([*prompt, 1]) for prompt in prompts]
    assert all(jobs) and len(set(jobs)) == len(jobs)
    desk.compose()
    desk.now += 7 * len(jobs) - PATIENCE_S  # at 100 tokens a second
    (given_up,) = desk.compose()
    assert set(given_up.jobs) == set(jobs[:-1])
    assert desk.index.is_reading(jobs[-1])


def test_a_part_that_is_not_whole_anywhere_is_forgotten_everywhere():
    desk, prompt = Desk(), text(1, 300)
    name = desk.write(1, prompt).name
    other = desk.write(2, prompt + text(2, 200)).name
    job = desk.fetch([*prompt, 1])
    desk.compose()
    assert desk.settle(job, whole=False) == []
    (forget,) = desk.compose()
    assert isinstance(forget, Forget) and set(forget.names) == {name, other}
    assert desk.fetch([*prompt, 1]) == 0
    assert desk.index.look().failures == 1


def test_what_is_read_of_a_broken_file_is_given_up_too():
    desk, prompt = Desk(), text(1, 300)
    desk.write(1, prompt)
    desk.write(2, prompt + text(2, 200))
    short, long = desk.fetch([*prompt, 1]), desk.fetch([*prompt, *text(2, 200), 1])
    assert short != long
    desk.compose()
    desk.settle(short, whole=False)
    assert not desk.index.is_reading(long)
    assert Abandon((long,)) in desk.compose()


def test_after_a_write_that_failed_the_disk_has_a_rest():
    desk = Desk()
    desk.keep(1, text(1, 300))
    (store,) = desk.compose()
    desk.settle(store.job, whole=False)
    desk.keep(2, text(2, 300))
    assert desk.compose() == []
    desk.now += REST_S
    assert [message.entry for message in desk.compose()] == [2]


def test_room_is_made_before_it_is_needed():
    desk = Desk(limit=1000)  # KiB, and a token takes one
    old = desk.write(1, text(1, 400), kib=400).name
    desk.write(2, text(2, 400), kib=400)
    desk.keep(3, text(3, 400))
    forget, store = desk.compose()
    assert (forget, store.entry) == (Forget((old,)), 3)
    desk.settle(store.job, kib=400)
    desk.keep(4, text(4, 1001))  # would never fit
    assert desk.compose() == []
    assert desk.index.look().bytes == 800 * 1024


def test_a_stop_waits_for_what_is_written_and_not_for_ever():
    desk = Desk()
    assert desk.index.flushed
    desk = Desk()
    desk.keep(1, text(1, 300))
    assert not desk.index.flushed
    (store,) = desk.compose()
    assert not desk.index.flushed
    desk.settle(store.job)
    assert desk.index.flushed
    slow = Desk()
    slow.keep(1, text(1, 300))
    assert not slow.index.flushed
    slow.now += FLUSH_S + 1
    assert slow.index.flushed


def test_what_comes_after_a_reprieve_has_its_time_to_be_written():
    """A model that was to go and stayed was taken for flushed ever after, whatever it had to
    write."""
    desk = Desk()
    desk.keep(1, text(1, 300))
    assert not desk.index.flushed
    desk.now += FLUSH_S + 1
    assert desk.index.flushed
    desk.keep(2, text(2, 300))
    assert not desk.index.flushed
    for _ in range(2):
        (store,) = desk.compose()
        desk.settle(store.job)
    assert desk.index.flushed
    desk.now += 100
    desk.keep(3, text(3, 300))
    assert not desk.index.flushed


def test_what_is_used_is_noted_for_the_next_start():
    desk, prompt = Desk(), text(1, 300)
    first = desk.write(1, prompt).name
    second = desk.write(2, prompt + text(2, 200)).name
    desk.index.use([*prompt, 1])
    assert desk.touched == [first]
    desk.index.use([*prompt, *text(2, 200), 1])
    assert set(desk.touched[1:]) == {first, second}


def test_without_a_disk_nothing_is_said():
    index = DiskIndex()
    index.offer(1, text(1, 300))
    assert index.compose(lambda entry: True) == []
    assert index.fetch(text(1, 300), 0, 1000, lambda: 1) == 0
    assert index.flushed and not index.busy
