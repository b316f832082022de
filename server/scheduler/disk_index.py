"""Rank 0 and the kept prefixes on the ranks' disks: what to write, and what to read back for whom.

Used by the scheduler, on rank 0's main thread. Imports no mlx and opens no file: every rank has its
part of an entry under the entry's name (engine/prefix_disk.py), and an entry counts when all ranks
have said that theirs is whole.

What is kept in memory is written as soon as it is, one entry at a time, but for what is on disk. A
prompt that is waiting is looked up at once, so that its beginning is there when its turn comes.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from server.observe.views import DiskUse
from server.protocol.row_lengths import WHOLE, Precision
from server.scheduler.disk_entries import LEAST, DiskEntries, Entry, label_of, name_of
from server.scheduler.kv_budget import RankMemory
from server.scheduler.prefix_tree import common
from server.wire.messages import Abandon, Forget, OnDisk, Restore, Settle, Settled, Store

MOST_READ = 64  # entries that are waited for, one read after another
ASK_S = 0.02  # after the first question whether the others are as far; twice that after the next
ASK_MOST_S = 0.64
REST_S = 60.0  # after a failure, before the next try
PATIENCE_S = 5.0  # beside what reading or writing should take
SLOWEST_KIB_S = 5_000  # of a disk that is any good, while the ranks compute
FIRST_RATE = 100.0  # tokens of prompts a second, before any was computed
RATE_FROM = 32  # tokens of a chunk that tells a rate
FLUSH_S = 5.0  # that a stop waits for what is being written
KIB = 1024

log = logging.getLogger(__name__)


@dataclass
class Task:
    """A Store or Restore under way. entry: what is read, or the base of what is written. due: when
    it is given up. gone: a Store's entry has left the memory, which is not free before it is over.
    spares: tokens that a Restore spares the ranks."""

    message: Store | Restore
    tokens: np.ndarray
    owner: str
    entry: Entry | None
    due: float
    gone: bool = False
    spares: int = 0

    @property
    def reads(self) -> bool:
        return isinstance(self.message, Restore)

    @property
    def holds_memory(self) -> bool:
        """Beside what the entries in memory take."""
        return self.reads or self.gone


@dataclass(frozen=True)
class Rank0:
    """This rank's disk, as far as rank 0's decisions look at it. is_over: whether it has done its
    part of a job; touch: notes that names were of use; labels: see PrefixDisk."""

    is_over: Callable[[int], bool] = lambda job: True
    touch: Callable[[Sequence[str]], None] = lambda names: None
    labels: dict[str, bytes] | None = None


class DiskIndex:
    """entries: what is there. costs: by rank; none: nothing is kept on disk. entry_cost: what an
    entry costs in memory beside its tokens, in tokens. precision: what they are kept in."""

    def __init__(
        self,
        entries: DiskEntries | None = None,
        costs: Sequence[RankMemory] = (),
        mine: Rank0 = Rank0(),
        entry_cost: int = 0,
        clock: Callable[[], float] = time.monotonic,
        precision: Precision = WHOLE,
    ) -> None:
        self.entries = DiskEntries(0, 0, cuttable=True) if entries is None else entries
        self.entries.pinned = self._pinned
        self._costs = costs
        self._mine = mine
        self._entry_cost = entry_cost
        self._precision = precision
        self._clock = clock
        self._jobs = 0
        self._tasks: dict[int, Task] = {}
        self._wanted: dict[int, tuple[np.ndarray, str]] = {}  # kept in memory, to be written
        self._out: list[OnDisk] = []
        self._ask_at = self._store_at = self._restore_at = 0.0
        self._ask_s = ASK_S
        self._flush_until: float | None = None
        self._rate = FIRST_RATE
        self.hit_tokens = self.written_kib = self.read_kib = self.failures = 0

    # What the scheduler tells.

    def offer(self, number: int, tokens: Sequence[int], owner: str = "") -> None:
        """The ranks keep this in memory now, as entry number."""
        if self._costs and len(tokens) >= LEAST:
            self._wanted[number] = (np.asarray(tokens, dtype=np.int32), owner)
            self._flush_until = None  # what is new has its time, too

    def gone(self, numbers: Iterable[int]) -> None:
        """The ranks are to drop these entries from memory, or parts of them."""
        for number in numbers:
            self._wanted.pop(number, None)
            for task in self._tasks.values():
                task.gone |= not task.reads and task.message.entry == number

    def observe(self, computed: int, seconds: float) -> None:
        """Tokens of prompts that were computed, and in how long."""
        if computed >= RATE_FROM and seconds > 0:
            self._rate += 0.2 * (computed / seconds - self._rate)

    def use(self, prompt: Sequence[int], owner: str = "") -> None:
        """A prompt begins."""
        if len(self.entries):
            names = self.entries.use(np.asarray(prompt, dtype=np.int32), owner)
            if names:
                self._mine.touch(names)

    def settle(self, settled: Iterable[Settled]) -> list[tuple[int, list[int], str]]:
        """What all ranks have told each other. Returns what they keep in memory from now on:
        number, tokens, owner."""
        kept = []
        for one in settled:
            task = self._tasks.get(one.job)
            if task is None or not (one.whole or one.failed):
                continue
            del self._tasks[one.job]
            self._ask_at, self._ask_s = 0.0, ASK_S
            if one.failed:
                self._fail(task)
            elif task.reads:
                self.hit_tokens += task.message.length
                chain = [entry.kib for entry in task.entry.chain]
                self.read_kib += max(map(sum, zip(*chain, strict=True)))
                kept.append((task.message.entry, task.tokens.tolist(), task.owner))
            else:
                self.written_kib += max(one.kib)
                start = task.message.start
                self.entries.add(task.tokens, task.owner, task.entry, start, one.kib)
        return kept

    # What the scheduler asks.

    def fetch(
        self,
        prompt: Sequence[int],
        held: int,
        room: int,
        number: Callable[[], int],
        owner: str = "",
    ) -> int:
        """The job that reads the beginning of a prompt from disk, if there is more than the tokens
        that are held in memory, and no more than there is room for; 0: none. number: makes that of
        an entry in memory."""
        if not len(self.entries) or self._clock() < self._restore_at:
            return 0
        wanted = np.asarray(prompt, dtype=np.int32)
        entry, length = self.entries.find(wanted, owner)
        if entry is None or length - held < LEAST:
            return 0
        for job, task in self._tasks.items():
            serves = task.reads and task.owner == owner
            if serves and length <= common(task.tokens, wanted) == len(task.tokens) < len(wanted):
                return job
        ahead = [task for task in self._tasks.values() if task.reads]
        if len(ahead) >= MOST_READ or self._cost(length) > room - self.reserved:
            return 0
        message = Restore(self._job(), number(), entry.name, length)
        # It should not take longer than to compute it, and what is read before it.
        computing = length - held + sum(task.spares for task in ahead)
        due = self._clock() + max(PATIENCE_S, computing / self._rate)
        self._begin(Task(message, wanted[:length], owner, entry, due, spares=length - held))
        return message.job

    def is_reading(self, job: int) -> bool:
        return job in self._tasks

    @property
    def busy(self) -> bool:
        """Whether the ranks are at work for it."""
        return bool(self._tasks)

    @property
    def reserved(self) -> int:
        """Tokens' worth of KV memory that jobs hold, beside the entries in memory."""
        held = (len(task.tokens) for task in self._tasks.values() if task.holds_memory)
        return sum(map(self._cost, held))

    @property
    def flushed(self) -> bool:
        """Before a stop, or before the model goes: whether all is written that can be in a few
        seconds from when it was first asked about."""
        now = self._clock()
        if not self._writing() and not (self._wanted and now >= self._store_at):
            self._flush_until = None
            return True
        if self._flush_until is None:
            self._flush_until = now + FLUSH_S
        return now > self._flush_until

    def give_way(self) -> None:
        """Running requests need the memory that jobs hold."""
        self._give_up([job for job, task in self._tasks.items() if task.holds_memory])

    def compose(self, holds: Callable[[int], bool]) -> list[OnDisk]:
        """The next messages to every rank. holds: whether the ranks keep an entry in memory."""
        if not self._costs:
            return []
        now = self._clock()
        late = [job for job, task in self._tasks.items() if now > task.due]
        for task in map(self._tasks.get, late):
            log.warning("prefixes on disk: %s takes too long on some rank", task.message.name)
            self.failures += 1
            self._rest(task)
        self._give_up(late)
        begun = {message.job for message in self._out if isinstance(message, Store | Restore)}
        over = [job for job in self._tasks if job not in begun and self._mine.is_over(job)]
        if over and now >= self._ask_at:
            self._ask_at = now + self._ask_s
            self._ask_s = min(2 * self._ask_s, ASK_MOST_S)
            self._out.append(Settle(tuple(over)))
        if now >= self._store_at and not self._writing():
            self._store_next(holds)
        if self.entries.forgotten:
            self._out.insert(0, Forget(tuple(self.entries.forgotten)))
            self.entries.forgotten = []
        out, self._out = self._out, []
        return out

    def look(self) -> DiskUse:
        """What there is now, and has been."""
        return DiskUse(
            entries=len(self.entries),
            bytes=max(self.entries.kib, default=0) * KIB,
            limit_bytes=self.entries.limit * KIB,
            hit_tokens=self.hit_tokens,
            read_bytes=self.read_kib * KIB,
            written_bytes=self.written_kib * KIB,
            evicted_bytes=self.entries.evicted_kib * KIB,
            failures=self.failures,
        )

    # Its own.

    def _pinned(self) -> list[Entry]:
        return [task.entry for task in self._tasks.values() if task.entry is not None]

    def _cost(self, tokens: int) -> int:
        """Of an entry in memory, in tokens."""
        return self._precision.cost(tokens) + self._entry_cost

    def _store_next(self, holds: Callable[[int], bool]) -> None:
        while self._wanted:
            number = next(iter(self._wanted))
            tokens, owner = self._wanted.pop(number)
            name, length = name_of(owner, tokens), len(tokens)
            base, start, serves = self.entries.base_for(tokens, owner)
            if not holds(number) or name in self.entries or length - serves < LEAST:
                continue
            needs = [c.of(length - start, length, self._precision) // KIB for c in self._costs]
            if not self.entries.make_room(needs, length, [base] if base else []):
                continue
            if self._mine.labels is not None:
                self._mine.labels[name] = label_of(owner, tokens[start:])
            due = self._clock() + REST_S + max(needs) / SLOWEST_KIB_S
            message = Store(self._job(), number, name, length, base.name if base else "", start)
            self._begin(Task(message, tokens, owner, base, due))
            return

    def _begin(self, task: Task) -> None:
        self._tasks[task.message.job] = task
        self._out.append(task.message)

    def _fail(self, task: Task) -> None:
        self.failures += 1
        if not task.reads:
            self._rest(task)
            return
        # Some file of it is not what it was: who knows which.
        doomed = self.entries.doom(task.entry)
        self._give_up([job for job, other in self._tasks.items() if other.entry in doomed])

    def _rest(self, task: Task) -> None:
        """No more of the kind for a while: a disk is full, slow or gone."""
        if task.reads:
            self._restore_at = self._clock() + REST_S
        else:
            self._store_at = self._clock() + REST_S

    def _give_up(self, jobs: Sequence[int]) -> None:
        if jobs:
            for job in jobs:
                del self._tasks[job]
            self._out.append(Abandon(tuple(jobs)))

    def _writing(self) -> bool:
        return any(not task.reads for task in self._tasks.values())

    def _job(self) -> int:
        self._jobs += 1
        return self._jobs
