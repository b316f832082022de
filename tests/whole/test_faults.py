"""Faults on real ranks, through the real run script: what clients see, and that service comes back.

A representative part of what scripts/dev/fault_table.py runs; docs/operations.md holds its table.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from server.lifecycle.shutdown import Drainer
from server.observe.status import Status
from server.protocol.exit_codes import CONFIG, NOT_JOINED
from server.scheduler.queue import Line
from tests.support.cluster import engine_environment
from tests.support.faults import (
    ANSWERED,
    CONTEXT,
    CUT,
    DECODE,
    ERROR_EVENT,
    IDLE,
    LONG_ANSWER,
    PREFILL,
    PROBE,
    REFUSED,
    ROOT,
    STALL_TIMEOUT_S,
    STREAMS,
    Client,
    Server,
    Stranger,
    leave_rank_zero_stopped,
    wait_for,
)
from tests.support.ports import free_port
from tests.support.tiny_models import tiny_llama

pytestmark = pytest.mark.ranks

SOON_S = 30  # for what takes a few seconds on a quiet machine
SECOND_LOOK_S = 5  # between the launcher's two SIGTERMs (GRACE_S)


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny", context=CONTEXT)


@pytest.fixture
def server(tmp_path, tiny_model):
    """server(**settings) -> Server, not started yet; ended afterwards."""
    made: list[Server] = []

    def make(**settings) -> Server:
        made.append(Server(tmp_path / f"server{len(made)}", tiny_model, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


def start(server: Server) -> Server:
    assert server.start() == 0, server.output
    return server


def assert_told(clients: list[Client]) -> None:
    """Each has an error that says so: a 503, or an event that ends its stream."""
    for client in clients:
        client.join(SOON_S)
        assert client.outcome in ("503", ERROR_EVENT), (client.outcome, client.text[-20:])
        assert client.error["type"] == "server_error" and client.error["message"]
        if client.outcome == "503":
            assert int(client.retry_after) >= 1


def assert_served_again(server: Server, struck: float, failure: str, restarts: int = 1) -> float:
    """Good answers, nobody left over, and /health tells of it. Seconds since the fault."""
    seconds, newcomers = server.wait_good_answer(struck)
    # A newcomer may be cut if it arrives in the very moment in which the process ends.
    assert not newcomers.keys() - {"503", REFUSED, CUT} and newcomers[CUT] <= 1, newcomers
    assert server.orphans() == []
    status, health = server.get("/health")
    assert (status, health["restarts"]) == (200, restarts)
    assert failure in health["last_failure"]
    assert health["running"] == health["queued"] == health["kv_tokens"]["used"] == 0
    return seconds


# A server that serves.


def test_a_killed_worker_under_eight_streams_is_told_to_all_and_service_returns(server):
    one = start(server())
    held = one.hold(STREAMS)
    struck = time.monotonic()
    os.kill(one.rank(1), signal.SIGKILL)
    assert_told(held)
    assert_served_again(one, struck, "rank 1 on 127.0.0.1 exited with code 137 (ended by SIGKILL)")


def test_a_killed_rank_zero_is_replaced(server):
    """Its clients see a cut: nobody is left to tell them."""
    one = start(server())
    held = one.hold(DECODE)
    struck = time.monotonic()
    os.kill(one.rank(0), signal.SIGKILL)
    for client in held:
        client.join(SOON_S)
        assert client.ended_at is not None, "a client hangs"
    assert_served_again(one, struck, "rank 0 on 127.0.0.1 exited with code 137")


def test_a_stopped_worker_is_found_by_the_watchdog(server):
    one = start(server())
    held = one.hold(DECODE)
    struck = time.monotonic()
    os.kill(one.rank(1), signal.SIGSTOP)
    assert_told(held)
    assert max(client.ended_at for client in held) - struck > STALL_TIMEOUT_S - 1
    assert_served_again(one, struck, f"no progress for {STALL_TIMEOUT_S} s at: engine step")
    assert "stacks of all threads follow" in one.log()


@pytest.mark.parametrize("phase", [IDLE, PREFILL, DECODE])
def test_a_pause_of_the_whole_machine_ends_nothing(server, phase):
    """Ctrl-Z and fg, a laptop's lid: each rank's watchdog bit on waking."""
    one = start(server())
    ranks = one.tree()
    held = one.hold(phase)
    one.pause(STALL_TIMEOUT_S + 3)
    assert all(map(one.goes_on, held))
    time.sleep(STALL_TIMEOUT_S + 2)  # nor does a watchdog bite later
    assert one.tree() == ranks
    assert one.get("/health")[1]["restarts"] == 0
    assert all(map(one.goes_on, held))
    for client in held:
        client.leave()
    assert one.ask().text == one.reference


def test_a_rank_that_was_away_alone_leaves_when_it_finds_the_others_gone(server):
    """The others cannot know when it comes back: they end, and all are started again."""
    one = start(server(STALL_TIMEOUT=3))
    held = one.hold(DECODE)
    away = one.rank(1)
    struck = time.monotonic()
    os.kill(away, signal.SIGSTOP)
    assert_told(held)
    os.kill(away, signal.SIGCONT)
    wait_for(lambda: away not in one.left(), "the rank that was away to leave")
    assert_served_again(one, struck, "no progress for 3 s at: engine step")


def test_a_stopped_rank_zero_is_continued_to_tell_its_clients(server):
    """Its SIGTERM used to lie unread until SIGKILL cut every client."""
    one = start(server())
    held = one.hold(PREFILL)
    struck = time.monotonic()
    os.kill(one.rank(0), signal.SIGSTOP)
    assert_told(held)
    assert_served_again(one, struck, "rank 1 on 127.0.0.1 exited with code 75 (watchdog")


def test_a_rank_that_raises_in_its_step_ends_the_run_with_its_words(server):
    one = start(server())
    held = one.hold(DECODE)
    struck = time.monotonic()
    (one.fault_dir / "raise-1").touch()
    assert_told(held)
    assert_served_again(one, struck, "code 70 (unexpected error): ArithmeticError: a fault put in")


def test_a_killed_launcher_takes_its_ranks_along_and_is_replaced(server):
    one = start(server())
    held = one.hold(PREFILL)
    struck = time.monotonic()
    os.kill(one.launcher, signal.SIGKILL)
    assert_told(held)
    assert_served_again(one, struck, "the launcher ended with code 137 (ended by SIGKILL)")


def test_a_killed_supervisor_leaves_nothing_but_a_clear_last_line(server):
    """The line used to be lost: it went into the pipe of the supervisor that was gone."""
    one = start(server())
    held = one.hold(DECODE)
    struck = time.monotonic()
    os.kill(one.supervisor, signal.SIGKILL)
    assert_told(held)
    one.wait_gone(struck)
    assert one.last_line() == (
        "mlx_launch: over: every rank has been ended, because the supervisor is gone"
    )
    assert one.start() == 0, one.output  # what it left behind is in nobody's way


def test_a_log_that_takes_nothing_stops_neither_service_nor_restart(server):
    one = server()
    one.log_path.symlink_to("/dev/full")
    start(one)
    struck = time.monotonic()
    os.kill(one.rank(1), signal.SIGKILL)
    assert_served_again(one, struck, "exited with code 137")


def test_a_stopped_supervisor_stops_no_service(server):
    """Ctrl-Z stops the supervisor alone. After 1,300 requests its pipe was full, then the ranks',
    and every thread waited in a log call: 503 for ever."""
    one = start(server(LOG_LEVEL="DEBUG"))
    os.kill(one.supervisor, signal.SIGSTOP)
    one.make_log_lines(4000)  # more than pipes and queues hold
    assert one.ask().text == one.reference
    assert one.get("/health")[0] == 200
    os.kill(one.supervisor, signal.SIGCONT)
    wait_for(lambda: "lines of the ranks dropped: nobody read them" in one.log(), "the count")
    struck = time.monotonic()
    os.kill(one.rank(1), signal.SIGKILL)
    assert_served_again(one, struck, "rank 1 on 127.0.0.1 exited with code 137")


def test_a_full_disk_under_run_is_named_and_ends_no_service(server):
    """Each restarted rank died writing its pid file: five failures, over, no word of the disk."""
    one = server()
    if reason := one.give_small_disk():
        pytest.skip(reason)
    start(one)
    ranks = {one.rank(0), one.rank(1)}
    give_back = one.fill_disk()
    os.kill(one.rank(1), signal.SIGKILL)
    one.wait_good_answer(time.monotonic())
    health = one.get("/health")[1]
    problem = f"cannot write {one.run_dir}/rank-0.pid: No space left on device"
    assert (health["detail"], health["restarts"]) == (f"serving; {problem}", 1)
    for rank in (0, 1):
        assert f"[rank {rank}] WARNING cannot write" in one.log()
    give_back()
    written = [one.run_dir / f"rank-{rank}.pid" for rank in (0, 1)]
    wait_for(lambda: all(path.exists() for path in written), "the pid files")
    assert ranks.isdisjoint({one.rank(0), one.rank(1)})
    assert one.orphans() == []
    wait_for(lambda: one.get("/health")[1]["detail"] == "serving", "no more trouble")


def test_six_failures_in_a_row_do_not_end_a_service_that_served_each_time(server):
    one = start(server())
    for restarts in range(1, 7):
        struck = time.monotonic()
        os.kill(one.rank(1), signal.SIGKILL)
        assert_served_again(one, struck, "exited with code 137", restarts)


# A link that loses or garbles messages.

GARBLED_WORDS = "code 76 (the link lost or garbled a message): the link lost or garbled a message: "


def assert_garbled(server: Server, count: int, clients: list[Client], struck: float) -> str:
    """Clients are told, and the count-th failure has its name. What /health says of it."""
    assert_told(clients)
    for client in clients:
        assert server.answers_right(client), "a wrong token was handed out"
    assert_served_again(server, struck, "code 76", restarts=count)
    assert "SIGSEGV" not in server.log()
    failure = server.get("/health")[1]["last_failure"]
    assert GARBLED_WORDS in failure, failure
    return failure


@pytest.fixture
def told_long_answer(server):
    """server(), started, which knows what LONG_ANSWER begins with."""
    one = start(server())
    right = Client(one.port, LONG_ANSWER | {"max_tokens": 500}, stream=True)
    right.join()
    assert right.outcome == ANSWERED
    one.long_answer = right.text
    return one


def test_garbled_tokens_reach_no_client_and_end_the_ranks_with_the_reason(told_long_answer):
    """A token id out of range was a SIGSEGV; the log named no cause."""
    one = told_long_answer
    spoilt = [(0, "step", "flipped"), (1, "step", "wild"), (1, "step", "repeated"),
              (0, "first tokens", "wild")]  # fmt: skip
    for count, (rank, kind, how) in enumerate(spoilt, 1):
        held = one.hold(DECODE)
        struck = time.monotonic()
        one.garble(rank, kind, how)
        if kind == "first tokens":
            held.append(Client(one.port, PROBE, stream=True))
        failure = assert_garbled(one, count, held, struck)
        assert f"rank {rank} on 127.0.0.1 exited with code 76" in failure
        assert f"a message: {kind} (message " in failure


def test_garbled_headers_and_bundles_end_the_ranks_with_the_reason(told_long_answer):
    """A header once announced a bundle of a billion numbers, and rank 0 tried to take them in."""
    one = told_long_answer
    spoilt = [(0, "meeting", "wild"), (1, "meeting", "emptied"), (1, "bundle", "flipped"),
              (1, "meeting", "shifted")]  # fmt: skip
    for count, (rank, kind, how) in enumerate(spoilt, 1):
        held = []
        struck = time.monotonic()
        one.garble(rank, kind, how)
        if kind == "bundle":
            held = [Client(one.port, PROBE, stream=True)]
        failure = assert_garbled(one, count, held, struck)
        # A stream that is shifted is shifted for both.
        assert how == "shifted" or f"rank {rank} on 127.0.0.1 exited with code 76" in failure
        assert f"a message: {kind} (message " in failure


def test_a_stream_that_is_shifted_amid_the_models_own_sums_hangs_nobody(told_long_answer):
    """The sums have other sizes, so what comes of it may be anything: a lost peer, or silence."""
    one = told_long_answer
    held = one.hold(STREAMS)
    struck = time.monotonic()
    one.garble(1, "step", "shifted")
    assert_told(held)
    assert all(map(one.answers_right, held))
    assert_served_again(one, struck, "exited with code ")
    assert re.search("code (69|75|76) ", one.get("/health")[1]["last_failure"])
    assert "SIGSEGV" not in one.log()


@pytest.mark.parametrize(
    ("rank", "kind", "how"),
    [(0, "lengths", "wild"), (1, "gathered", "flipped"), (1, "step", "emptied")],
)
def test_what_is_garbled_at_the_start_is_named(server, rank, kind, how):
    """In the handshake, and in the canary: neither is taken for ranks that differ, which would be
    the end. Another start finds the link in order."""
    one = server()
    one.garble(rank, kind, how)
    assert one.start() == 0, one.output
    told = one.get("/health")[1]
    assert GARBLED_WORDS + kind in told["last_failure"] and told["restarts"] == 1
    assert one.orphans() == []


# A server that starts.


@pytest.mark.parametrize("missing", [0, 1])
def test_a_rank_that_never_comes_up_ends_the_start(server, missing):
    """MLX waits for it in native code with the interpreter's lock held: no thread of rank 0's
    ran, so neither its watchdog nor a SIGTERM ended it, ever."""
    one = server(JOIN_TIMEOUT=4)
    (one.fault_dir / f"hang-{missing}").touch()
    assert one.start("--no-restart") == 1
    last = one.last_line()
    assert f"over: restarts are off; the last: rank {1 - missing}" in last
    assert "the other ranks did not join it within JOIN_TIMEOUT" in last
    assert last in one.output
    assert not one.left()


@pytest.mark.parametrize("deed", ["talks", "leaves"])
def test_a_stranger_at_a_ring_port_costs_a_start_one_more_try(server, deed):
    """MLX takes whoever calls for a neighbour. The start stood for LOAD_TIMEOUT, and was lost."""
    one = server(JOIN_TIMEOUT=25)
    with Stranger(one.port + 1, deed) as stranger:
        assert one.start() == 0, one.output
    assert stranger.called.is_set()
    assert one.log().count("started launcher") == 2
    assert "failed: rank" in one.log() and "code 68 (the ranks did not join)" in one.log()
    assert one.get("/health")[1]["restarts"] == 1 and one.orphans() == []


def test_a_rank_that_dies_while_it_loads_ends_the_start(server):
    """Long before LOAD_TIMEOUT, though rank 0 waits for it in a collective."""
    one = server()
    (one.fault_dir / "load-1").touch()
    starting = one.begin()
    wait_for(lambda: one.get("/health")[1].get("detail") == "loading on 2 ranks", "loading")
    time.sleep(1)  # into the collective
    os.kill(one.rank(1), signal.SIGKILL)
    assert starting.wait(SOON_S) == 1
    last = one.last_line()
    assert "over: the server did not start; the last: rank 1" in last and "SIGKILL" in last
    assert not one.left()


def test_a_stop_is_heard_while_ranks_wait_for_one_that_is_missing(server):
    one = server()
    (one.fault_dir / "hang-1").touch()
    (one.fault_dir / "hang-0").touch()
    starting = one.begin()
    wait_for(lambda: (one.run_dir / "supervisor.pid").exists(), "the supervisor")
    (one.fault_dir / "hang-0").unlink()
    wait_for(lambda: "[rank 0] INFO joining" in one.log(), "rank 0 to wait")
    time.sleep(0.5)  # from the line to the native call
    asked = time.monotonic()
    os.kill(one.supervisor, signal.SIGTERM)
    assert one.wait_gone(asked) < SECOND_LOOK_S
    assert starting.wait(SOON_S) == 1
    assert "over: stopped as asked" in one.last_line()


def test_a_taken_port_is_named_before_anything_is_started(server):
    one = server()
    with socket.create_server(("127.0.0.1", one.port)):
        assert one.start() == 1
    assert f"port {one.port} of 127.0.0.1 is taken by something else" in one.output
    assert not one.left() and not one.run_dir.exists()


def test_a_fault_right_after_the_start_is_a_failure_of_a_server_that_served(server):
    """--detach returned when /health was ready, up to half a second before the supervisor had seen
    it: a fault in between counted as a start that failed, and nothing was started again."""
    one = start(server())
    assert "supervisor: ready" in one.log()


# Ranks that differ.


def run_two_ranks_by_hand(
    tmp_path, model_dirs, steps, run_ids=("", "")
) -> tuple[list[int], list[str]]:
    """Exit codes and output of two ranks without a launcher, each with settings of its own."""
    first = free_port(3)
    hostfile = tmp_path / "hosts.json"
    hostfile.write_text(json.dumps([[f"127.0.0.1:{first + 1}"], [f"127.0.0.1:{first + 2}"]]))
    ranks = []
    for rank in (0, 1):
        env = os.environ | engine_environment() | {
            "MLX_RANK": str(rank), "MLX_HOSTFILE": str(hostfile), "HTTP_PORT": str(first),
            "MODEL_DIR": str(model_dirs[rank]), "PREFILL_STEP": str(steps[rank]),
            "LOAD_TIMEOUT": "60",
        }  # fmt: skip
        ranks.append(
            subprocess.Popen(
                [
                    sys.executable,
                    ROOT / "server/openai_cluster_server.py",
                    "--run-id",
                    run_ids[rank],
                ],
                env=env,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )  # fmt: skip
        )
    try:
        output = [rank.communicate(timeout=90)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [rank.returncode for rank in ranks], output


def test_a_rank_with_another_setting_is_named_with_both_values(tmp_path, tiny_model):
    codes, output = run_two_ranks_by_hand(tmp_path, [tiny_model] * 2, [128, 256])
    assert codes == [CONFIG, CONFIG], output
    for text in output:
        last = text.splitlines()[-1]
        assert "the ranks differ: rank 1 (" in last
        assert "has PREFILL_STEP = 256, rank 0 (" in last and last.endswith("has 128")


def test_a_rank_with_other_model_files_is_named_with_both_fingerprints(tmp_path, tiny_model):
    other = tiny_llama(tmp_path / "tiny", context=CONTEXT, hidden=128)
    codes, output = run_two_ranks_by_hand(tmp_path, [tiny_model, other], [128, 128])
    assert codes == [CONFIG, CONFIG], output
    for text in output:
        last = text.splitlines()[-1]
        assert "rank 1 (" in last and "has model file config.json = " in last
        assert "has model file model.safetensors = " in last and " bytes, header " in last


def test_ranks_of_two_servers_that_meet_at_one_port_part_again(tmp_path, tiny_model):
    """Alike in all else, they would have served each other's requests. Not code 78: another start
    may find its own."""
    runs = ("run-one", "run-two")
    codes, output = run_two_ranks_by_hand(tmp_path, [tiny_model] * 2, [128, 128], runs)
    assert codes == [NOT_JOINED, NOT_JOINED], output
    for text in output:
        assert "what joined is not this run's ranks alone: another server's" in text.splitlines()[-1]


def test_ranks_that_differ_are_not_started_again(server):
    one = server()
    (one.fault_dir / "env-1").write_text("PREFILL_STEP=256\n")
    assert one.start() == 1
    assert "has PREFILL_STEP = 256, rank 0 (" in one.output
    assert "supervisor: over: starting again cannot help" in one.output
    assert one.log().count("started launcher") == 1
    assert not one.left()


def test_a_stopped_rank_zero_that_nobody_watches_is_told_and_ended(server):
    """With supervisor and launcher killed it kept the port, and 'something else' was blamed."""
    one = start(server())
    rank_zero = one.rank(0)
    leave_rank_zero_stopped(one)
    assert one.start() == 1
    line = f"port {one.port} of 127.0.0.1 is held by rank 0 (pid {rank_zero}, stopped) of run "
    assert line in one.output and f"HTTP_PORT={one.port} scripts/stop_openai_clu" in one.output
    assert rank_zero in one.left()
    assert one.stop() == 0
    assert not one.left()
    start(one)


def test_of_two_starts_at_once_one_serves_and_is_found(server):
    one = server()
    scripts = [one.begin(), one.begin()]
    outputs = [script.communicate(timeout=120)[0] for script in scripts]
    codes = [script.returncode for script in scripts]
    assert sorted(codes) == [0, 1], outputs
    loser = outputs[codes.index(1)]
    assert "already running" in loser, loser
    health = one.get("/health")[1]
    one.run_ids.add(health["run_id"])
    told = (one.run_dir / "started_with").read_text()
    assert f"RUN_ID={health['run_id']}\n" in told
    assert one.stop() == 0
    assert not one.left()


# Signals.


def test_the_first_signal_drains_and_the_second_ends_at_once(server):
    one = start(server())
    held = one.hold(DECODE)
    os.kill(one.supervisor, signal.SIGTERM)
    wait_for(lambda: one.get("/health")[1].get("status") == "draining", "the drain")
    assert one.get("/health")[0] == 503
    newcomer = one.ask()
    assert newcomer.outcome == "503" and int(newcomer.retry_after) >= 1
    assert newcomer.error["code"] == "draining"
    assert all(client.is_alive() for client in held), "what runs goes on"
    again = time.monotonic()
    os.kill(one.supervisor, signal.SIGTERM)
    assert_told(held)
    assert one.wait_gone(again) < SOON_S
    assert "over: stopped as asked" in one.last_line()


def test_signals_are_heard_while_a_collective_blocks(server):
    """To the rank itself: the launcher would have its stopped peer go on."""
    one = start(server(STALL_TIMEOUT=60))
    held = one.hold(DECODE)
    os.kill(one.rank(1), signal.SIGSTOP)
    time.sleep(0.5)  # rank 0 is in the collective now
    rank_zero = one.rank(0)
    os.kill(rank_zero, signal.SIGTERM)
    wait_for(lambda: one.get("/health")[1].get("status") == "draining", "the drain")
    assert one.get("/health")[0] == 503
    newcomer = one.ask()
    assert (newcomer.outcome, newcomer.error["code"]) == ("503", "draining")
    assert int(newcomer.retry_after) >= 1
    assert all(client.is_alive() for client in held)
    os.kill(rank_zero, signal.SIGTERM)
    assert_told(held)
    wait_for(lambda: rank_zero not in one.left(), "rank 0 to leave", SOON_S)


def test_stopping_a_server_with_a_stopped_rank_drains_and_leaves_nothing(server):
    one = start(server(STALL_TIMEOUT=60))
    short = Client(one.port, PROBE | {"max_tokens": 2000}, stream=True)
    wait_for(lambda: short.text, "tokens")
    os.kill(one.rank(1), signal.SIGSTOP)
    asked = time.monotonic()
    os.kill(one.supervisor, signal.SIGTERM)
    one.wait_gone(asked)
    assert short.outcome == ANSWERED and len(short.text) >= 1000
    assert "over: stopped as asked" in one.last_line()


# Parts, without ranks.


def test_a_signal_does_not_cut_last_words_short():
    """The launcher's SIGTERM comes while rank 0 tells its clients of the fault: it used to end
    there, 'before the model was ready', and some streams were cut."""
    ended = []

    class Watched(Drainer):
        def end(self, code):
            ended.append(code)

    status = Status("demo", "run")
    status.phase = "failed"
    leaver = Watched(lambda: None, Line(1, 1), status, 30)
    leaver.drain()
    assert not ended


NATIVE = """
import sys; sys.path.insert(0, {root!r})
import ctypes, threading
from server.lifecycle.shutdown import block_signals, signals_end_at_once
from server.lifecycle.watchdog import limit_native
block_signals()
with limit_native({limit}), signals_end_at_once():
    print("in", flush=True)
    ctypes.PyDLL(None).sleep(60)  # a PyDLL call keeps the interpreter's lock
