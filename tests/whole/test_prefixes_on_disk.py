"""Prefixes on the disks of two real ranks: found again after a stop and after a crash, and never
used where one rank's part is not what it was."""

import os
import shutil
import signal
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.cluster import Cluster
from tests.support.tiny_models import tiny_llama, tiny_pipeline

pytestmark = pytest.mark.ranks

PROMPT = [65 + i * i % 50 for i in range(1500)]
LONGER = [*PROMPT, *[40 + i % 40 for i in range(20)]]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "tensor": tiny_llama(folder / "llama", context=4096),
        "pipeline": tiny_pipeline(folder / "qwen2", context=4096),
    }


@pytest.fixture
def start(tmp_path, models):
    """start() is a server that has just started, with what the last one left on disk."""
    running: list[Cluster] = []

    def start(split: str = "tensor") -> Cluster:
        running.append(begin(tmp_path, models[split], split, len(running)))
        return running[-1]

    yield start
    for cluster in running:
        cluster.end()


def begin(folder: Path, model: Path, split: str, number: int) -> Cluster:
    settings = {"PREFIX_DISK_DIR": folder / "kept", "PREFIX_DISK_GB": 1, "PARALLEL": split}
    one = Cluster(2, model, folder / f"run{number}", settings)
    one.wait_ready()
    return one


@dataclass(frozen=True)
class Left:
    """What a server that was stopped has left on disk, and the answer to LONGER that it gave."""

    kept: Path
    right: str

    def put(self, folder: Path) -> str:
        """A copy, for those that start there; that answer."""
        shutil.copytree(self.kept, folder / "kept")
        return self.right


@pytest.fixture(scope="module")
def left(models, tmp_path_factory):
    """Of a server that has answered LONGER alone."""
    folder = tmp_path_factory.mktemp("left")
    one = begin(folder, models["tensor"], "tensor", 0)
    try:
        right, _ = complete(one, LONGER)
        wait_written(one)
    finally:
        assert one.end() == 0
    return Left(folder / "kept", right)


def complete(cluster: Cluster, prompt: list[int]) -> tuple[str, int]:
    """The greedy answer of eight tokens, and how many of the prompt were kept."""
    body = {"prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    status, answer = cluster.post("/v1/completions", body)
    assert status == 200, answer
    cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return answer["choices"][0]["text"], cached


def disk(cluster: Cluster) -> dict:
    return cluster.get("/cluster")[1]["prefix_cache"]["disk"]


def wait_written(cluster: Cluster) -> None:
    cluster.wait_for(lambda: disk(cluster)["entries"] >= 1)


def files(tmp_path: Path, rank: int) -> list[Path]:
    return sorted((tmp_path / "kept" / f"rank-{rank}").glob("*/*.kept"))


@pytest.mark.sweep(2)
@pytest.mark.parametrize("split", ["tensor", "pipeline"])
def test_a_stop_and_a_start_later_the_conversation_goes_on(start, split):
    one = start(split)
    assert complete(one, PROMPT)[1] == 0
    right, cached = complete(one, LONGER)
    assert cached >= len(PROMPT)
    assert one.end() == 0
    two = start(split)
    # What the second prompt added was too little for a file of its own.
    assert complete(two, LONGER) == (right, len(PROMPT))
    assert disk(two)["hit_tokens"] == len(PROMPT)
    with urllib.request.urlopen(two.url + "/metrics") as metrics:
        assert b"mlx_cluster_prefix_disk_hits_total" in metrics.read()


@pytest.mark.sweep(2)
@pytest.mark.parametrize("rank", [0, 1])
def test_after_a_rank_was_killed_the_conversation_goes_on(start, rank):
    one = start()
    right, _ = complete(one, LONGER)
    wait_written(one)
    os.kill(one.pids()[rank], signal.SIGKILL)
    one.launcher.wait(60)
    assert complete(start(), LONGER) == (right, len(LONGER) - 1)


def flip_a_bit(tmp_path: Path) -> None:
    for path in files(tmp_path, 1):
        data = bytearray(path.read_bytes())
        data[-1000] ^= 1
        path.write_bytes(data)


def tear(tmp_path: Path) -> None:
    for path in files(tmp_path, 1):
        os.truncate(path, path.stat().st_size - 1)


def empty(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "kept" / "rank-1")


def swap(tmp_path: Path) -> None:
    """The files of either rank in the folder of the other."""
    for zero, one in zip(files(tmp_path, 0), files(tmp_path, 1), strict=True):
        data = zero.read_bytes()
        zero.write_bytes(one.read_bytes())
        one.write_bytes(data)


@pytest.mark.sweep(4)
@pytest.mark.parametrize("harm", [flip_a_bit, tear, swap, empty])
def test_a_part_of_one_rank_that_is_not_whole_is_computed_again(start, left, tmp_path, harm):
    right = left.put(tmp_path)
    harm(tmp_path)
    two = start()
    assert complete(two, LONGER) == (right, 0)
    assert two.get("/health")[0] == 200
    wait_written(two)
    assert two.end() == 0
    assert complete(start(), LONGER) == (right, len(LONGER) - 1)


def test_a_rank_without_a_folder_turns_it_off_for_all_and_says_so(start, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "rank-1").write_text("no folder")
    one = start()
    assert complete(one, LONGER)[1] == 0
    assert complete(one, LONGER)[1] == len(LONGER) - 1  # in memory as ever
    said = [line for line in one.log().splitlines() if "no prefixes on disk" in line]
    assert len(said) == 1 and "rank 1: " in said[0]
    assert disk(one)["entries"] == 0


@pytest.mark.thorough
def test_a_rank_whose_files_go_while_it_serves_computes_with_the_others(start, left, tmp_path):
    right = left.put(tmp_path)
    two = start()
    shutil.rmtree(tmp_path / "kept" / "rank-1")
    assert complete(two, LONGER) == (right, 0)
    assert complete(two, LONGER) == (right, len(LONGER) - 1)
    assert disk(two)["failures"] >= 1
