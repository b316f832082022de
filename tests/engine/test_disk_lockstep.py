"""Two ranks with disks of their own: whatever one of them does, both keep the same."""

import threading
import time

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

from server.disk.folder import Folder
from server.disk.worker import Job, Worker
from server.engine.prefix_disk import PrefixDisk
from server.engine.prefix_store import PrefixStore
from server.wire.messages import Abandon, Forget, Restore, Settle, Store
from tests.support.linked import DEADLINE_S, on_links
from tests.support.small_models import small_llama

LENGTH = 150  # tokens


class Rank:
    """A rank that holds a text in memory as entry 1."""

    def __init__(self, link, folder) -> None:
        self.model = small_llama()
        self.folder = Folder(folder, link.rank, "maker", 10**9)
        self.reader = Worker("in", considerate=False)
        self.disk = PrefixDisk(
            link, self.folder, lambda: make_prompt_cache(self.model), {}, reader=self.reader
        )
        self.store = PrefixStore()
        caches = make_prompt_cache(self.model)
        self.model(mx.array([[i % 64 for i in range(LENGTH)]]), cache=caches)
        mx.eval([cache.state for cache in caches])
        self.store.put(1, caches, LENGTH)

    def say(self, message):
        return self.disk.carry_out(message, self.store)

    def finish(self, job: int) -> None:
        """Until this rank's part is over."""
        end = time.monotonic() + DEADLINE_S
        while not self.disk.is_over(job):
            assert time.monotonic() < end
            self.disk.advance(busy=False)
            time.sleep(0.001)

    def settle(self, job: int):
        (settled,) = self.say(Settle((job,)))
        return settled.whole, settled.failed

    def write(self) -> None:
        self.say(Store(1, 1, "name", LENGTH))
        self.finish(1)
        while self.settle(1) == (False, False):
            pass

    def keeps(self, entry: int) -> bool:
        return entry in self.store.lengths()


def on_two(tmp_path, life) -> list:
    results = on_links(2, lambda link: life(Rank(link, tmp_path), link.rank))
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def test_what_both_have_read_is_kept_by_both(tmp_path):
    def life(rank: Rank, number: int):
        rank.write()
        rank.say(Restore(2, 7, "name", LENGTH - 10))
        rank.finish(2)
        while (settled := rank.settle(2)) == (False, False):
            pass
        return settled, rank.store.lengths().get(7)

    assert on_two(tmp_path, life) == [((True, False), LENGTH - 10)] * 2


@pytest.mark.parametrize("harmed", [0, 1])
def test_what_one_cannot_read_is_kept_by_none(tmp_path, harmed):
    def life(rank: Rank, number: int):
        rank.write()
        if number == harmed:
            (path,) = rank.folder.path.glob("*.kept")
            data = bytearray(path.read_bytes())
            data[-200] ^= 1
            path.write_bytes(data)
        rank.say(Restore(2, 7, "name", LENGTH))
        rank.finish(2)
        return rank.settle(2)[1], rank.keeps(7), rank.disk._jobs

    assert on_two(tmp_path, life) == [(True, False, {})] * 2


def test_what_one_cannot_write_is_kept_on_no_disk(tmp_path):
    def life(rank: Rank, number: int):
        if number:
            rank.folder.path.rmdir()
            rank.folder.path.write_text("in its place")
        rank.say(Store(1, 1, "name", LENGTH))
        rank.finish(1)
        settled = rank.settle(1)
        over = threading.Event()
        rank.disk._writer.do(Job("a test's own"), over.set)
        over.wait(DEADLINE_S)
        return settled, rank.folder.places, list(rank.folder.path.glob("*"))

    assert on_two(tmp_path, life) == [((False, True), {}, [])] * 2


def test_a_slow_disk_holds_nobody_up_and_counts_when_it_is_done(tmp_path):
    gate = threading.Event()

    def life(rank: Rank, number: int):
        rank.write()
        if number:
            rank.reader.do(Job("a test's own"), lambda: gate.wait(DEADLINE_S))
        rank.say(Restore(2, 7, "name", LENGTH))
        if not number:
            rank.finish(2)
        before = rank.settle(2), rank.keeps(7)
        gate.set()
        rank.finish(2)
        while (after := rank.settle(2)) == (False, False):
            pass
        return before, after, rank.keeps(7)

    assert on_two(tmp_path, life) == [(((False, False), False), (True, False), True)] * 2


def test_a_job_that_is_given_up_leaves_nothing(tmp_path):
    gate = threading.Event()

    def life(rank: Rank, number: int):
        rank.write()
        rank.reader.do(Job("a test's own"), lambda: gate.wait(DEADLINE_S))
        rank.say(Restore(2, 7, "name", LENGTH))
        rank.say(Abandon((2,)))
        job = rank.disk._left[0]
        gate.set()
        rank.say(Forget(("name",)))
        while rank.disk._left:
            rank.disk.advance(busy=False)
        return rank.settle(2), rank.keeps(7), job.taken, rank.folder.places

    assert on_two(tmp_path, life) == [((False, True), False, [], {})] * 2


def test_an_entry_that_is_gone_from_memory_is_not_written(tmp_path):
    def life(rank: Rank, number: int):
        rank.store.drop([1])
        rank.say(Store(1, 1, "name", LENGTH))
        return rank.disk.is_over(1), rank.settle(1)

    assert on_two(tmp_path, life) == [(True, (False, True))] * 2
