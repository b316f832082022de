"""Rank 0 of one with several models, whole but for its socket."""

import threading
import time
from collections.abc import Callable

import mlx.core as mx
import numpy as np

from server.api.routes import App
from server.lifecycle.watchdog import Watchdog
from server.observe.status import Status
from server.protocol.events import Embedded, Failed, Token
from server.protocol.requests import Common, Sampling
from server.protocol.settings import read_settings
from server.rank import Leads, Maker
from server.scheduler.queue import Line, Ticket
from server.startup.handshake import Met
from server.wire.link import Link
from tests.support.tiny_models import tiny_llama

DEADLINE_S = 120
SHAPES = {"a": {}, "b": {"hidden": 128}, "c": {"hidden": 128}}


class House:
    """Serves on this thread what act(house) asks for on another. shapes: of its three models."""

    def __init__(self, tmp_path, shapes=SHAPES, **env: str) -> None:
        folders = {
            name: tiny_llama(tmp_path / name, seed=seed, **shape)
            for seed, (name, shape) in enumerate(shapes.items())
        }
        self.folders = folders
        named = ",".join(f"{name}={folders[name]}" for name in "bc")
        self.settings = read_settings(
            {"MODEL_DIR": str(folders["a"]), "MODELS": named, "PREFILL_STEP": "32",
             "KV_BUDGET_GB": "0.1", "MODELS_GB": "0.0025"} | env
        )  # fmt: skip
        self.status = Status("a", "run")
        self.line = Line(self.settings.max_batch, 64)
        self.app = App(self.settings, self.status, self.line)

    def run(self, act) -> None:
        maker = Maker(self.settings, Link(mx.distributed.init()), Met("fp", 1, [None]), self.status)
        leads = Leads(maker, maker.first(lambda stage: None), self.line, self.app, self.status)
        failed = []

        def acting() -> None:
            try:
                act(self)
            except BaseException as error:
                failed.append(error)
            self.line.stop("done")

        thread = threading.Thread(target=acting)
        thread.start()
        leads.serve(Watchdog(DEADLINE_S, lambda reason: None), ())
        thread.join()
        if failed:
            raise failed[0]

    def begin(self, name: str, tokens: int = 6, prompt=(5, 6, 7)) -> Ticket:
        common = Common(sampling=Sampling(temperature=0), ignore_eos=True)
        number = self.app.catalog.find(name)
        ticket = Ticket(list(prompt), tokens, common, model=number)
        self.line.admit([ticket])
        return ticket

    def embed(self, name: str, *inputs: list[int]) -> list[np.ndarray] | Failed:
        number = self.app.catalog.find(name)
        ticket = Ticket([], 0, Common(), model=number, inputs=inputs)
        self.line.admit([ticket])
        vectors: dict[int, np.ndarray] = {}
        while len(vectors) < len(inputs):
            place, event = ticket.events.get(timeout=DEADLINE_S)
            if isinstance(event, Failed):
                return event
            if isinstance(event, Embedded):
                vectors[place] = event.vector
        return [vectors[place] for place in range(len(inputs))]

    def ask(self, name: str, **fields) -> list[int] | Failed:
        return self.end(self.begin(name, **fields))

    def end(self, ticket: Ticket) -> list[int] | Failed:
        ids = []
        while True:
            _, event = ticket.events.get(timeout=DEADLINE_S)
            if isinstance(event, Failed):
                return event
            if isinstance(event, Token):
                ids.append(event.id)
                if event.finish is not None:
                    return ids

    def until(self, held: Callable[[], bool]) -> None:
        """Waits for something to hold."""
        end = time.monotonic() + DEADLINE_S
        while not held():
            assert time.monotonic() < end
            time.sleep(0.01)

    def states(self) -> dict[str, str]:
        return {one.name: one.state for one in self.app.catalog.models}
