"""What each URL does. One App, called by the HTTP threads of rank 0. Imports no mlx.

Routes answer with and without /v1. /health, /queue, /v1/models and answers that are kept are always
there; the routes that need the model are in model_routes. The page at / and its parts below /page
need no key, as they hold nothing but themselves.
"""

import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

from server.api.dialects import messages
from server.api.dialects.embeddings import tell_kind
from server.api.dialects.kept_responses import KeptResponses
from server.api.model_routes import ModelRoutes
from server.api.models import Model, Models
from server.api.openapi.document import describe
from server.observe.account import UNREADABLE, Account
from server.observe.cluster_state import describe_cluster
from server.observe.health import describe_health
from server.observe.metrics import Metrics
from server.observe.model_view import ModelView
from server.observe.phases import OK
from server.observe.status import Status
from server.protocol.errors import ApiError, bad_request, model_not_found, stopped
from server.protocol.requests import ANY_MODEL
from server.protocol.settings import Settings
from server.scheduler.catalog import Catalog
from server.scheduler.queue import Line
from server.transport.auth import check_key, may_stop
from server.transport.cors import cross_origin
from server.transport.cross_site import CrossSite
from server.transport.exchange import Exchange
from server.transport.keys import KeyRing
from server.transport.page import SCRIPT_TYPE, Page, Part

log = logging.getLogger(__name__)

NEED_NO_KEY = ("/", "/health")


# Known by their names without /v1, though they answer with it, too.
BARE = ("/", "/health", "/queue", "/cluster", "/metrics", "/openapi.json")


