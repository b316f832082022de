"""Signals, in processes of their own whose main thread sits in native code and never returns."""

import signal
import subprocess
import sys
import time

import pytest

from server.lifecycle import shutdown
from server.lifecycle.shutdown import Drainer
from server.observe.status import Status
from server.observe.views import State
from server.protocol.exit_codes import OK, PEER_LOST, STALLED
from server.protocol.requests import Common
from server.scheduler.queue import Line, Ticket
from tests.support.paths import ROOT

DEADLINE_S = 60

PRELUDE = """
import logging, os, sys, threading, time
from server.lifecycle import shutdown, watchdog
from server.protocol.errors import ApiError
from server.api.requests import Common
from server.lifecycle.shutdown import Drainer, Worker, block_signals, handle_signals
from server.observe.status import Status
from server.scheduler.queue import Line, Ticket

logging.basicConfig(stream=sys.stderr, level="INFO")
shutdown.FLUSH_S = 0.1
say = lambda *words: os.write(1, (" ".join(map(str, words)) + chr(10)).encode())
block_signals()
line, status = Line(2, 2), Status("demo", "run")
status.phases.serve()
ticket = Ticket([1], 10, Common())

def main_thread():
    "Sits in native code, as in a collective whose peer is gone."
    say("ready")
    os.read(os.pipe()[0], 1)

def on_end():
    say("on_end")

def tell_state():
    "Until told to go on by a line of input: what a client would see now."
    while sys.stdin.readline():
        try:
            line.admit([Ticket([1], 10, Common())])
            say("admitted")
        except ApiError as error:
            say(status.state.phase, error.status, error.code)
        event = None if ticket.events.empty() else ticket.events.get()[1]
        say(event.error.code if event else "nothing")
threading.Thread(target=tell_state, daemon=True).start()
"""


class Rank:
    """A process that is ready for signals."""

    def __init__(self, body: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + body + "\nmain_thread()\n"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert self.line() == "ready"

    def line(self) -> str:
        return self.process.stdout.readline().strip()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def ask(self) -> tuple[str, str]:
        """What a newcomer gets, and what the ticket that is held got."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.line(), self.line()

    def wait_draining(self) -> str:
        """Until newcomers are turned away; returns what the ticket that is held got."""
        deadline = time.monotonic() + DEADLINE_S
        while (answers := self.ask())[0] != "draining 503 draining":
            assert time.monotonic() < deadline, answers
            time.sleep(0.01)
        return answers[1]

    def end(self) -> tuple[int, str]:
        """Exit code and the rest of the output."""
        out, self.log = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, out


@pytest.fixture
def start():
    ranks = []

    def make(body: str) -> Rank:
        ranks.append(Rank(body))
        return ranks[-1]

    yield make
    for rank in ranks:
        if rank.process.poll() is None:
            rank.process.kill()
            rank.process.communicate()


SERVING = """
leaver = Drainer(on_end, line, status, {drain})
line.stop = lambda reason: (say("stop", reason), {leave})
handle_signals(leaver)
"""


def serving(drain: float = 60, leaves: bool = True) -> str:
    return SERVING.format(drain=drain, leave="leaver.end(0)" if leaves else "None")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_drains_and_all_ranks_leave_when_nothing_is_held(start, number):
    rank = start(serving() + "line.admit([ticket])")
    rank.signal(number)
    assert rank.wait_draining() == "nothing"  # the one held goes on
    rank.signal(signal.SIGHUP)
    assert rank.end()[0] == PEER_LOST


def test_an_idle_rank_zero_leaves_at_once_through_stop(start):
    rank = start(serving())
    rank.signal(signal.SIGTERM)
    assert rank.end() == (OK, "stop drained\non_end\n")


def test_a_drain_ends_when_the_last_answer_has_been_sent(start):
    body = """
def answer():
    line.release(ticket)  # the engine is done with it
    time.sleep(0.4)
    say("answered")
    line.answered(ticket)
line.admit([ticket])
threading.Timer(0.2, answer).start()
"""
    rank = start(serving() + body)
    rank.signal(signal.SIGTERM)
    assert rank.end() == (OK, "answered\nstop drained\non_end\n")


def test_a_drain_that_takes_too_long_answers_what_is_left_with_503(start):
    body = """
line.admit([ticket])
def stop(reason):
    say(ticket.events.get(timeout=5)[1].error.code, "then", reason)
    leaver.end(0)
line.stop = stop
"""
    rank = start(serving(drain=0.2) + body)
    rank.signal(signal.SIGTERM)
    assert rank.end() == (OK, "shutting_down then drained\non_end\n")


def test_the_second_signal_ends_at_once_after_last_words(start):
    rank = start(serving() + "line.admit([ticket])")
    rank.signal(signal.SIGTERM)
    rank.wait_draining()
    rank.signal(signal.SIGTERM)
    assert rank.end() == (OK, "on_end\n")
    assert "ending at once: second signal (SIGTERM)" in rank.log


ENDINGS = pytest.mark.parametrize(
    ("restarts", "code", "told"),
    [(True, 137, "restarting"), (True, 78, "failed"), (False, 137, "failed")],
)
FAILURE = "rank 1 on mac1 exited with code 137"


@ENDINGS
def test_of_another_ranks_failure_clients_hear_and_not_of_a_stop(start, restarts, code, told):
    """The launcher's SIGTERMs were taken for wishes: "draining", "The server is shutting down."."""
    rank = start(f"""
line.admit([ticket])
shutdown.FLUSH_S = watchdog.LAST_WORDS_S = 2  # for what the client of this test asks
leaver = Drainer(on_end, line, status, 60, restarts={restarts})
handle_signals(leaver)
threading.Thread(target=leaver.follow, args=["{code} {FAILURE}"]).start()
while status.state.phase == "ok": time.sleep(0.01)
""")
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):
        rank.signal(number)
    heard = [rank.ask() for _ in range(3)]
    assert [newcomer for newcomer, _ in heard] == [f"{told} 503 {told}"] * 3
    assert [code for _, code in heard if code != "nothing"] == [told]


