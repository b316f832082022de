"""What prefixes on disk are worth: the time to the first token of a conversation's next turn, after
a stop, after a worker was killed, and after rank 0 was.

usage: python -m scripts.dev.prefix_disk_times [--model DIR] [--tokens N] [--ranks N]

Starts servers of its own on this machine; takes minutes. Prints a line for each, and the share of
the first turn's time, which computes all.
"""

import argparse
import http.client
import json
import os
import signal
import tempfile
import time
from pathlib import Path

from tests.support.cluster import Cluster
from tests.support.paths import ROOT

DEMO = ROOT / "models" / "SmolLM2-135M-Instruct-float32"
SENTENCE = "The {}th letter of the harbour master tells of ships, of ropes and of rain. "
TOKENS_EACH = 18  # about
QUIET_S = 1.0
QUESTIONS = ("What is it about?", "And who wrote it?", "Where was it?", "Was it long?")


class Talk:
    """A conversation, a turn at a time."""

    def __init__(self, tokens: int) -> None:
        text = "".join(SENTENCE.format(n) for n in range(tokens // TOKENS_EACH))
        self.messages = [{"role": "user", "content": text + QUESTIONS[0]}]

    def turn(self, server: Cluster) -> tuple[float, int, int]:
        """Seconds to the first token, the prompt's tokens, and those that were cached."""
        link = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
        body = {
            "messages": self.messages, "max_tokens": 24, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        began, first, text, usage = time.monotonic(), 0.0, "", {}
        link.request("POST", "/v1/chat/completions", json.dumps(body))
        answer = link.getresponse()
        while line := answer.readline():
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                if piece := choice["delta"].get("content"):
                    first = first or time.monotonic() - began
                    text += piece
        self.messages.append({"role": "assistant", "content": text})
        question = QUESTIONS[len(self.messages) // 2 % len(QUESTIONS)]
        self.messages.append({"role": "user", "content": question})
        return first, usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--tokens", type=int, default=3000)
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="prefix-disk-") as scratch:
        folder, count = Path(scratch), 0

        def start() -> Cluster:
            nonlocal count
            count += 1
            settings = {"PREFIX_DISK_GB": 4, "PREFIX_DISK_DIR": folder / "kept"}
            server = Cluster(options.ranks, options.model, folder / f"run{count}", settings)
            server.wait_ready()
            return server

        talk = Talk(options.tokens)
        server = start()
        first, tokens, cached = talk.turn(server)
        print(f"first turn: {first:.2f} s, {tokens} tokens, {cached} cached", flush=True)
        wait_written(server)  # the turns to come bring too little to be written
        for rank in (None, 1, 0):
            what = "a stop" if rank is None else f"SIGKILL of rank {rank}"
            if rank is not None:
                os.kill(server.pids()[rank], signal.SIGKILL)
                server.launcher.wait(60)
            server.end()
            server = start()
            took, tokens, cached = talk.turn(server)
            share = took / first
            print(f"after {what}: {took:.2f} s, {tokens} tokens, {cached} cached: {share:.2f} x")
        server.end()


def wait_written(server: Cluster) -> None:
    """Until something is written, and no more comes."""
    before, now = -1, 0
    while not now or now != before:
        time.sleep(QUIET_S)
        before, now = now, server.get("/cluster")[1]["prefix_cache"]["disk"]["written_bytes"]


if __name__ == "__main__":
    main()
