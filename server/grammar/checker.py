"""Tries grammars in a process of their own, where one that crashes or never ends does no harm.

llguidance has limits, but not for all: some grammars of a few kilobytes keep its compiler busy for
minutes, and deep chains of rules overrun its stack, which would end rank 0 and with it the
cluster. So each new grammar is compiled here first, within limits of CPU time and memory, and rank
0 compiles only what has passed.

As a program this is rank 0's child (process.py is the other end of its pipes). It reads JSON
lines, first the tokenizer, then grammars, and answers each with a JSON line. For each grammar it
forks, so that what is too much ends the fork alone: a new child would have to read the tokenizer
again, which takes a second or two where the vocabulary is large. It ends with its input.
"""

import json
import os
import re
import resource
import select
import signal
import sys
import threading
from collections.abc import Iterable
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

COMPILE_CPU_S = 2.0
COMPILE_WALL_S = 20.0
# Below every platform's default for threads, so what fits in the child fits in rank 0.
STACK_BYTES = 1024 * 1024
# That one grammar may take, to compile; what rank 0 keeps of it is less.
MEMORY_BYTES = 128 * 2**20
# On the way there, where the kernel counts (Linux): an allocation beyond it ends the fork.
DATA_BYTES = 2**30
REASON_CHARS = 200
INHERITED_FDS = 4096
TRIAL_STEPS = 8
ANSWER_BYTES = 65536  # of a fork: far more than the longest reason
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # of getrusage's ru_maxrss
ANY_TEXT = LLMatcher.grammar_from_regex(r"(.|\n)*")
PANIC = "the grammar is too large or too deeply nested"
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


def serve(lines: Iterable[str]) -> None:
    """The child's loop."""
    source = iter(lines)
    spec = json.loads(next(source))
    tokenizer = make_tokenizer(spec)
    # Some systems count what a fork only reads, such as the tokenizer.
    reads = _try_apart(tokenizer, ANY_TEXT, spec["eos"]).get("bytes", 0)
    _answer({})
    for line in source:
        question = json.loads(line)
        # An empty question asks only whether anybody is there.
        _answer(_try_apart(tokenizer, question["grammar"], spec["eos"], reads) if question else {})


def _answer(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def _try_apart(
    tokenizer: LLTokenizer, grammar: str, ends: list[int], reads: int = 0
) -> dict[str, Any]:
    """What a fork says of the grammar: "reason", and in "bytes" the memory that it took beyond
    reads; or "ended", its exit code, negative for a signal."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            _in_fork(writer, tokenizer, grammar, ends, reads)
        finally:
            os._exit(1)
    os.close(writer)
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    told = os.read(reader, ANSWER_BYTES) if poll.poll(COMPILE_WALL_S * 1000) else b""
    os.close(reader)
    if not told:
        os.kill(pid, signal.SIGKILL)  # it may be stopped; if it has ended, this does nothing
    _, status = os.waitpid(pid, 0)
    return json.loads(told) if told else {"ended": os.waitstatus_to_exitcode(status)}


def _in_fork(
    writer: int, tokenizer: LLTokenizer, grammar: str, ends: list[int], reads: int
) -> None:
    # The default action of the timer's signal ends the process even in the middle of native code.
    signal.setitimer(signal.ITIMER_PROF, COMPILE_CPU_S)
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (DATA_BYTES, DATA_BYTES))
    except (OSError, ValueError):
        pass  # what it took is looked at afterwards
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reasons: list[str] = []

    def work() -> None:
        try:
            matcher, reason = build(tokenizer, grammar)
            reasons.append(reason or try_out(matcher, ends))
        except MemoryError:
            reasons.append(PANIC)
        except Exception as error:
            reasons.append(short_reason(str(error)) or type(error).__name__)

    threading.stack_size(STACK_BYTES)
    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    taken = max(0, (after - before) * RSS_UNIT - reads)
    reason = reasons[0] or (PANIC if taken > MEMORY_BYTES else "")
    os.write(writer, json.dumps({"reason": reason, "bytes": taken}).encode())
    os._exit(0)


def main() -> None:
    # The sockets to other ranks, if we kept them, would hide from those that rank 0 is gone.
    os.closerange(3, INHERITED_FDS)
    # A group of its own: rank 0 ends it with its fork, and a terminal stops neither.
    os.setpgid(0, 0)
    # Ctrl-C is rank 0's to handle; the end of our input tells us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ending = (signal.SIGPROF, signal.SIGTERM)  # rank 0 may block any of them
    for number in ending:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ending)
    serve(sys.stdin)


if __name__ == "__main__":
    main()