@ENDINGS
def test_the_words_of_a_failure_name_the_rank(monkeypatch, restarts, code, told):
    monkeypatch.setattr(shutdown, "end_soon", lambda code: None)

    class Watched(Drainer):
        def end(self, code):
            ended.append(code)

    ended, line, status = [], Line(1, 1), Status("demo", "run")
    ticket = Ticket([1], 10, Common())
    status.phases.serve()
    line.admit([ticket])
    line.answered(ticket)
    Watched(lambda: None, line, status, 30, restarts=restarts).follow(f"{code} {FAILURE}")
    error = ticket.events.get(timeout=DEADLINE_S)[1].error
    verb = {"restarting": "is restarting", "failed": "failed"}[told]
    assert error.message == f"The server {verb}: {FAILURE}."
    assert (error.status, error.code, error.headers()["Retry-After"]) == (503, told, "5")
    assert status.state == State(told, FAILURE)
    assert ended == [PEER_LOST]


def test_a_hangup_ends_at_once_and_says_that_the_launcher_is_gone(start):
    rank = start(serving() + "line.admit([ticket])")
    rank.signal(signal.SIGHUP)
    assert rank.end() == (PEER_LOST, "on_end\n")
    assert "the launcher is gone" in rank.log


def test_before_the_model_is_ready_a_signal_ends_at_once(start):
    rank = start("handle_signals(Drainer(on_end, line, Status('demo', 'run'), 60))")
    rank.signal(signal.SIGTERM)
    assert rank.end() == (OK, "on_end\n")


def test_a_rank_that_does_not_leave_the_loop_is_ended(start):
    rank = start(serving(leaves=False) + "shutdown.LEAVE_S = 0.3")
    rank.signal(signal.SIGTERM)
    code, out = rank.end()
    assert (code, out) == (STALLED, "stop drained\non_end\n")
    assert "did not leave the loop" in rank.log


WORKER = """
shutdown.LEAVE_S = {patience}
handle_signals(Worker(on_end, {status}, 0))
"""


def test_a_worker_that_is_loading_ends_at_once(start):
    rank = start(WORKER.format(patience=60, status="Status('demo', 'run')"))
    rank.signal(signal.SIGTERM)
    assert rank.end() == (OK, "on_end\n")


def test_a_serving_worker_waits_for_rank_zero_but_not_for_ever(start):
    rank = start(WORKER.format(patience=0.3, status="status"))
    rank.signal(signal.SIGTERM)
    assert rank.end() == (OK, "on_end\n")
    assert "waiting for rank 0" in rank.log


def test_a_serving_worker_ends_at_once_at_the_second_signal(start):
    rank = start(WORKER.format(patience=600, status="status"))
    rank.signal(signal.SIGTERM)
    time.sleep(0.2)
    rank.signal(signal.SIGTERM)
    assert rank.end() == (OK, "on_end\n")


def test_signals_sent_before_anyone_listens_are_not_lost(start):
    """Blocked from the first line of main(): they wait for the thread."""
    rank = start(
        "import signal; os.kill(os.getpid(), signal.SIGTERM); say('ready'); time.sleep(0.2)\n"
        + serving()
    )
    code, out = rank.end()
    assert code == OK and "stop drained" in out


def test_a_signal_does_not_cut_last_words_short():
    """The launcher's SIGTERM comes while rank 0 tells its clients of the fault: it used to end
    there, 'before the model was ready', and some streams were cut."""
    ended = []

    class Watched(Drainer):
        def end(self, code):
            ended.append(code)

    status = Status("demo", "run")
    status.phases.fail("rank 1 is gone")
    leaver = Watched(lambda: None, Line(1, 1), status, 30)
    leaver.drain()
    assert not ended
