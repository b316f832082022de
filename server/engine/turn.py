"""What a turn of the engine is about: a prompt that is scored, and what came of all of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from server.protocol.events import Embedded, Prefilled, Token
from server.wire.mailbox import Header
from server.wire.messages import Submit


@dataclass
class Scoring:
    """A prompt whose log-probabilities rank 0 wants: prefilled here, chunk by chunk."""

    message: Submit
    cache: list
    done: int = 0  # tokens


@dataclass(frozen=True)
class Turn:
    """What a chunk of prompts did, a decode step, or both: (uid, event) pairs, and which entries of
    prefixes are now kept with which tokens. 0 and None where there was no such part. refused: the
    requests that failed on every rank alike, and that none holds any more. interrupted: other
    models had turns since this one's last, so step_s has theirs in it."""

    events: list[tuple[int, Token | Prefilled | Embedded]]
    kept: list[tuple[int, list[int]]]
    computed: int = 0  # tokens of prompts
    chunk_s: float = 0.0  # seconds that they took
    step_s: float = 0.0  # seconds from launching a decode step to its tokens
    launch_s: float = 0.0  # seconds that MLX took to take in the last one
    header: Header | None = None  # that came with a step
    width: int = 0  # places a row of that step, where the one before it was over when it was made
    refused: Sequence[tuple[int, Exception]] = ()
    interrupted: bool = False
