"""Each pair of ranks proves its link: played links for the words, real ranks over ring for a dead
or a late peer."""

import json
import os
import queue
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from server.protocol.exit_codes import NOT_JOINED, OK
from server.startup import pairs
from server.startup.pairs import LONG, WAITING, Stranger, plan_rounds, prove_pairs
from server.startup.wiring import Wiring
from tests.support.paths import ROOT
from tests.support.ports import free_port

DEADLINE_S = 60


class Dead(Exception):
    """Nothing comes from there: where a real rank would wait for ever."""


class Wires:
    """What ranks on threads send each other. dead: (from, to) to the longest message that still
    passes. waits: a send ends when it is heard, as over some links, or at once."""

    def __init__(self, size: int, dead: dict[tuple[int, int], int] | None = None, waits=False):
        self.size, self.dead, self.waits = size, dead or {}, waits
        ways = [(a, b) for a in range(size) for b in range(size)]
        self.ways = {way: queue.Queue() for way in ways}
        self.heard = {way: queue.Queue() for way in ways}

    def link(self, rank: int):
        return PlayedLink(self, rank)


class PlayedLink:
    def __init__(self, wires: Wires, rank: int) -> None:
        self.wires, self.rank, self.size = wires, rank, wires.size

    def send_ints(self, values, rank):
        way = self.rank, rank
        lost = len(values) > self.wires.dead.get(way, LONG)
        self.wires.ways[way].put(None if lost else list(values))
        if self.wires.waits and not self.wires.heard[way].get(timeout=DEADLINE_S):
            raise Dead

    def hear_ints(self, count, rank):
        way = rank, self.rank
        heard = self.wires.ways[way].get(timeout=DEADLINE_S)
        self.wires.heard[way].put(heard is not None)
        if heard is None:
            raise Dead
        assert len(heard) == count
        return heard

    def share_ints(self, values):
        """A barrier that ends where a rank has."""
        for other in range(self.size):
            self.wires.ways[self.rank, other].put("meet")
        for other in range(self.size):
            if self.wires.ways[other, self.rank].get(timeout=DEADLINE_S) != "meet":
                raise Dead
        return values


def prove_all(wiring: Wiring, wires: Wires, run_ids: dict[int, str] | None = None):
    """By rank: what it told, stages with their seconds, and what ended it (None: nothing)."""

    def live(rank: int):
        told: list[tuple[str, float]] = []
        try:
            run_id = (run_ids or {}).get(rank, "run")
            prove_pairs(wires.link(rank), wiring, run_id, lambda *what: told.append(what))
        except (Dead, Stranger) as error:
            for other in range(wires.size):
                wires.ways[rank, other].put(None)  # the others wait in vain, too
                wires.heard[other, rank].put(False)
            return told, error
        return told, None

    with ThreadPoolExecutor(wires.size) as pool:
        return list(pool.map(live, range(wires.size)))


def first_to_say(ended) -> set[str]:
    """The stages of those stuck ranks whose watchdogs bite first."""
    stuck = [told[-1] for told, error in ended if error]
    soonest = min(extra_s for _, extra_s in stuck)
    return {stage for stage, extra_s in stuck if extra_s == soonest}


def mesh(size: int, cables: int = 1) -> Wiring:
    devices = tuple(
        tuple(
            () if i == j else tuple(f"rdma_en{10 * j + cable}" for cable in range(cables))
            for j in range(size)
        )
        for i in range(size)
    )
    return Wiring(tuple(f"mac{rank}" for rank in range(size)), devices, around=False)


def ring(size: int) -> Wiring:
    return Wiring(("",) * size)


WIRINGS = [mesh(2), mesh(3), mesh(4), mesh(8), ring(2), ring(3), ring(8)]


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("waits", [False, True])
def test_live_links_are_proven_each_way_whether_or_not_a_send_waits(wiring, waits):
    wires = Wires(wiring.size, waits=waits)
    for rank, (told, error) in enumerate(prove_all(wiring, wires)):
        assert error is None and told[-1][0] == WAITING
        assert sum("exchange a word" in stage for stage, _ in told) == len(wiring.peers(rank))
    assert all(way.empty() for way in wires.ways.values())


@pytest.mark.parametrize("wiring", WIRINGS)
def test_no_rank_is_in_two_pairs_of_a_round(wiring):
    rounds: dict[int, list[int]] = {}
    for number, pair in plan_rounds(wiring):
        rounds.setdefault(number, []).extend(pair)
    assert all(len(ranks) == len({*ranks}) for ranks in rounds.values())
    assert sorted(rounds) == list(range(len(rounds)))


