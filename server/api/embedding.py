"""From an admitted request for embeddings to its answer. On its HTTP thread, on rank 0."""

from collections.abc import Callable

import numpy as np

from server.api.responder import accounted
from server.observe.recorder import Recorder
from server.protocol.errors import ApiError
from server.protocol.events import Embedded
from server.protocol.pieces import Usage
from server.scheduler.queue import Ticket
from server.text.following import Following
from server.transport.http_server import Exchange


class Embedding:
    """One request's vectors as they come. write: makes of each what the answer has of it, at once,
    so that no vector waits for the others."""

    def __init__(
        self, ticket: Ticket, following: Following, write: Callable[[np.ndarray], bytes]
    ) -> None:
        self._ticket = ticket
        self._following = following
        self._write = write
        self._written: dict[int, bytes] = {}  # by the input's place

    def collect(self) -> list[bytes]:
        """What is written of all inputs, in their order. Raises what Following.events raises."""
        for place, event in self._following.events():
            if isinstance(event, Embedded):
                self._written[place] = self._write(event.vector)
                if len(self._written) == len(self._ticket.inputs):
                    self._following.finished(self._ticket)
        return [self._written[place] for place in range(len(self._ticket.inputs))]

    def answered(self) -> None:
        """The last byte is sent, or there is nobody left to send it to."""
        self._following.answered()

    def stop(self, error: ApiError) -> None:
        """Ends it: the ranks drop it, and the client is told."""
        self._following.stop(error)

    def rows(self) -> list[int]:
        """None of it decodes."""
        return []

    def tickets(self) -> list[Ticket]:
        """The one of the request."""
        return [self._ticket]

    def usage(self) -> Usage:
        """Tokens of the inputs that are done."""
        inputs = self._ticket.inputs
        return Usage(prompt=sum(len(inputs[place]) for place in list(self._written)), completion=0)

    def tokens(self) -> list[int]:
        """None are generated."""
        return []

    def finish_reasons(self) -> list[str | None]:
        """No choice is made of it."""
        return []


def embed(
    exchange: Exchange,
    embedding: Embedding,
    record: Recorder,
    answer: Callable[[list[bytes], int], bytes],
) -> None:
    """Sends the answer, or the error that takes its place. answer: the body, of what was written
    and the tokens. Raises OSError: the client left."""
    exchange.admitted(embedding, stream=False)
    record.admitted(exchange.account)
    with accounted(exchange, embedding, exchange.send_api_error):
        written = embedding.collect()
        body = answer(written, embedding.usage().prompt)
        exchange.send_body(200, "application/json", body)
