"""The load of a soak: one client's mixture of requests, and a tally of what came of them.

Runs on the threads of scripts/dev/soak.py. A client asks one thing after another, chosen at random:
whole answers and streams, greedy and seeded, short and long prompts, requests that it gives up in
the middle, rubbish, and attacks (soak_attacks.py). What it gets is compared with what it should
get; anything else is an error of a kind that the tally counts.
"""

import collections
import functools
import http.client
import json
import random
import threading
import time
from collections.abc import Callable
from typing import NoReturn
from urllib.parse import urlsplit

from scripts.dev.soak_attacks import ATTACKS

ANSWER_DEADLINE_S = 300.0  # for one read: far over what a loaded server takes
BUSY_PAUSE_MOST_S = 2.0  # after a 429; the server may well ask for more
GONE_PAUSE_S = 0.2  # after a refused or broken connection
ERRORS_KEPT = 20  # descriptions of errors, for the report
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"

# Request bodies that must be refused with 400, as JSON text.
RUBBISH_BODIES = (
    "",
    "{",
    "[]",
    "null",
    '{"prompt": 5}',
    '{"prompt": [-1]}',
    '{"prompt": [99999999999]}',
    '{"prompt": "x", "temperature": NaN}',
    '{"prompt": "x", "temperature": 1e400}',
    '{"prompt": "x", "stop": 5}',
    '{"prompt": "x", "seed": 9223372036854775808}',
    '{"prompt": "\\ud800"}',
    '{"prompt": "x", "x": ' + "[" * 10_000 + "]" * 10_000 + "}",
    '{"prompt": "x", "max_tokens": -2}',
    '{"prompt": "x", "max_tokens": 8.5}',
    '{"prompt": "x", "top_k": true}',
)
# Bytes that are no request at all; whatever is answered, it must not hang or hurt.
RUBBISH_BYTES = (
    b"\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
)


