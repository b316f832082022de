"""The models that are served, and how each of them stands: loaded, on its way, or on disk alone.

HTTP threads of rank 0 ask for models here; the dispatcher answers on its main thread, and writes
how they stand. Nothing is in it that the operator has not named. Imports no mlx.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from server.observe.model_view import ModelView
from server.observe.views import Capacity, Load
from server.protocol.errors import ApiError, queue_full, unavailable

FIRST = 0  # the model that is loaded at the start, and meant where none is named
AGAIN_S = 30.0  # after a model could not be loaded, before it is tried again
SOON_S = 5.0  # a client that comes again then may find it loaded
WISH_S = 60.0  # that it is wanted after somebody asked who does not wait
UNLOADED, LOADING, LOADED, LEAVING = "unloaded", "loading", "loaded", "leaving"


@dataclass(frozen=True)
class Standing:
    """How a model stands. bytes: of its weights, on all ranks; context: tokens, 0 if that is not
    known; why: its state, in words; failed: it could not be loaded, and when by the monotonic
    clock. share: of what is loaded already. loads, failures, left_for_room, left_idle: how often;
    load_s: seconds of the last load; switched_at: when its state last changed, Unix time. The rest
    is as Capacity has it, "" before it was loaded."""

    name: str
    pinned: bool = False
    state: str = UNLOADED
    why: str = ""
    bytes: int = 0
    context: int = 0
    loads: int = 0
    failures: int = 0
    left_for_room: int = 0
    left_idle: int = 0
    load_s: float = 0.0
    switched_at: float = 0.0
    kv_tokens: int = 0
    token_bytes: int = 0
    failed: str = ""
    failed_at: float = 0.0
    share: float = 0.0
    parallel: str = ""
    batching: str = ""
    kv_precision: str = ""
    drafts: str = ""

    @property
    def loaded(self) -> bool:
        return self.state in (LOADED, LEAVING)


class Catalog:
    """names: all models, the first of which is meant where a request names none. most: requests
    that may wait for models to be loaded. notify: has the main thread look."""

    def __init__(
        self,
        names: Sequence[str],
        pinned: Sequence[str] = (),
        most: int = 1,
        notify: Callable[[], None] = lambda: None,
    ) -> None:
        self._most = most
        self._notify = notify
        self._lock = threading.Lock()
        self._asking: dict[int, int] = {}  # requests that wait, by model
        self._wished: dict[int, float] = {}  # when somebody asked, who may not be waiting
        self.models: tuple[Standing, ...] = tuple(Standing(n, n in pinned) for n in names)
        self.loads: dict[int, Load] = {}  # by model; replaced as a whole, by the dispatcher

    def find(self, name: str) -> int | None:
        """Its place in the list; None for a name that is no model's."""
        return next((n for n, one in enumerate(self.models) if one.name == name), None)

    def describe(self) -> list[dict[str, Any]]:
        """As GET /cluster shows them."""
        return [
            {
                "id": one.name,
                "state": one.state,
                "why": one.failed or one.why,
                "pinned": one.pinned,
                "size_bytes": one.bytes or None,
                "context": one.context or None,
                "loaded_share": round(one.share, 3),
                "loads": one.loads,
                "failures": one.failures,
                "unloads": {"room": one.left_for_room, "idle": one.left_idle},
                "load_s": round(one.load_s, 1) or None,
                "switched_at": round(one.switched_at, 1) or None,
                "running": load.running,
                "queued": load.waiting,
                "parallel": one.parallel or None,
                "batching": one.batching or None,
                "kv_precision": one.kv_precision or None,
                "drafts": one.drafts or None,
            }
            for one, load in self._with_loads()
        ]

    def views(self, first: Load, capacity: Capacity) -> list[ModelView]:
        """As the metrics show them. first, capacity: of the first, where nobody has told."""
        return [
            ModelView(
                one.name,
                one.loaded,
                one.bytes,
                one.loads,
                one.failures,
                (("room", one.left_for_room), ("idle", one.left_idle)),
                one.load_s,
                one.kv_tokens or (0 if number else capacity.kv_tokens),
                one.token_bytes or (0 if number else capacity.token_bytes),
                load if self.loads or number else first,
            )
            for number, (one, load) in enumerate(self._with_loads())
        ]

    def _with_loads(self) -> list[tuple[Standing, Load]]:
        loads = self.loads
        return [(one, loads.get(n, Load())) for n, one in enumerate(self.models)]

    def note(self, number: int, **news) -> None:
        """How a model stands from now on. The main thread's alone."""
        models = list(self.models)
        if news.get("state", models[number].state) != models[number].state:
            news["switched_at"] = time.time()
        models[number] = replace(models[number], **news)
        self.models = tuple(models)

    @contextlib.contextmanager
    def asking(self, number: int) -> Iterator[None]:
        """While a request waits for a model. Raises ApiError 429 where too many do."""
        with self._lock:
            waiting = sum(self._asking.values())
            if waiting >= self._most:
                raise queue_full(waiting, 0, 5.0)
            self._asking[number] = self._asking.get(number, 0) + 1
            self._wished.setdefault(number, time.monotonic())
        self._notify()
        try:
            yield
        finally:
            with self._lock:
                self._asking[number] -= 1
                if not self._asking[number]:
                    del self._asking[number]

    def wished(self) -> dict[int, float]:
        """The models that are asked for, each with when it first was."""
        now = time.monotonic()
        with self._lock:
            for number in self._asking:  # it may have been loaded and gone before anybody looked
                self._wished.setdefault(number, now)
            self._wished = {
                number: since
                for number, since in self._wished.items()
                if number in self._asking or now - since < WISH_S
            }
            return dict(self._wished)

    def granted(self, number: int) -> None:
        """It is loaded, or cannot be: whoever still wants it asks again."""
        with self._lock:
            self._wished.pop(number, None)


def cannot_load(name: str, reason: str) -> ApiError:
    """503 for who asked for a model that could not be loaded."""
    return unavailable(f"The model {name!r} cannot be loaded: {reason}.", "not_loaded", AGAIN_S)
