"""What the engine tells of a choice while it runs: the events that a ticket carries to its client.

Frozen data; made on rank 0's main thread, read by its HTTP threads. Imports no mlx.
"""

from dataclasses import dataclass

import numpy as np

from server.protocol.errors import ApiError


@dataclass(frozen=True)
class Score:
    """A token's natural log-probability, and the likeliest alternatives as (id, value).

    logprob is None for the first token of a prompt, which follows nothing.
    """

    id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Token:
    """One generated token. finish is None, "stop" (an end token) or "length". drafted: it was
    drafted before the model was asked; wrong: so were so many in its step that were not right."""

    id: int
    finish: str | None
    score: Score | None = None  # if the request asked for log-probabilities
    drafted: bool = False
    wrong: int = 0


@dataclass(frozen=True)
class Prefilled:
    """Progress of the prompt: tokens done, of total."""

    done: int
    total: int


@dataclass(frozen=True)
class Scored:
    """The prompt's own log-probabilities, from its second token on. Comes before any Token."""

    scores: tuple[Score, ...]


@dataclass(frozen=True)
class Embedded:
    """The hidden state of an input's last token, float32, as the model has it. All of the input's
    answer."""

    vector: np.ndarray


@dataclass(frozen=True)
class Failed:
    """The choice ended without an answer."""

    error: ApiError


Event = Token | Prefilled | Scored | Embedded | Failed
