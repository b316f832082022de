"""Clients of the random walk who ask for embeddings, and leave at any moment."""

import random
from collections import Counter

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from server.protocol.errors import ApiError
from server.protocol.events import Embedded, Failed, Prefilled
from server.protocol.requests import Common
from server.scheduler.queue import Line, Ticket
from tests.support.small_models import VOCAB
from tests.support.walk_parts import pieces

ROUNDING = 1e-2  # of the largest value


class Embedders:
    """seen: counts what has happened. capacity: tokens that fit the memory."""

    def __init__(self, seed: int, shard, line: Line, capacity: int, seen: Counter) -> None:
        self._rng = random.Random(f"{seed} embeddings")
        self._shard, self._line, self._capacity, self._seen = shard, line, capacity, seen
        self._busy = self._rng.choice([0, 0, 0.05]) if shard.last.hidden else 0
        self._open: list[Ticket] = []
        self._vectors: dict[int, dict[int, np.ndarray]] = {}  # by ticket, by place
        self.may_fail: set[int] = set()
        self._right: dict[tuple[int, ...], np.ndarray] = {}

    def act(self) -> None:
        """They ask, and leave."""
        rng = self._rng
        while rng.random() < self._busy:
            sizes = [rng.choice([1, 2, 17, 60, 200]) for _ in range(rng.choice([1, 3, 20]))]
            inputs = [rng.choices(range(4, VOCAB), k=min(n, self._capacity - 1)) for n in sizes]
            ticket = Ticket([], 0, Common(), inputs=inputs)
            try:
                self._line.admit([ticket])
            except ApiError:
                return
            self._open.append(ticket)
            self._vectors[ticket.uid] = {}
        if self._open and rng.random() < 0.05:
            self._leave(rng.choice(self._open))

    def read(self) -> bool:
        """Whether anything has come. All that has is right."""
        heard = False
        for ticket in list(self._open):
            while not ticket.events.empty():
                heard = True
                place, event = ticket.events.get_nowait()
                if isinstance(event, Failed):
                    assert ticket.uid in self.may_fail, event.error.message
                    self._leave(ticket)
                elif isinstance(event, Embedded):
                    self._take(ticket, place, event.vector)
                else:
                    assert isinstance(event, Prefilled), event
            if len(self._vectors[ticket.uid]) == len(ticket.inputs):
                self._open.remove(ticket)
                self._seen["embedded requests"] += 1
        return heard

    def check_end(self) -> None:
        """Nobody waits."""
        left = [ticket.uid for ticket in self._open]
        assert not left, f"requests {left} for embeddings have no end"

    def _leave(self, ticket: Ticket) -> None:
        self._line.cancel(ticket)
        self._seen["embedders that left"] += 1
        if ticket in self._open:
            self._open.remove(ticket)

    def _take(self, ticket: Ticket, place: int, vector: np.ndarray) -> None:
        mine = self._vectors[ticket.uid]
        assert place not in mine, f"input {place} of {ticket.uid} is embedded twice"
        mine[place] = vector
        self._seen["embedded inputs"] += 1
        right = self._alone(ticket.inputs[place])
        off = np.max(np.abs(vector - right)) / np.max(np.abs(right))
        assert off < ROUNDING, f"input {place} of {ticket.uid} is off by {off}"

    def _alone(self, ids: list[int]) -> np.ndarray:
        last = self._shard.last
        for part, caches in pieces(self._shard, ids, make_prompt_cache(self._shard.model)):
            last.want([0], [len(part) - 1])
            last(mx.array([part]), caches)
        return np.array(last.take_hidden()[0].astype(mx.float32))