class App:
    """Answers requests. on_closed hears of each that is over: the request log's. catalog: the
    models that are served, and how each stands."""

    def __init__(
        self,
        settings: Settings,
        status: Status,
        line: Line,
        on_closed: Callable[[Account], None] = lambda account: None,
    ) -> None:
        self._settings = settings
        self._status = status
        self._line = line
        self._on_closed = on_closed
        names = (settings.http_host, *settings.allowed_hosts)
        self._cross_site = CrossSite(settings.allowed_origins, names, bool(settings.keys))
        self._keys = KeyRing(settings.keys, settings.api_keys, settings.api_key_file)
        status.record.expect_keys(label for _, label in settings.keys)
        self._page = Page()
        self._metrics = Metrics(settings, status, self._model_views)
        self._kept = KeptResponses(settings.responses_kept)
        self.catalog = Catalog(
            [one.name for one in settings.models],
            settings.pinned,
            line.max_running + line.max_waiting,
            line.arrived.set,
        )
        status.record.expect_model(settings.models[0].name)
        self.models = Models(self.catalog, settings.model_aliases)
        with_model = ModelRoutes(settings, status, line, self._kept, self.models)
        self._with_model = with_model
        self._routes: dict[str, dict[str, Callable[[Exchange], None]]] = {
            "/": {"GET": self._send_page},
            "/health": {"GET": self._health},
            "/queue": {"GET": self._queue},
            "/cluster": {"GET": self._cluster},
            "/metrics": {"GET": self._send_metrics},
            "/models": {"GET": self._models},
            "/chat/completions": {"POST": with_model.chat},
            "/completions": {"POST": with_model.completions},
            "/responses": {"POST": with_model.responses},
            "/messages": {"POST": with_model.messages},
            "/messages/count_tokens": {"POST": with_model.count_tokens},
            "/embeddings": {"POST": with_model.embeddings},
            "/tokenize": {"POST": with_model.tokenize},
            "/detokenize": {"POST": with_model.detokenize},
            "/openapi.json": {"GET": self._openapi},
        }

    def model_loaded(self, model: Model, number: int = 0) -> None:
        """From now on this is what answers, for the model at that place of the list."""
        self.models.loaded(model, number)

    def __call__(self, exchange: Exchange) -> None:
        """Routes one request. Raises ApiError for the transport to render."""
        exchange.common_headers.update(cross_origin(exchange, self._settings.allowed_origins))
        try:
            path = _route(exchange.path)
        except ValueError:
            raise bad_request("The URL is malformed.") from None
        exchange.account.method, exchange.account.route = exchange.command, self._name(path)
        self._status.record.received(exchange.account)
        self._cross_site.check(exchange, path)
        # Browsers send OPTIONS without a key.
        needs_key = path not in NEED_NO_KEY and not _is_below(path, "/page/")
        if needs_key and exchange.command != "OPTIONS":
            check_key(exchange, self._keys.now())
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
        if method == "POST":
            self._cross_site.check_type(exchange)
        methods[method](exchange)

    def _find(self, path: str) -> dict[str, Callable[[Exchange], None]]:
        if path in self._routes:
            return self._routes[path]
        if _is_below(path, "/page/") and path.removeprefix("/page/") in self._page.parts:
            part = self._page.parts[path.removeprefix("/page/")]
            return {"GET": lambda exchange: self._send_part(exchange, part)}
        if path.startswith("/models/"):
            name = unquote(path.removeprefix("/models/"))
            return {"GET": lambda exchange: self._one_model(exchange, name)}
        if _is_below(path, "/responses/"):
            id = unquote(path.removeprefix("/responses/"))
            return {
                "GET": lambda exchange: self._one_response(exchange, id),
                "DELETE": lambda exchange: self._delete_response(exchange, id),
            }
        if _is_below(path, "/requests/"):
            id = unquote(path.removeprefix("/requests/"))
            return {"DELETE": lambda exchange: self._stop(exchange, id)}
        raise ApiError(404, f"Unknown URL: {path[:200]!r}.", code="unknown_url")

    def closed(self, account: Account) -> None:
        """Hears of the end of each request."""
        if not account.route:
            account.route = UNREADABLE
            self._status.record.received(account)
        self._status.record.closed(account)
        if account.error is not None:
            log.warning(
                "%s %s %s %s, %d: %s",
                account.request_id,
                account.method,
                account.route,
                account.outcome,
                account.error.status,
                account.error_message,
            )
        self._on_closed(account)

    def error_body(self, target: str, error: ApiError) -> dict[str, Any]:
        """An error in the words of the API whose path it is, known or not. target: a URL, or what
        of one could be read."""
        try:
            path = _route(target)
        except ValueError:
            path = ""
        return messages.error_body(error) if path.startswith("/messages") else error.body()

    def connection_refused(self) -> None:
        """Hears of a connection beyond the most that can be open."""
        self._status.record.connection_refused()

    def _name(self, path: str) -> str:
        """A route's name for the record: one of few, whatever clients ask for."""
        if path in self._routes:
            return path if path in BARE else "/v1" + path
        if _is_below(path, "/page/"):
            return "/page/{name}"
        if _is_below(path, "/requests/"):
            return "/v1/requests/{id}"
        if _is_below(path, "/responses/"):
            return "/v1/responses/{id}"
        return "/v1/models/{model}" if path.startswith("/models/") else "other"

    # Small routes.

    def _send_page(self, exchange: Exchange) -> None:
        exchange.send_body(200, Page.content_type, self._page.body, self._page.headers)

    def _send_part(self, exchange: Exchange, part: Part) -> None:
        status = 304 if part.known(exchange.headers.get("If-None-Match", "")) else 200
        exchange.send_body(status, SCRIPT_TYPE, part.body, part.headers)

    def _health(self, exchange: Exchange) -> None:
        view = self._status.look()
        ok = view.state.phase == OK
        headers = {} if ok else {"Retry-After": "5"}
        exchange.send_json(200 if ok else 503, describe_health(view), headers)

    def _queue(self, exchange: Exchange) -> None:
        load = self._status.load
        exchange.send_json(
            200,
            {
                "size": load.waiting,
                "max": self._line.max_waiting,
                "running": load.running,
                "max_running": self._line.max_running,
            },
        )

    def _cluster(self, exchange: Exchange) -> None:
        body = describe_cluster(
            self._settings,
            self._status,
            lambda other: self._may_stop(exchange, other),
            self.catalog.describe(),
        )
        exchange.send_json(200, body, {"Cache-Control": "no-store"})

    def _may_stop(self, exchange: Exchange, other: Account) -> bool:
        operators = self._settings.operator_keys
        return may_stop(exchange.account, other, self._keys.now(), operators)

    def _stop(self, exchange: Exchange, id: str) -> None:
        """Ends a request that has its place in the line: its own client is told, and whoever asked
        for it knows that the ranks will drop it."""
        for other in self._status.record.live():
            if other.request_id != id or other.generation is None:
                continue
            if not self._may_stop(exchange, other):
                raise ApiError(
                    403,
                    "This request came with another key; OPERATOR_KEYS lists those that may stop "
                    "any.",
                    type="permission_error",
                    code="not_your_request",
                )
            by = f" by {exchange.account.key}" if exchange.account.key else ""
            log.info("%s is stopped%s", id, by)
            other.generation.stop(stopped())
            exchange.send_json(200, {"id": id, "object": "request", "stopped": True})
            return
        raise ApiError(
            404, f"No request {id[:200]!r} waits or runs here.", code="request_not_found"
        )

    def _model_views(self) -> list[ModelView]:
        view = self._status.look()
        return self.catalog.views(view.load, view.capacity)

    def _send_metrics(self, exchange: Exchange) -> None:
        data, content_type = self._metrics.render(exchange.headers.get("Accept", ""))
        exchange.send_body(200, content_type, data)

    def _openapi(self, exchange: Exchange) -> None:
        exchange.send_json(200, describe(*(one.name for one in self.catalog.models)))

    def _card(self, name: str, number: int) -> dict[str, Any]:
        """name: the model's own, or one of the first one's aliases."""
        one = self.catalog.models[number]
        return {
            "id": name,
            "object": "model",
            "created": int(self._status.start.at),
            "owned_by": "mlx-cluster",
            "root": one.name,
            "max_model_len": one.context or None,
            "loaded": one.loaded,
            "size_bytes": one.bytes or None,
            "embeddings": tell_kind(self.models.embeddings(number)),
        }

    def _models(self, exchange: Exchange) -> None:
        first, *others = [one.name for one in self.catalog.models]
        aliases = [name for name in self._settings.model_aliases if name != ANY_MODEL]
        names = dict.fromkeys([first, *aliases], 0)
        names |= {name: number for number, name in enumerate(others, 1)}
        cards = [self._card(name, number) for name, number in names.items()]
        if exchange.headers.get("anthropic-version"):
            exchange.send_json(200, messages.list_models(cards))
            return
        exchange.send_json(200, {"object": "list", "data": cards})

    def _one_model(self, exchange: Exchange, name: str) -> None:
        number = self.models.place(name)
        if number is None:
            raise model_not_found(name, [one.name for one in self.catalog.models])
        card = self._card(name, number)
        if exchange.headers.get("anthropic-version"):
            card = messages.model_card(card)
        exchange.send_json(200, card)

    def _one_response(self, exchange: Exchange, id: str) -> None:
        exchange.send_json(200, self._kept.of(exchange.account.key).response(id))

    def _delete_response(self, exchange: Exchange, id: str) -> None:
        self._kept.of(exchange.account.key).delete(id)
        exchange.send_json(200, {"id": id, "object": "response", "deleted": True})


def _route(target: str) -> str:
    """A URL's path, with or without /v1. Raises ValueError."""
    return urlsplit(target).path.removeprefix("/v1").rstrip("/") or "/"


def _is_below(path: str, folder: str) -> bool:
    """Whether it is that of one thing there, and not of something below it, as its input_items."""
    return path.startswith(folder) and path.count("/") == 2


def _allow(methods: dict[str, Any]) -> str:
    return ", ".join(sorted({*methods, "OPTIONS"} | ({"HEAD"} if "GET" in methods else set())))
