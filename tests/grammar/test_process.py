"""The child that tries grammars, and what rank 0 does when it is killed, stopped or stuck."""

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from server.grammar import process as grammar_process
from server.grammar.grammars import Grammars
from server.grammar.process import Checker, CheckerFailed
from server.grammar.writer import MAX_LARK_BYTES, write_grammar
from server.protocol.errors import ApiError
from server.protocol.requests import Format
from tests.support.paths import ROOT
from tests.support.tiny_models import VOCAB, write_byte_tokenizer

GUARD_S = 240.0
EASY = write_grammar(Format("regex", "ab+"))
SLOW = write_grammar(
    Format(
        "lark",
        "start: T\nT: "
        + " & ".join(
            f"/(.|\\n)*{chr(97 + i)}(.|\\n){{{i + 10}}}{chr(98 + i)}(.|\\n)*/" for i in range(20)
        ),
    )
)
DEEP = write_grammar(
    Format(
        "lark",
        "start: r0\n" + "".join(f"r{n}: /x{n}/ r{n + 1}?\n" for n in range(2500)) + "r2500: /e/\n",
    )
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    write_byte_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def checker(tokenizer):
    fast = tokenizer.backend_tokenizer
    one = Checker({"tokenizer": fast.to_str(), "vocab": VOCAB, "eos": [tokenizer.eos_token_id]})
    yield one
    one.close()


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Another program in the child's place."""

    def put(text: str) -> None:
        path = tmp_path / "program.py"
        path.write_text(text)
        monkeypatch.setattr(grammar_process, "PROGRAM", path)

    return put


def with_limit(name: str, value: float) -> str:
    """The real child, with another limit."""
    return (
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom server.grammar import checker\n"
        f"checker.{name} = {value}\nchecker.main()\n"
    )


def children(pid: int) -> list[int]:
    """The processes that pid has forked."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


def wait_until(true) -> None:
    deadline = time.monotonic() + GUARD_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


class TestVerdicts:
    def test_one_child_tries_all_whatever_they_do_to_it(self, checker):
        """Each grammar that was too slow or crashed cost a new child, which reads the tokenizer
        anew."""
        assert checker.check(EASY).reason == ""
        pid = checker._child.pid
        assert "takes longer than" in checker.check(SLOW).reason
        assert "too deeply nested" in checker.check(DEEP).reason
        endless = write_grammar(Format("lark", "start: start"))
        assert "no text matches" in checker.check(endless).reason
        assert checker.check(EASY).reason == ""
        assert checker._child.pid == pid

    def test_what_takes_too_much_memory_is_refused(self, checker, program):
        """Of what compiles within the time, some would keep a hundred megabytes in rank 0."""
        program(with_limit("MEMORY_BYTES", 5 * 2**20))
        names = {f"p{n}": {"type": "string"} for n in range(1000)}
        schema = {"type": "object", "properties": names}
        assert "too large" in checker.check(write_grammar(Format("json_schema", schema))).reason
        assert checker.check(EASY).reason == ""

    def test_its_memory_is_told(self, checker):
        names = {f"p{n}": {"type": "string"} for n in range(1000)}
        schema = {"type": "object", "properties": names}
        easy = checker.check(EASY).bytes
        assert checker.check(write_grammar(Format("json_schema", schema))).bytes > easy + 2**20

    def test_a_large_question_goes_through_the_pipe(self, checker):
        lark = "start: /a/\n" + "//" + "x" * (MAX_LARK_BYTES - 100) + "\n"
        assert checker.check(write_grammar(Format("lark", lark))).reason == ""


class TestIdleChild:
    """While it does nothing, whatever happens to it costs nobody an answer."""

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
    def test_it_is_replaced(self, checker, monkeypatch, number):
        """Stopped, it held up structured output for ever: nobody looked how long it took."""
        monkeypatch.setattr(grammar_process, "PING_WALL_S", 0.5)
        checker.check(EASY)
        old = checker._child
        os.kill(old.pid, number)
        assert checker.check(EASY).reason == ""
        assert checker._child.pid != old.pid
        assert old.returncode is not None


class TestBusyChild:
    def during(self, checker, act) -> CheckerFailed:
        """What a check raises in the middle of which something happened."""
        checker.check(EASY)
        child = checker._child.pid
        caught: list[CheckerFailed] = []

        def check() -> None:
            try:
                checker.check(SLOW)
            except CheckerFailed as error:
                caught.append(error)

        thread = threading.Thread(target=check)
        thread.start()
        wait_until(lambda: children(child))
        fork = children(child)[0]
        act(child, fork)
        thread.join(GUARD_S)
        assert not thread.is_alive()
        wait_until(lambda: gone(fork))
        assert checker.check(EASY).reason == ""
        return caught[0]

    @needs_proc
    def test_killed(self, checker):
        error = self.during(checker, lambda child, fork: os.kill(child, signal.SIGKILL))
        assert error.started
        assert "ended with -9" in str(error)

    @needs_proc
    def test_stopped_with_its_fork(self, checker, monkeypatch):
        monkeypatch.setattr(grammar_process, "ANSWER_WALL_S", 5.0)
        error = self.during(checker, lambda child, fork: os.killpg(child, signal.SIGSTOP))
        assert error.started
        assert "did not answer" in str(error)

    @needs_proc
    def test_a_fork_that_is_stopped_is_ended_by_the_child(self, checker, program):
        program(with_limit("COMPILE_WALL_S", 3.0))
        error = self.during(checker, lambda child, fork: os.kill(fork, signal.SIGSTOP))
        assert error.started
        assert "-9" in str(error)

    @needs_proc
    def test_a_fork_that_is_killed_is_not_the_grammars_fault(self, checker):
        error = self.during(checker, lambda child, fork: os.kill(fork, signal.SIGKILL))
        assert error.started

    @needs_proc
    def test_stop_ends_a_check_at_once_and_for_good(self, checker):
        checker.check(EASY)
        child = checker._child.pid
        caught: list[CheckerFailed] = []

        def check() -> None:
            with pytest.raises(CheckerFailed) as error:
                checker.check(SLOW)
            caught.append(error.value)

        thread = threading.Thread(target=check)
        thread.start()
        wait_until(lambda: children(child))
        checker.stop()
        thread.join(GUARD_S)
        assert caught
        with pytest.raises(CheckerFailed):
            checker.check(EASY)


class TestStart:
    def failure(self, checker) -> CheckerFailed:
        with pytest.raises(CheckerFailed) as caught:
            checker.check(EASY)
        assert not caught.value.started
        return caught.value

    def test_a_program_that_cannot_be_run(self, checker, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", "/nonexistent/python")
            assert "can be started" in str(self.failure(checker))
        assert checker.check(EASY).reason == ""

    def test_a_child_that_ends(self, checker, program):
        program("raise SystemExit(7)\n")
        assert "ended with 7 while it started" in str(self.failure(checker))

    def test_a_child_that_reads_nothing(self, checker, program, monkeypatch):
        """The tokenizer does not fit into the pipe: the write would wait for ever."""
        monkeypatch.setattr(grammar_process, "START_WALL_S", 0.5)
        checker._spec = b"x" * 2**20 + b"\n"
        program("import time\ntime.sleep(600)\n")
        assert "did not answer" in str(self.failure(checker))

    def test_a_child_that_answers_nothing(self, checker, program, monkeypatch):
        monkeypatch.setattr(grammar_process, "START_WALL_S", 0.5)
        program("import sys\nfor line in sys.stdin: pass\n")
        assert "did not answer" in str(self.failure(checker))

    def test_requests_are_told_to_come_back(self, tokenizer, program, tmp_path, monkeypatch):
        grammars = Grammars(tokenizer, VOCAB, {tokenizer.eos_token_id})
        with monkeypatch.context() as patch:
            patch.setattr(grammar_process, "PROGRAM", tmp_path / "absent.py")
            for _ in range(2):
                with pytest.raises(ApiError) as caught:
                    grammars.compile(Format("regex", "a+"))
                assert caught.value.status == 503
                assert "Retry-After" in caught.value.headers()
        # It was not the grammar's fault, so nothing is remembered against it.
        grammars.compile(Format("regex", "a+"))
        grammars.close()
        with pytest.raises(ApiError) as caught:
            grammars.compile(Format("regex", "b+"))
        assert caught.value.status == 503
