"""Tries grammars in a child process, where one that crashes or never ends does no harm.

llguidance has limits, but not for all: some grammars of a few kilobytes keep its compiler busy for
minutes, and deep chains of rules overrun its stack, which would end rank 0 and with it the
cluster. So each new grammar is compiled here first, within a limit of CPU time that the kernel
keeps, and rank 0 compiles only what has passed.

As a program this is the child: it reads JSON lines, first the tokenizer, then grammars, and
answers each with a JSON line, the reason against it or "". It ends with its input.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

COMPILE_CPU_S = 2.0
COMPILE_WALL_S = 20.0
START_WALL_S = 120.0
# Below every platform's default for threads, so what fits in the child fits in rank 0.
STACK_BYTES = 1024 * 1024
REASON_CHARS = 200
INHERITED_FDS = 4096
TRIAL_STEPS = 8
PANIC = "the grammar is too large or too deeply nested"
# Exit codes of a child that the grammar was too much for, as subprocess gives them.
TOO_SLOW = (-signal.SIGPROF, -signal.SIGALRM)
CRASHED = (-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT, -signal.SIGILL, -signal.SIGTRAP)
# Per matcher. Fuel and items bound one step to some tens of milliseconds, and what a whole answer
# may keep in memory to about 50 MB; rows are wide enough for objects of 2,000 optional properties.
LIMITS = {
    "max_items_in_row": 10_000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 50_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 500_000,
    "verbose_errors": False,
}


def make_tokenizer(spec: dict[str, Any]) -> LLTokenizer:
    """spec: "tokenizer" (the text of a tokenizer.json), "vocab" (tokens) and "eos" (ids)."""
    return LLTokenizer(spec["tokenizer"], n_vocab=spec["vocab"], eos_token=spec["eos"])


def build(tokenizer: LLTokenizer, grammar: str) -> tuple[LLMatcher, str]:
    """A matcher at the start of the grammar, and the reason why it cannot be used, or ""."""
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(**LIMITS))
    if matcher.is_error():
        return matcher, short_reason(matcher.get_error())
    mask = matcher.compute_bitmask()  # the first is the slowest; what is learned is kept
    if not any(mask) or (matcher.is_stopped() and not matcher.is_accepting()):
        too_hard = matcher.stop_reason() in ("LexerTooComplex", "ParserTooComplex")
        return matcher, short_reason(matcher.get_error()) if too_hard else "no text matches it"
    return matcher, ""


def try_out(matcher: LLMatcher, ends: list[int]) -> str:
    """Takes a few steps; the reason why they cannot be taken, or ""."""
    for _ in range(TRIAL_STEPS):
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        for end in ends:
            mask &= ~(1 << end)
        if matcher.is_error() or not mask:
            break
        matcher.consume_token((mask & -mask).bit_length() - 1)  # the allowed token of lowest id
    if "doesn't satisfy the grammar" in matcher.get_error():
        # Some tokenizers lack a few bytes; llguidance then allows what it does not take.
        return "the model has no tokens for some of its characters"
    return short_reason(matcher.get_error())


def short_reason(error: str) -> str:
    """llguidance's error in one line, without the grammar and the state that it shows around."""
    if not error:
        return ""
    if error.startswith("panic"):
        return PANIC
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    named = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    # An invalid regex is quoted before what is wrong with it, and may be long.
    reason = named[0] if named else lines[0].rsplit(" (in regex): ", 1)[-1]
    reason = re.sub(r"^(at )?\d+\(\d+\): ", "", reason)
    return reason if len(reason) <= REASON_CHARS else reason[:REASON_CHARS] + "..."


class Checker:
    """The child, started when first needed and again after it has died. One caller at a time."""

    def __init__(self, spec: dict[str, Any]) -> None:
        """spec: as make_tokenizer takes it."""
        self._spec = spec
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None

    def refuse(self, grammar: str) -> str:
        """The reason against a grammar, or "".

        Raises OSError if no child can be started, or if it was ended from outside.
        """
        with self._lock:
            child = self._child or self._start()
            answer = self._ask(child, {"grammar": grammar})
            if answer is not None:
                return answer["reason"]
            ended = self._reap()
        if ended in TOO_SLOW:
            return f"it takes longer than {COMPILE_CPU_S:g} s to compile"
        if ended in CRASHED:
            return PANIC
        raise OSError(f"the grammar checker ended with {ended}")

    def close(self) -> None:
        """Ends the child."""
        with self._lock:
            self._reap()

    def _start(self) -> "subprocess.Popen[str]":
        child = subprocess.Popen(
            # -P: the names of our modules must not hide the standard library's.
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a crash prints pages, and we say it in one line
            text=True,
            # So that Python spawns it: to fork a process that holds a model can take seconds. The
            # child closes what it has inherited.
            close_fds=False,
        )
        self._child = child
        if self._ask(child, self._spec) is None:
            raise OSError(f"the grammar checker ended with {self._reap()} while it started")
        return child

    def _ask(self, child: "subprocess.Popen[str]", question: dict[str, Any]) -> Any:
        """The answer, or None if the child died; its own alarms see to it that it does."""
        try:
            child.stdin.write(json.dumps(question) + "\n")
            child.stdin.flush()
            line = child.stdout.readline()
        except OSError:
            return None
        return json.loads(line) if line.endswith("\n") else None

    def _reap(self) -> int | None:
        """Lets go of the child; its exit code, negative for a signal."""
        child, self._child = self._child, None
        if child is None:
            return None
        for pipe in (child.stdin, child.stdout):
            try:
                pipe.close()
            except OSError:  # what could not be flushed to a dead child
                pass
        try:
            return child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            child.kill()
            return child.wait()


def serve(lines: Iterable[str]) -> None:
    """The child's loop, on a thread with a small stack."""
    source = iter(lines)
    spec = json.loads(next(source))
    tokenizer = make_tokenizer(spec)
    _answer("")
    for line in source:
        signal.setitimer(signal.ITIMER_PROF, COMPILE_CPU_S)
        signal.setitimer(signal.ITIMER_REAL, COMPILE_WALL_S)
        matcher, reason = build(tokenizer, json.loads(line)["grammar"])
        reason = reason or try_out(matcher, spec["eos"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _answer(reason)


def _answer(reason: str) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(json.dumps({"reason": reason}), flush=True)


def main() -> None:
    # The sockets to other ranks, if we kept them, would hide from those that rank 0 is gone.
    os.closerange(3, INHERITED_FDS)
    # The default action of both timers' signals ends the process even in the middle of native
    # code. Ctrl-C is rank 0's to handle; the end of our input tells us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ending = (signal.SIGPROF, signal.SIGALRM, signal.SIGTERM)  # rank 0 may block any of them
    for number in ending:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ending)
    signal.setitimer(signal.ITIMER_REAL, START_WALL_S)
    threading.stack_size(STACK_BYTES)
    worker = threading.Thread(target=serve, args=(sys.stdin,))
    worker.start()
    worker.join()


if __name__ == "__main__":
    main()
