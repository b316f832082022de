"""Models as the routes see them: which one a request means, and whether its text can be read yet.

On rank 0's HTTP threads; its main thread tells of each that is loaded. What turns text into tokens
stays when a model's weights go, so that who asks for it again waits in the line like all others.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from server.protocol.client import POLL_S, Client
from server.protocol.embedding_kind import UNKNOWN, EmbeddingKind
from server.protocol.errors import unavailable
from server.protocol.printable import printable
from server.protocol.requests import Sampling, Served
from server.scheduler.catalog import AGAIN_S, FIRST, LOADED, SOON_S, Catalog, cannot_load
from server.text.prompts import Prompts


@dataclass(frozen=True)
class Model:
    """What the routes need of a model that is loaded, or was. context: tokens of prompt plus
    answer; number: its place in the list of models."""

    prompts: Prompts
    context: int
    sampling: Sampling
    fingerprint: str
    embeddings: EmbeddingKind = UNKNOWN
    number: int = 0
    name: str = ""


class Models:
    """aliases: other names of the first."""

    def __init__(self, catalog: Catalog, aliases: tuple[str, ...]) -> None:
        self._catalog = catalog
        self._aliases = aliases
        self._models: dict[int, Model] = {}  # written by the main thread

    @property
    def begun(self) -> bool:
        """Whether the first is loaded, or was."""
        return FIRST in self._models

    def __getitem__(self, number: int) -> Model:
        """That was loaded at that place."""
        return self._models[number]

    def prompts(self, number: int, fingerprint: str) -> Prompts | None:
        """What reads text for a model that was loaded before, of the same files."""
        model = self._models.get(number)
        return model.prompts if model is not None and model.fingerprint == fingerprint else None

    def loaded(self, model: Model, number: int) -> None:
        """From now on this is what answers for the model at that place of the list."""
        name = self._catalog.models[number].name
        self._catalog.note(number, state=LOADED, context=model.context)
        self._models |= {number: replace(model, number=number, name=name)}

    def embeddings(self, number: int) -> EmbeddingKind | None:
        """What a model gives; None while that is not known."""
        model = self._models.get(number)
        return model.embeddings if model is not None else None

    def promise(self, number: int, context: int) -> None:
        """A model has another context from now on."""
        if number in self._models:
            self._models |= {number: replace(self._models[number], context=context)}

    def place(self, name: str | None) -> int | None:
        """Which model a client means; None for one that is not served."""
        number = self._catalog.find(name) if name is not None else FIRST
        if number is None and self.served(FIRST).knows(name):
            number = FIRST
        return number

    def served(self, number: int) -> Served:
        """What a request for a model is checked against."""
        names = [one.name for one in self._catalog.models]
        aliases = () if number else self._aliases
        model = self._models.get(number)
        sampling = model.sampling if model else Sampling()
        return Served(names.pop(number), aliases, sampling, tuple(names))

    def ready(self, number: int, patience: float) -> Model | None:
        """A model for which tokens can be made: it is loaded, or was, and there is time."""
        loaded = self._catalog.models[number].loaded
        return self._models.get(number) if loaded or patience == math.inf else None

    def wait_for(
        self,
        number: int,
        client: Client,
        patience: float,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Until a model is loaded. tell: hears now and then how far that is. Raises ApiError 503
        when it cannot be, or not soon enough, and what client.look and tell raise."""
        until = time.monotonic() + patience
        with self._catalog.asking(number):
            while not (number in self._models and self._catalog.models[number].loaded):
                one, now = self._catalog.models[number], time.monotonic()
                if one.failed and now - one.failed_at < AGAIN_S:
                    raise cannot_load(one.name, one.failed)
                if now >= until:
                    raise unavailable(
                        f"The model {one.name!r} is not loaded: {one.why or one.state}. It has "
                        "been asked for.",
                        "model_not_loaded",
                        SOON_S,
                    )
                client.look()
                tell(f"waiting for {printable(one.name)}: {one.state}, {one.share:.0%}")
                time.sleep(min(POLL_S, max(0.0, until - now)))


def willing_to_wait(prefer: str | None) -> float:
    """Seconds that a client would wait for a model to be loaded, by its Prefer header (RFC 7240):
    without one as long as for anything."""
    for word in (prefer or "").replace(";", ",").split(","):
        name, _, value = word.partition("=")
        value = value.strip().strip('"')
        if name.strip().lower() == "wait" and value.isascii() and value.isdigit():
            return float(value[:9])
    return math.inf