"""


def in_native_code(limit: float) -> subprocess.Popen:
    program = [sys.executable, "-c", NATIVE.format(root=str(ROOT), limit=limit)]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "in\n"
    return process


def test_native_code_that_keeps_the_lock_is_ended_with_its_stack():
    process = in_native_code(0.5)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "Timeout" in errors and "most recent call first" in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_native_code_that_keeps_the_lock(number):
    process = in_native_code(60)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == -number


THREADS_OF_NATIVE_CODE = """
import sys; sys.path.insert(0, {root!r})
import os, signal, threading, time
from server.lifecycle.shutdown import block_signals, signals_end_at_once
block_signals()
with signals_end_at_once():
    native = threading.Thread(target=time.sleep, args=(60,), daemon=True)
    native.start()
os.kill(os.getpid(), signal.SIGTERM)
print(signal.sigwait({{signal.SIGTERM}}).name)
"""


def test_threads_that_native_code_starts_take_no_signals_later():
    """MLX's threads did, as they inherited the mask: a SIGTERM ended rank 0 without a word."""
    program = [sys.executable, "-c", THREADS_OF_NATIVE_CODE.format(root=str(ROOT))]
    done = subprocess.run(program, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, "SIGTERM\n"), done.stderr


def test_operations_names_tests_that_exist_and_holds_the_table():
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    code = "\n".join(path.read_text("utf-8") for path in ROOT.glob("tests/**/*.py"))
    modules = {path.stem for path in ROOT.glob("tests/**/test_*.py")}
    named = set(re.findall(r"\btest_\w+", page))
    assert {name for name in named - modules if f"def {name}(" not in code} == set()
    table = page.partition("<!-- fault table")[2].partition("<!-- end of fault table -->")[0]
    assert "SIGKILL of rank 0" in table and "not run" not in table
