"""What each URL does. One App, called by the HTTP threads of rank 0. Imports no mlx.

Routes answer with and without /v1. While the model loads, and while the server drains, the ones
that need the model answer 503 with Retry-After; /health, /queue and /v1/models always answer.
"""

import contextlib
import hmac
import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from server.answers import Answer, model_card
from server.errors import ApiError, bad_request, context_exceeded, model_not_found, unavailable
from server.generation import ClientGone, Piece, generate
from server.http_server import Exchange
from server.prompts import Prompts, count_chars
from server.requests import (
    Common,
    Sampling,
    Served,
    parse_chat,
    parse_completion,
    parse_json,
)
from server.settings import Settings
from server.status import Status
from server.tickets import Line, Ticket

PING_S = 5.0  # a stream with nothing to send begins, and says so, after this long
TOKEN_CHARS = 128  # the longest tokens of known vocabularies are runs of so many blanks
LARGE_BODY = 2**20  # bytes; parsed, these can take thirty times as much memory
PREFLIGHT_S = 600  # a browser may remember a preflight's answer for so long

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """What the routes need once the model is loaded. context: tokens of prompt plus answer."""

    prompts: Prompts
    context: int
    sampling: Sampling
    fingerprint: str


class App:
    """Answers requests. `model` is None until it is loaded."""

    def __init__(self, settings: Settings, status: Status, line: Line) -> None:
        self._settings = settings
        self._status = status
        self._line = line
        self.model: Model | None = None
        self._large = threading.Lock()
        self._routes: dict[str, dict[str, Callable[[Exchange], None]]] = {
            "/health": {"GET": self._health},
            "/queue": {"GET": self._queue},
            "/models": {"GET": self._models},
            "/chat/completions": {"POST": self._chat},
            "/completions": {"POST": self._completions},
        }

    def __call__(self, exchange: Exchange) -> None:
        """Routes one request. Raises ApiError for the transport to render."""
        exchange.common_headers.update(self._cross_origin(exchange))
        try:
            path = urlsplit(exchange.path).path
        except ValueError:
            raise bad_request("The URL is malformed.") from None
        path = path.removeprefix("/v1").rstrip("/") or "/"
        if path != "/health" and exchange.command != "OPTIONS":  # browsers ask that without a key
            self._check_key(exchange)
        methods = self._find(path)
        method = "GET" if exchange.command == "HEAD" else exchange.command
        if exchange.command == "OPTIONS":
            exchange.send_json(200, {}, {"Allow": _allow(methods)})
            return
        if method not in methods:
            raise ApiError(
                405,
                f"{exchange.command} is not allowed here; use {_allow(methods)}.",
                code="method_not_allowed",
                headers={"Allow": _allow(methods)},
            )
        methods[method](exchange)

    def _find(self, path: str) -> dict[str, Callable[[Exchange], None]]:
        if path in self._routes:
            return self._routes[path]
        if path.startswith("/models/"):
            name = unquote(path.removeprefix("/models/"))
            return {"GET": lambda exchange: self._one_model(exchange, name)}
        raise ApiError(404, f"Unknown URL: {path[:200]!r}.", code="unknown_url")

    def _check_key(self, exchange: Exchange) -> None:
        keys = self._settings.api_keys
        if not keys:
            return
        bearer = exchange.headers.get("Authorization", "")
        scheme, _, token = bearer.partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else ""
        given = given or exchange.headers.get("x-api-key", "")
        # As bytes, which http.server reads as Latin-1. Every key is compared, in constant time, so
        # that timing tells nothing.
        right = [hmac.compare_digest(given.encode("latin-1", "replace"), k.encode()) for k in keys]
        if not any(right):
            raise ApiError(
                401,
                "Missing or wrong API key. Send it as 'Authorization: Bearer KEY'.",
                type="authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _cross_origin(self, exchange: Exchange) -> dict[str, str]:
        """What lets a page of an allowed origin read the answer. None allowed: nothing at all."""
        allowed = self._settings.allowed_origins
        if not allowed:
            return {}
        headers = {"Vary": "Origin"}
        origin = exchange.headers.get("Origin")
        if origin is None or not ("*" in allowed or origin in allowed):
            return headers
        headers["Access-Control-Allow-Origin"] = "*" if "*" in allowed else origin
        headers["Access-Control-Expose-Headers"] = "Retry-After, x-request-id"
        if exchange.command == "OPTIONS":
            asked = exchange.headers.get("Access-Control-Request-Headers", "")
            names = {"authorization", "content-type", "x-api-key"}
            # SDKs add a dozen of their own. Names alone: nothing else may get into our headers.
            names.update(re.findall(r"[a-z0-9-]+", asked.lower())[:64])
            headers["Access-Control-Allow-Headers"] = ", ".join(sorted(names))
            headers["Access-Control-Allow-Methods"] = "GET, HEAD, OPTIONS, POST"
            headers["Access-Control-Max-Age"] = str(PREFLIGHT_S)
        return headers

    # Small routes.

    def _health(self, exchange: Exchange) -> None:
        ok = self._status.phase == "ok"
        headers = {} if ok else {"Retry-After": "5"}
        exchange.send_json(200 if ok else 503, self._status.health(), headers)

    def _queue(self, exchange: Exchange) -> None:
        exchange.send_json(
            200,
            {
                "size": self._status.waiting,
                "max": self._line.max_waiting,
                "running": self._status.running,
                "max_running": self._line.max_running,
            },
        )

    def _card(self) -> dict[str, Any]:
        status = self._status
        return model_card(status.model_id, int(status.started), status.context)

    def _models(self, exchange: Exchange) -> None:
        exchange.send_json(200, {"object": "list", "data": [self._card()]})

    def _one_model(self, exchange: Exchange, name: str) -> None:
        if name != self._status.model_id:
            raise model_not_found(name[:100], self._status.model_id)
        exchange.send_json(200, self._card())

    # Generation.

    def _chat(self, exchange: Exchange) -> None:
        model, served = self._ready()
        request = self._parse(exchange, parse_chat, served)
        given = [request.messages, request.tools, request.template_kwargs]
        _check_length(count_chars(given), model.context, "messages")
        self._answer(exchange, model, request.common, model.prompts.from_chat(request), chat=True)

    def _completions(self, exchange: Exchange) -> None:
        model, served = self._ready()
        request = self._parse(exchange, parse_completion, served)
        prompt = request.prompt
        if isinstance(prompt, str):
            _check_length(len(prompt), model.context, "prompt")
            prompt = model.prompts.from_text(prompt)
        elif not all(0 <= token < model.prompts.vocab for token in prompt):
            raise bad_request(
                f"'prompt' has a token id outside 0..{model.prompts.vocab - 1}.", "prompt"
            )
        self._answer(exchange, model, request.common, prompt, chat=False)

    def _parse(self, exchange: Exchange, parse: Callable[..., Any], served: Served) -> Any:
        """The checked request. Large ones in turn: parsing together they are no sooner done, but
        need their memory together, and keep the engine's thread waiting all the while."""
        raw = exchange.read_body()
        with self._large if len(raw) > LARGE_BODY else contextlib.nullcontext():
            return parse(parse_json(raw), served)

    def _ready(self) -> tuple[Model, Served]:
        phase = self._status.phase
        if phase == "loading" or self.model is None:
            raise unavailable(f"The model is loading: {self._status.detail}.", "loading")
        if phase != "ok":
            raise unavailable(f"The server is {phase}.", phase)
        return self.model, Served(self._status.model_id, sampling=self.model.sampling)

    def _answer(
        self, exchange: Exchange, model: Model, common: Common, prompt: list[int], *, chat: bool
    ) -> None:
        ticket = Ticket(
            prompt,
            self._clamp(common, len(prompt), model.context, "messages" if chat else "prompt"),
            common.sampling,
            common.ignore_eos,
        )
        answer = Answer(chat, self._status.model_id, model.fingerprint, len(prompt))
        text = model.prompts.text_out(common.stop, common.ignore_eos, continues=not chat)
        self._line.admit(ticket)
        pieces = generate(
            ticket, self._line, text, exchange.client_gone, self._settings.req_timeout
        )
        send = _stream if common.stream else _send_whole
        started = time.monotonic()
        outcome = "cut"
        try:
            outcome = send(exchange, answer, common, pieces)
        except ClientGone:
            outcome = "client left"
            exchange.close_connection = True
        except OSError:
            outcome = "client left"
            raise
        except ApiError as error:
            outcome = f"error {error.status}"
            exchange.send_api_error(error)  # not left to the transport: it is answered after that
        finally:
            pieces.close()  # cancels, unless the answer is complete
            self._line.answered(ticket)
            log.info(
                "%s %s: %d prompt tokens, %s, %.2f s",
                exchange.request_id,
                "chat" if chat else "completion",
                len(prompt),
                outcome,
                time.monotonic() - started,
            )

    def _clamp(self, common: Common, prompt_tokens: int, context: int, param: str) -> int:
        """The limit on generated tokens, so that prompt and answer fit the context."""
        room = context - prompt_tokens
        if room < 1:
            raise context_exceeded(prompt_tokens, context, param)
        return min(common.max_tokens or self._settings.default_max_tokens, room)


def _check_length(chars: int, context: int, param: str) -> None:
    """Refuses text that cannot fit before it is tokenized: 20 MB would keep a core busy for a
    minute, whether the client waits or not. The error then counts the least it can be."""
    if chars > context * TOKEN_CHARS:
        raise context_exceeded(chars // TOKEN_CHARS, context, param)


def _send_whole(exchange: Exchange, answer: Answer, common: Common, pieces) -> str:
    texts = []
    for piece in pieces:
        if isinstance(piece, Piece):
            texts.append(piece.text)
            if piece.finish:
                exchange.send_json(200, answer.whole("".join(texts), piece.finish, piece.tokens))
                return f"{piece.tokens} tokens, {piece.finish}"
    raise AssertionError("an answer ends with a finish or an error")


def _stream(exchange: Exchange, answer: Answer, common: Common, pieces) -> str:
    pinged = 0.0

    def send(chunk: dict[str, Any]) -> None:
        if common.include_usage:
            chunk.setdefault("usage", None)
        exchange.send_event(chunk)

    opened = False
    for piece in pieces:
        if isinstance(piece, Piece):
            if not exchange.streaming:
                exchange.begin_stream()
            if not opened and (opening := answer.opening()):
                send(opening)
            opened = True
            if piece.text:
                send(answer.chunk(piece.text))
            if piece.finish:
                send(answer.closing(piece.finish))
                if common.include_usage:
                    send(answer.usage_chunk(piece.tokens))
                exchange.send_event("[DONE]")
                exchange.end_stream()
                return f"{piece.tokens} tokens, {piece.finish}"
        elif piece.seconds - pinged >= PING_S:
            # Until now a failure could still be a plain status; now silence would be worse.
            pinged = piece.seconds
            if not exchange.streaming:
                exchange.begin_stream()
            exchange.send_ping()
    raise AssertionError("an answer ends with a finish or an error")


def _allow(methods: dict[str, Any]) -> str:
    return ", ".join(sorted({*methods, "OPTIONS"} | ({"HEAD"} if "GET" in methods else set())))
