"""The disks of the random walk's ranks: they do at once what they are told, rank 0 says so when
chance has it, and now and then a file is harmed, on both alike."""

import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from mlx_lm.models.cache import make_prompt_cache

from server.disk.folder import Folder
from server.disk.worker import Job, State
from server.engine.prefix_disk import PrefixDisk
from server.protocol.row_lengths import Precision
from server.scheduler.disk_entries import DiskEntries
from server.scheduler.disk_index import DiskIndex, Rank0
from server.scheduler.kv_budget import RankMemory
from server.wire.link import Link

LEAST = 20  # tokens that are worth a file: prompts of the walk are short
HARMS = 0.02  # a turn
FORGETS = 0.05  # a turn: the ranks' memory has no room for what is kept


class AtOnce:
    """In the place of a Worker and its thread."""

    busy = False

    def do(self, job: Job, work: Callable[[], None]) -> None:
        try:
            job.go_on()
            work()
            job.state = State.WHOLE
        except Exception:
            job.state = State.FAILED

    def pause(self, job: Job) -> None:
        job.go_on()


class First:
    """A link whose rank speaks in the first one's place: all of a sum is rank 0's in the walk."""

    rank, size = 0, 1

    def __init__(self, link: Link) -> None:
        self.seal = link.seal


class Disks:
    """Of one episode. turns: how many there have been, in the place of the clock."""

    def __init__(
        self,
        seed: int,
        model,
        links: Sequence[Link],
        cuttable: bool,
        precision: Precision,
        turns: Callable[[], int],
    ) -> None:
        self._rng = rng = random.Random(f"{seed} disks")
        self._root = Path(tempfile.mkdtemp(prefix="walk-"))
        labels: dict[str, bytes] = {}
        self._folders = [Folder(self._root, number, "m", 10**9) for number in range(len(links))]
        self.ranks = [
            PrefixDisk(
                First(link), folder, lambda: make_prompt_cache(model), own, AtOnce(), AtOnce()
            )
            for link, folder, own in zip(links, self._folders, (labels, {}), strict=False)
        ]
        limit = rng.choice([100, 400, 10**6])  # KiB
        mine = Rank0(lambda job: rng.random() < 0.3 and self.ranks[0].is_over(job), labels=labels)
        self.index = DiskIndex(
            DiskEntries(limit, 1, cuttable, precision), [RankMemory(10**9, 2048, 256)], mine,
            0 if cuttable else 20, lambda: turns() * 1.0, precision,
        )  # fmt: skip

    def harm(self) -> bool:
        """Cuts or changes a file by chance, the same one on each rank."""
        names = sorted(path.name for path in self._folders[0].path.glob("*.kept"))
        if not names or not self.by_chance(HARMS):
            return False
        name, place = self._rng.choice(names), self._rng.random()
        cut = self._rng.random() < 0.5
        for folder in self._folders:
            path = folder.path / name
            data = bytearray(path.read_bytes())
            data[int(place * len(data))] ^= 16
            path.write_bytes(data[: len(data) // 2] if cut else data)
        return True

    def by_chance(self, share: float) -> bool:
        return self._rng.random() < share

    def close(self) -> None:
        for folder in self._folders:
            folder.close()
        shutil.rmtree(self._root)