class Tally:
    """Counts, shared by all clients."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.requests: collections.Counter[str] = collections.Counter()  # by what was asked
        self.errors: collections.Counter[str] = collections.Counter()  # by kind
        self.examples: list[str] = []
        self.busy = 0  # 429: the line was full, which is an answer
        self.differing = 0  # greedy answers unlike the first one to the same question

    def count(self, what: str) -> None:
        with self._lock:
            self.requests[what] += 1

    def note_busy(self) -> None:
        with self._lock:
            self.busy += 1

    def note_differing(self) -> None:
        with self._lock:
            self.differing += 1

    def note_error(self, what: str, kind: str, detail: str) -> None:
        with self._lock:
            self.errors[kind] += 1
            if len(self.examples) < ERRORS_KEPT:
                self.examples.append(f"{what}: {kind}: {detail[:200]}")

    @property
    def total(self) -> int:
        return sum(self.requests.values())


class Wrong(Exception):
    """An answer that should not have come. args: kind, detail."""


class Client:
    """One client of the mixture. headers go with every request; expected is shared by all
    clients: the first greedy text to each question."""

    def __init__(
        self,
        url: str,
        headers: dict[str, str],
        tally: Tally,
        expected: dict[int, str],
        chance: random.Random,
    ) -> None:
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        make = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        self._connect: Callable[[], http.client.HTTPConnection] = lambda: make(
            parts.hostname, parts.port, timeout=ANSWER_DEADLINE_S
        )
        self.headers = headers
        self._tally = tally
        self._expected = expected
        self.chance = chance
        self._kinds = {
            "greedy": (self._greedy, 4),
            "chat": (self._chat, 3),
            "stream": (self._stream, 4),
            "seeded": (self._seeded, 2),
            "long prompt": (self._long_prompt, 1),
            "left in a stream": (self._leave_stream, 3),
            "left before the answer": (self._leave_early, 3),
            "rubbish body": (self._rubbish_body, 2),
            "rubbish bytes": (self._rubbish_bytes, 1),
            "look": (self._look, 1),
        }
        for name, (attack, weight) in ATTACKS.items():
            self._kinds[name] = functools.partial(attack, self), weight

    def run(self, stop: threading.Event) -> None:
        """One request after another until stop is set: of each kind one, then as they come."""
        names = list(self._kinds)
        weights = [weight for _, weight in self._kinds.values()]
        first = self.chance.sample(names, len(names))
        while not stop.is_set():
            self.ask(first.pop() if first else self.chance.choices(names, weights)[0])

    def ask(self, name: str) -> None:
        """One request of the kind of that name, counted."""
        self._tally.count(name)
        connection = self._connect()
        try:
            self._kinds[name][0](connection)
        except Wrong as wrong:
            self._tally.note_error(name, *wrong.args)
        except TimeoutError:
            self._tally.note_error(name, "no answer", f"in {ANSWER_DEADLINE_S:g} s")
        except (OSError, http.client.HTTPException) as error:
            self._tally.note_error(name, type(error).__name__, str(error))
            time.sleep(GONE_PAUSE_S)
        finally:
            connection.close()

    # The kinds.

    def _greedy(self, connection: http.client.HTTPConnection) -> None:
        question = self.chance.randrange(8)
        ask = {"prompt": f"Question {question}: what comes after {question * 7}?",
               "max_tokens": 8 + 6 * question, "temperature": 0}  # fmt: skip
        body = self.answered(connection, COMPLETIONS, ask)
        if body is not None:
            text = body["choices"][0]["text"]
            if self._expected.setdefault(question, text) != text:
                self.differs()

    def _chat(self, connection: http.client.HTTPConnection) -> None:
        turn = {"role": "user", "content": f"Say {self.chance.randrange(1000)}."}
        ask = {"messages": [turn], "max_tokens": self.chance.randrange(1, 40), "top_k": 100_000}
        body = self.answered(connection, CHAT, ask)
        if body is not None and not body["usage"]["completion_tokens"]:
            raise Wrong("no tokens", json.dumps(body))

    def _seeded(self, connection: http.client.HTTPConnection) -> None:
        ask = {"prompt": "Once", "max_tokens": 30, "temperature": 0.8, "top_p": 0.9}
        ask |= {"seed": self.chance.randrange(-(2**63), 2**63), "presence_penalty": 0.5}
        self.answered(connection, COMPLETIONS, ask)

    def _long_prompt(self, connection: http.client.HTTPConnection) -> None:
        words = "word " * self.chance.randrange(100, 400)
        self.answered(connection, COMPLETIONS, {"prompt": words, "max_tokens": 4}, too_long=True)

    def _stream(self, connection: http.client.HTTPConnection) -> None:
        answer = self._begin_stream(connection)
        if answer is None:
            return
        data = answer.read()
        if b'"error"' in data:
            raise Wrong("error in a stream", data[-300:].decode("utf-8", "replace"))
        if not data.rstrip().endswith(b"data: [DONE]"):
            raise Wrong("stream cut", data[-300:].decode("utf-8", "replace"))

    def _leave_stream(self, connection: http.client.HTTPConnection) -> None:
        answer = self._begin_stream(connection)
        if answer is not None:
            answer.read(self.chance.randrange(1, 2000))

    def _leave_early(self, connection: http.client.HTTPConnection) -> None:
        ask = {"prompt": "Gone " * self.chance.randrange(1, 300), "max_tokens": 200}
        ask |= {"seed": 5} if self.chance.random() < 0.5 else {}
        ask |= {"stream": True} if self.chance.random() < 0.5 else {}
        self.send(connection, COMPLETIONS, json.dumps(ask))
        time.sleep(self.chance.random() ** 3)

    def _rubbish_body(self, connection: http.client.HTTPConnection) -> None:
        self.send(connection, COMPLETIONS, self.chance.choice(RUBBISH_BODIES))
        answer = connection.getresponse()
        if answer.status not in (400, 429):  # many bodies of its size may wait to be read
            raise Wrong(f"{answer.status} to rubbish", self._text(answer))

    def _rubbish_bytes(self, connection: http.client.HTTPConnection) -> None:
        connection.connect()
        try:
            connection.sock.sendall(self.chance.choice(RUBBISH_BYTES))
            while connection.sock.recv(65536):
                pass
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before it was all sent

    def _look(self, connection: http.client.HTTPConnection) -> None:
        for path in ("/health", "/queue", "/v1/models"):
            connection.request("GET", path, headers=self.headers)
            answer = connection.getresponse()
            text = self._text(answer)
            if answer.status != 200:
                raise Wrong(f"{answer.status} to {path}", text)

    # Telling of what came.

    def differs(self) -> None:
        """Not an error: on a GPU, rounding may depend on what else is in the batch."""
        self._tally.note_differing()

    def wrong(self, kind: str, detail: str) -> NoReturn:
        """An answer that should not have come; raises."""
        raise Wrong(kind, detail)

    # Asking.

    def _begin_stream(
        self, connection: http.client.HTTPConnection
    ) -> http.client.HTTPResponse | None:
        ask = {"prompt": "Tell me a story.", "max_tokens": self.chance.randrange(1, 80)}
        ask |= {"stream": True, "stream_options": {"include_usage": True}}
        self.send(connection, COMPLETIONS, json.dumps(ask))
        return self._accepted(connection.getresponse())

    def answered(
        self,
        connection: http.client.HTTPConnection,
        path: str,
        ask: dict,
        too_long: bool = False,
    ) -> dict | None:
        """The answer's body; None if the server was full, or the prompt too long where that
        may be."""
        self.send(connection, path, json.dumps(ask))
        answer = connection.getresponse()
        if too_long and answer.status == 400:
            return None
        accepted = self._accepted(answer)
        return None if accepted is None else json.loads(accepted.read())

    def send(self, connection: http.client.HTTPConnection, path: str, body: str) -> None:
        headers = self.headers | {"Content-Type": "application/json"}
        connection.request("POST", path, body.encode(), headers)

    def _accepted(self, answer: http.client.HTTPResponse) -> http.client.HTTPResponse | None:
        """The answer if it is a 200; None after a pause if the server was full."""
        if answer.status == 429:
            self._tally.note_busy()
            wait = float(answer.headers.get("Retry-After") or "nan")
            if not wait >= 1:
                raise Wrong("429 without Retry-After", str(answer.headers))
            time.sleep(min(wait, BUSY_PAUSE_MOST_S))
            return None
        if answer.status != 200:
            raise Wrong(f"status {answer.status}", self._text(answer))
        return answer

    def _text(self, answer: http.client.HTTPResponse) -> str:
        return answer.read().decode("utf-8", "replace")
