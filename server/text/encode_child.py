"""Turns large texts into token ids, as a process of its own: rank 0's encoder starts and ends it.

A tokenizer takes two hundred times a text's memory and a second a megabyte, in native code that
nothing can interrupt. A process can be ended at any time, gives its memory back with its end, and
has limits of CPU time and memory of its own.

Reads from standard input a JSON line with the size of what follows, and answers each with a JSON
line: first the tokenizer ({"bytes", "split_special_tokens"}; the answer is {}), then texts
({"bytes", "special_tokens"}; the answer is {"count", "last"} and as many uint32, or {"error"}).
While it works it says so with an ALIVE now and then. Imports none of our modules. It ends with its
input, and by itself once a text has made it large ("last").
"""

import json
import os
import re
import resource
import signal
import sys
import threading
import time
from array import array
from typing import BinaryIO

from tokenizers import Tokenizer

TEXT_CPU_S = 60.0  # for one text
START_CPU_S = 120.0
# Beyond what the tokenizer itself takes.
MEMORY_BYTES = 2 * 2**30  # a text that needs more has millions of tokens
KEPT_BYTES = 512 * 2**20  # a process that has been larger ends after its answer
WATCH_S = 0.02
ALIVE = b"\r"
ALIVE_S = 0.5
NICE = 10  # the ranks come first
OUT_OF_MEMORY = 3  # exit code
INHERITED_FDS = 4096
ERROR_CHARS = 300

_writing = threading.Lock()  # one thread writes answers, the other that it lives
_working = threading.Event()


def main() -> None:
    # The sockets to other ranks, if we kept them, would hide from those that rank 0 is gone.
    os.closerange(3, INHERITED_FDS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is rank 0's; our input's end tells us
    ending = (signal.SIGPROF, signal.SIGTERM)  # rank 0 may block either
    for number in ending:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ending)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.nice(NICE)
    _be_first_to_go()
    try:
        serve(sys.stdin.buffer, sys.stdout.buffer)
    except OSError:
        pass  # rank 0 is gone, or wants no answer any more
    os._exit(0)


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answers until the input ends."""
    signal.setitimer(signal.ITIMER_PROF, START_CPU_S)
    spec = json.loads(source.readline())
    tokenizer = Tokenizer.from_str(source.read(spec["bytes"]).decode())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = spec["split_special_tokens"]
    base = peak_bytes()
    threading.Thread(target=_watch, args=(sink, base), daemon=True).start()
    _answer(sink, {})
    while line := source.readline():
        asked = json.loads(line)
        text = source.read(asked["bytes"]).decode()
        signal.setitimer(signal.ITIMER_PROF, TEXT_CPU_S)
        _working.set()
        try:
            # The only call of the library's that lets other threads run; ours is the watch.
            found = tokenizer.encode_batch_fast([text], add_special_tokens=asked["special_tokens"])
        except Exception as error:  # whatever a tokenizer raises
            _answer(sink, {"error": str(error)[:ERROR_CHARS]})
            continue
        ids = found[0].ids
        last = peak_bytes() > base + KEPT_BYTES
        _answer(sink, {"count": len(ids), "last": last}, array("I", ids).tobytes())
        if last:
            return
        del text, found, ids


def peak_bytes() -> int:
    """The most memory that this process has had."""
    try:
        # Linux: getrusage would begin with the peak of rank 0, which has the model.
        with open("/proc/self/status", "rb") as file:
            found = re.search(rb"VmHWM:\s*(\d+) kB", file.read())
            return int(found[1]) * 1024 if found else 0
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _answer(sink: BinaryIO, head: dict, data: bytes = b"") -> None:
    signal.setitimer(signal.ITIMER_PROF, 0)
    with _writing:
        _working.clear()
        sink.write(json.dumps(head).encode() + b"\n" + data)
        sink.flush()


def _watch(sink: BinaryIO, base: int) -> None:
    """Ends a process that grows beyond its limit; says that it lives while it works."""
    said = 0.0
    while True:
        if peak_bytes() > base + MEMORY_BYTES:
            os._exit(OUT_OF_MEMORY)
        if time.monotonic() - said >= ALIVE_S:
            with _writing:
                if _working.is_set():
                    said = time.monotonic()
                    sink.write(ALIVE)
                    sink.flush()
        time.sleep(WATCH_S)


def _be_first_to_go() -> None:
    """Linux: should memory run out, the kernel is to end this process and not rank 0."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass


if __name__ == "__main__":
    main()
