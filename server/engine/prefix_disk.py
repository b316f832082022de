"""A rank's kept prefixes on its disk, as rank 0's messages say: write one, read one, tell how far.

Called on the main thread of every rank, which takes caches apart and puts them together; threads
(server/disk) read and write. What a disk does is its rank's own affair: it may be slow, full, torn
or gone. So nothing of it counts before all ranks have told each other (Settle), in one sum, in the
same turn: then an entry is kept by all of them, or by none.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from server.disk.entry_file import Broken, Part, Stored, read_arrays, read_header, write_part
from server.disk.entry_file import path_of as file_of
from server.disk.folder import KIB, Folder, Place
from server.disk.worker import Job, State, Worker
from server.engine.kept_caches import Apart, from_words, put_together
from server.engine.prefix_store import PrefixStore
from server.protocol.failures import Refused, is_shared
from server.wire.link import Link
from server.wire.messages import Abandon, Forget, OnDisk, Restore, Settle, Settled, Store

AHEAD_BYTES = 256 << 20  # that are read and not yet taken over
TAKE_S = 0.01  # of a turn's time, to take over what has been read while others decode
WAIT_S = 0.05  # of a thread, before it looks again
LEAVE_FREE = 10**9  # bytes that a disk keeps for others

log = logging.getLogger(__name__)


class Storing(Job):
    """part: the file that is being written; apart: what it is made of, held until the job is over,
    so that the main thread is the last to let go of MLX's arrays. begin: hands it to the thread;
    None: that has been done, or cannot be. fresh: until the next turn."""

    def __init__(self, message: Store) -> None:
        super().__init__(f"writing {message.name}")
        self.message = message
        self.part: Part | None = None
        self.apart: Apart | None = None
        self.begin: Callable[[], None] | None = None
        self.fresh = True

    def let_go(self) -> None:
        """On the main thread: of what it was made of."""
        self.apart = self.begin = None


class Restoring(Job):
    """read: arrays that the main thread has not taken over yet; taken: those that it has. caches:
    put together, when all are there."""

    def __init__(self, message: Restore) -> None:
        super().__init__(f"reading {message.name}")
        self.message = message
        self.read: deque[tuple[Stored, np.ndarray]] = deque()
        self.ahead = 0  # bytes in read
        self.change = threading.Condition()
        self.said: Any = None  # of the caches
        self.taken: list[mx.array] = []
        self.over = False  # the thread's part is
        self.caches: list | None = None

    def let_go(self) -> None:
        """Of what has been read."""
        self.read.clear()
        self.taken, self.caches = [], None


class PrefixDisk:
    """make_caches: empty ones of the model. labels: bytes that go into the file of a name, put
    there on rank 0 before the message that has it written; taken out here."""

    def __init__(
        self,
        link: Link,
        folder: Folder,
        make_caches: Callable[[], list],
        labels: dict[str, bytes],
        writer: Worker | None = None,
        reader: Worker | None = None,
    ) -> None:
        self._link = link
        self._folder = folder
        self._make_caches = make_caches
        self._labels = labels
        self._writer = writer or Worker("prefixes out", considerate=True)
        self._reader = reader or Worker("prefixes in", considerate=False)
        self._jobs: dict[int, Storing | Restoring] = {}
        self._noting = Job("nothing")
        self._noting.state = State.WHOLE
        self._left: list[Storing | Restoring] = []  # abandoned, while their threads go on

    def carry_out(self, message: OnDisk, prefixes: PrefixStore) -> Sequence[Settled]:
        """What a message asks for; for Settle, what has come of the jobs."""
        match message:
            case Store():
                self._store(message, prefixes)
            case Restore():
                self._restore(message)
            case Settle(jobs):
                return self._settle(jobs, prefixes)
            case Abandon(jobs):
                for number in jobs:
                    self._abandon(self._jobs.pop(number, None))
            case Forget(names):
                self._forget(names)
        return ()

    def close(self) -> None:
        """The model is unloaded: what is under way is given up."""
        for number in list(self._jobs):
            self._abandon(self._jobs.pop(number))
        self._writer.do(Job("closing"), self._folder.close)
        self._writer.end()
        self._reader.end()

    def advance(self, busy: bool) -> None:
        """Takes over what has been read. busy: somebody decodes or waits for a prompt, and bears
        little of it a turn."""
        self._writer.busy = busy
        for job in [job for job in self._left if job.state != State.UNDER_WAY]:
            self._left.remove(job)
            job.let_go()
        until = time.monotonic() + TAKE_S
        for job in self._jobs.values():
            if isinstance(job, Storing) and job.begin is not None and not job.fresh:
                begin, job.begin = job.begin, None
                begin()
            elif isinstance(job, Storing):
                job.fresh = False
            else:
                while job.read and not (busy and time.monotonic() > until):
                    self._take(job)
                if job.over and not job.read and job.caches is None:
                    self._put_together(job)

    def is_over(self, number: int) -> bool:
        """Whether this rank has done its part of a job, or has failed."""
        job = self._jobs.get(number)
        return job is None or self._state(job) != State.UNDER_WAY

    def touch(self, names: Sequence[str]) -> None:
        """Has it noted, for the next start, that they were of use. Rank 0 alone."""
        if self._noting.state != State.UNDER_WAY:  # or they would pile up before a slow disk
            self._noting = Job("noting what is used")
            self._writer.do(self._noting, lambda: self._folder.touch(names))

    def _store(self, message: Store, prefixes: PrefixStore) -> None:
        job = self._jobs[message.job] = Storing(message)
        label = self._labels.pop(message.name, b"")
        try:
            caches = prefixes.take(message.entry, message.length)
            job.apart = Apart(caches, message.start, message.length)
        except Exception as error:
            # By caches that cannot be kept: of a kind, or gone. No reason to end anything.
            if not isinstance(error, Refused) and not is_shared(error):
                raise
            log.warning("prefixes on disk: %s: %s", job.what, error)
            job.state = State.FAILED
            return
        apart = job.apart
        job.part = Part(
            self._folder.maker, message.name, message.base, message.start, message.length,
            len(label), tuple(apart.stored), apart.caches,
        )  # fmt: skip

        def write(arrays: list[np.ndarray]) -> None:
            self._folder.make_again()
            size = sum(one.nbytes for one in job.part.arrays)
            if self._folder.free() < size + LEAVE_FREE:
                raise OSError(f"less than {LEAVE_FREE} bytes would be free in {self._folder.path}")
            self._folder.make_room(size)
            pause = partial(self._pause, job)
            job.kib = -(-write_part(self._folder.path, job.part, label, arrays, pause) // KIB)

        def begin() -> None:
            # By now the step that was running when the arrays were asked for is over, and they are
            # there: nobody waits.
            self._writer.do(job, partial(write, apart.arrays()))

        job.begin = begin

    def _pause(self, job: Job, size: int) -> None:
        self._writer.pause(job)

    def _restore(self, message: Restore) -> None:
        job = self._jobs[message.job] = Restoring(message)

        def read() -> None:
            try:
                spans = self._folder.chain(message.name, message.length)
                with file_of(self._folder.path, message.name).open("rb") as file:
                    job.said = read_header(file).caches
                if spans[-1].end != message.length:
                    raise Broken(f"{message.name} has no tokens of the first {message.length}")
                for one in read_arrays(
                    self._folder.path, self._folder.maker, spans, lambda _: job.go_on()
                ):
                    self._hand_over(job, *one)
            finally:
                job.over = True

        self._reader.do(job, read)

    def _hand_over(self, job: Restoring, stored: Stored, words: np.ndarray) -> None:
        """To the main thread, which takes it when it has the time."""
        with job.change:
            while job.ahead and job.ahead + words.nbytes > AHEAD_BYTES:
                job.change.wait(WAIT_S)
                job.go_on()
            job.ahead += words.nbytes
            job.read.append((stored, words))

    def _take(self, job: Restoring) -> None:
        stored, words = job.read[0]
        job.taken.append(from_words(stored, words))
        with job.change:
            job.read.popleft()
            job.ahead -= words.nbytes
            job.change.notify()

    def _put_together(self, job: Restoring) -> None:
        """When the thread is done and all is taken over."""
        if job.state != State.WHOLE:
            return
        try:
            job.caches = put_together(self._make_caches(), job.said, job.taken, job.message.length)
        except Exception as error:
            if not is_shared(error):
                raise
            log.warning("prefixes on disk: %s: %s", job.what, error)
            job.state = State.FAILED

    def _state(self, job: Storing | Restoring) -> State:
        if isinstance(job, Restoring) and job.state == State.WHOLE and job.caches is None:
            return State.UNDER_WAY
        return job.state

    def _settle(self, numbers: Sequence[int], prefixes: PrefixStore) -> list[Settled]:
        """One collective. Each rank tells two numbers of each job, in places of its own."""
        size, mine = self._link.size, []
        for number in numbers:
            job = self._jobs.get(number)
            state = State.FAILED if job is None else self._state(job)
            mine += [int(state), job.kib if job else 0]
        values = [0] * (len(mine) * size)
        values[self._link.rank * len(mine) : (self._link.rank + 1) * len(mine)] = mine
        told = self._link.seal("disk", values).read()
        settled = []
        for place, number in enumerate(numbers):
            states = [told[rank * len(mine) + 2 * place] for rank in range(size)]
            kib = tuple(told[rank * len(mine) + 2 * place + 1] for rank in range(size))
            failed = State.FAILED in states
            whole = all(state == State.WHOLE for state in states)
            settled.append(Settled(number, whole, failed, kib))
            if whole or failed:
                self._end(self._jobs.pop(number, None), whole, prefixes)
        return settled

    def _end(self, job: Storing | Restoring | None, whole: bool, prefixes: PrefixStore) -> None:
        if not whole:
            self._abandon(job)
        elif isinstance(job, Storing):
            part = job.part
            self._folder.places[part.name] = Place(part.base, part.start, part.end)
            job.let_go()
        else:
            prefixes.put(job.message.entry, job.caches, job.message.length)

    def _abandon(self, job: Storing | Restoring | None) -> None:
        if job is None:
            return
        job.abandoned = True
        if isinstance(job, Storing) and job.begin is not None:
            job.state = State.FAILED  # it has no thread yet
        self._left.append(job)  # until its thread is done with it
        if isinstance(job, Storing):
            # Behind the job, which may just have finished.
            self._remove([job.message.name])

    def _forget(self, names: Sequence[str]) -> None:
        for name in names:
            self._folder.places.pop(name, None)
        self._remove(names)

    def _remove(self, names: Sequence[str]) -> None:
        gone = [name for name in names if name not in self._folder.places]
        self._writer.do(Job("deleting"), lambda: self._folder.remove(gone))