@pytest.mark.parametrize("wiring", [mesh(4), mesh(8), ring(5)])
@pytest.mark.parametrize("waits", [False, True])
def test_of_all_that_wait_the_pair_with_the_dead_wire_says_so_first(wiring, waits):
    """In either direction, wherever it is; whoever waits for one of the two waits longer."""
    for _, (a, b) in plan_rounds(wiring):
        for way in ((a, b), (b, a)):
            ended = prove_all(wiring, Wires(wiring.size, {way: 0}, waits))
            words = f"{wiring.end(a, b)} and {wiring.end(b, a)} exchange a word"
            assert first_to_say(ended) == {words}, way


@pytest.mark.parametrize("gone", range(4))
def test_a_rank_that_is_dead_is_in_every_pair_that_says_so_first(gone):
    ways = {(gone, other): 0 for other in range(4)}
    (first,) = first_to_say(prove_all(mesh(4), Wires(4, ways)))
    assert f"rank {gone} (mac{gone}" in first


def test_of_two_cables_the_second_is_proven_too(monkeypatch):
    """A mesh sends short messages over the first alone; long ones hung, after the load."""
    monkeypatch.setattr(pairs, "LONG", 64)
    wiring = mesh(3, cables=2)
    assert all(error is None for _, error in prove_all(wiring, Wires(3)))
    ended = prove_all(wiring, Wires(3, dead={(0, 2): 40}))
    told = [told[-1][0] for told, error in ended if error]
    ends = "rank 0 (mac0: rdma_en20, rdma_en21) and rank 2 (mac2: rdma_en0, rdma_en1)"
    assert told == [f"all cables between {ends}"] * 3


def test_a_rank_of_another_run_is_named():
    ended = prove_all(mesh(3), Wires(3), run_ids={1: "another"})
    assert "this run's ranks alone: another server's" in str(ended[0][1])
    assert "in the place of rank 0 (mac0)" in str(ended[1][1])


# Real ranks over ring.

RANK = """
import logging, os, sys, time
logging.basicConfig(format="%(message)s")
sys.path.insert(0, {root!r})
from server.lifecycle.watchdog import Watchdog
from server.protocol.exit_codes import NOT_JOINED
from server.startup.joining import join, meet
from server.startup.pairs import WHAT_TO_DO
time.sleep({late_s})
watchdog = Watchdog(600, lambda reason: None)
watchdog.start()
link = join(os.environ, {join_s}, lambda text: print("early:", text, flush=True))
print("joined", flush=True)
if {dead}:
    time.sleep(600)
with watchdog.within({limit_s}, NOT_JOINED, WHAT_TO_DO):
    def tell(stage, extra_s):
        watchdog.set_limit({limit_s} + extra_s)
        watchdog.progress(stage)
    meet(link, os.environ, "run", tell)
print("met", flush=True)
"""


def start_ranks(tmp_path, ranks: int, dead: int = -1, late: tuple[int, float] = (-1, 0), **how):
    how = {"join_s": 0, "limit_s": DEADLINE_S} | how
    first = free_port(ranks)
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{first + rank}"] for rank in range(ranks)]))
    env = os.environ | {"MLX_HOSTFILE": str(hosts)}
    processes = []
    for rank in range(ranks):
        late_s = late[1] if rank == late[0] else 0
        code = RANK.format(root=str(ROOT), dead=rank == dead, late_s=late_s, **how)
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", code], env=env | {"MLX_RANK": str(rank)}, text=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
    return first, processes


def end(processes) -> None:
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.ranks
def test_a_real_peer_that_joined_and_fell_silent_is_named_within_the_limit(tmp_path):
    """It stood at "handshake" for LOAD_TIMEOUT, a quarter of an hour."""
    first, processes = start_ranks(tmp_path, 3, dead=2, limit_s=2)
    try:
        _, said = processes[0].communicate(timeout=DEADLINE_S)
        assert processes[0].returncode == NOT_JOINED, said
        ends = f"rank 0 (127.0.0.1:{first}) and rank 2 (127.0.0.1:{first + 2})"
        assert f"at: {ends} exchange a word; look for what the cables" in said.splitlines()[-1]
    finally:
        end(processes)


@pytest.mark.thorough
def test_a_real_rank_0_may_be_later_than_mlx_waits(tmp_path):
    """MLX's own tries take 31 s over ring, then the start was lost. Nearly all of it is waiting, so
    other tests may go on beside it."""
    _, processes = start_ranks(tmp_path, 2, late=(0, 35), join_s=90)
    try:
        outputs = [process.communicate(timeout=2 * DEADLINE_S) for process in processes]
        assert [process.returncode for process in processes] == [OK, OK], outputs
        assert [out.splitlines()[-1] for out, _ in outputs] == ["met", "met"]
        assert "early: not all ranks are there yet" in outputs[1][0]
    finally:
        end(processes)
