"""A server for tests of the page: the real page, and answers that a test has written."""

import socket
import threading
import time
from typing import Any

from server.api.requests import parse_json
from server.protocol.errors import ApiError
from server.transport.http_server import Exchange, Server
from server.transport.page import SCRIPT_TYPE, Page

GIB = 2**30
DEADLINE_S = 60  # against a hang


def state(**fields: Any) -> dict[str, Any]:
    """A body of GET /cluster: two ranks that serve, ten minutes old; fields replace its own."""
    now = time.time()
    points = [
        {
            "t": now - 600 + 5 * n,
            "generated_tokens_per_s": 30 + n % 20,
            "prompt_tokens_per_s": 100,
            "ttft_p50_s": None if n % 7 == 3 else 0.2 + n % 5 / 50,
            "running": n % 5,
            "queued": max(0, n % 9 - 6),
        }
        for n in range(121)
    ]
    return {
        "status": "ok", "detail": "serving", "model": "demo", "run_id": "run-1",
        "uptime_s": 600.0, "now": now, "world_size": 2, "parallel": "tensor", "backend": "ring",
        "versions": {"python": "3.11.2", "mlx": "0.32.4", "mlx_lm": "0.32.2", "code": "abc"},
        "limits": {"max_batch": 8, "queue_max": 8, "context": 8192, "req_timeout_s": 600,
                   "req_total_timeout_s": None},
        "ranks": [rank(0), rank(1)],
        "link": {"latency_us": 45.2, "bandwidth_gb_s": 3.25, "pairs": [pair(0, 1)]},
        "running": 2, "queued": 1, "paused": 0, "kv_tokens": {"used": 1200, "capacity": 90_000},
        "prefix_cache": {
            "entries": 3, "tokens": 900, "hit_tokens": 500, "miss_tokens": 1500, "evicted_tokens": 0
        },
        "series": {"interval_s": 5, "points": points},
        "totals": {
            "requests": 20, "answered": 17, "refused": 1, "failed": 1, "cut": 1,
            "prompt_tokens": 2000, "cached_tokens": 500, "generated_tokens": 12_345,
        },
        "keys": [], "requests": [], "restarts": 0, "last_failure": None,
        "events": [{"t": now - 600, "text": "started"}, {"t": now - 590, "text": "ready"}],
    } | fields  # fmt: skip


def pair(a: int, b: int, bandwidth: float = 6.5) -> dict[str, Any]:
    """One of its links."""
    return {"ranks": [a, b], "latency_us": 12.3, "bandwidth_gb_s": bandwidth}


def running(number: int, **fields: Any) -> dict[str, Any]:
    """One of its requests."""
    return {
        "id": f"req_{number}", "key": "ann", "route": "/v1/chat/completions", "stream": True,
        "phase": "decode", "age_s": 12.5, "choices": 1, "prompt_tokens": 1200,
        "cached_tokens": 1000, "generated_tokens": 34, "max_tokens": 500, "kv_tokens": 1234,
        "stop": True,
    } | fields  # fmt: skip


def rank(number: int, **fields: Any) -> dict[str, Any]:
    """One of its ranks."""
    return {
        "rank": number, "host": f"mac{number}", "pid": 100 + number, "chip": "Apple M3 Ultra",
        "os": "macOS 26.2", "memory_total_bytes": 512 * GIB, "memory_used_bytes": 130 * GIB,
        "memory_peak_bytes": 140 * GIB, "gpu_limit_bytes": 480 * GIB, "rss_bytes": 2 * GIB,
        "heartbeat_age_s": 0.04, "state": "ok", "loaded_bytes": 128 * GIB,
        "total_bytes": 128 * GIB,
    } | fields  # fmt: skip


class ScriptedCluster:
    """`body` is what GET /cluster says; None: 401. `events` are what a chat streams; where one is a
    threading.Event, the stream waits for it."""

    def __init__(self) -> None:
        self.body: dict[str, Any] | None = state()
        self.gone = False  # whether it hangs up on whoever asks
        self.events: list[Any] = []
        self.hold = threading.Event()  # set: an answer ends after its events
        self.hold.set()
        self.refusal: ApiError | None = None  # instead of them
        self.stopped: list[str] = []  # ids of requests
        self.models = ["demo"]
        self.asked: list[dict[str, Any]] = []
        self.parts: list[str] = []  # of the page, that were asked for
        self.lacks_parts = False
        self.sends_parts = threading.Event()
        self.sends_parts.set()
        self._page = Page()
        self.server = Server("127.0.0.1", 0, self._answer)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}/"

    def end(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def say(self, *deltas: dict[str, str], finish: str = "stop") -> None:
        """The answer to come, as a stream that ends well."""
        chunks = [{"choices": [{"delta": delta}], "usage": None} for delta in deltas]
        chunks.append({"choices": [{"delta": {}, "finish_reason": finish}], "usage": None})
        usage = {"prompt_tokens": 5, "completion_tokens": len(deltas), "total_tokens": 0}
        self.events = [*chunks, {"choices": [], "usage": usage}, "[DONE]"]

    def _answer(self, exchange: Exchange) -> None:
        if self.gone:
            exchange.connection.shutdown(socket.SHUT_RDWR)
            raise ConnectionAbortedError
        if exchange.path == "/":
            exchange.send_body(200, Page.content_type, self._page.body, self._page.headers)
        elif exchange.path.startswith("/page/") and not self.lacks_parts:
            name = exchange.path.removeprefix("/page/").partition("?")[0]
            self.parts.append(name)
            self.sends_parts.wait(DEADLINE_S)
            part = self._page.parts[name]
            exchange.send_body(200, SCRIPT_TYPE, part.body, part.headers)
        elif exchange.path == "/cluster":
            if self.body is None:
                raise ApiError(401, "Missing or wrong API key.")
            exchange.send_json(200, self.body)
        elif exchange.command == "DELETE":
            self.stopped.append(exchange.path.rpartition("/")[2])
            exchange.send_json(200, {"stopped": True})
        elif exchange.path == "/v1/models":
            exchange.send_json(200, {"data": [{"id": id} for id in self.models]})
        elif exchange.path == "/v1/chat/completions":
            self.asked.append(parse_json(exchange.read_body()))
            if self.refusal is not None:
                raise self.refusal
            exchange.begin_stream()
            for event in self.events:
                if isinstance(event, threading.Event):
                    event.wait(DEADLINE_S)
                else:
                    exchange.send_event(event)
            self.hold.wait(DEADLINE_S)
            exchange.end_stream()
        else:
            raise ApiError(404, f"nothing at {exchange.path}")
