"""What rank 0 tells every rank, as frozen dataclasses and as bytes. No pickle.

Layout of the bytes: a little-endian uint32 with the length of the JSON text, the JSON text (a
list of messages, prompts replaced by their lengths), then all prompts' token ids as int32.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

LEAST_KEPT = 16  # tokens of a kept prefix; below, computing is as quick as looking up


@dataclass(frozen=True)
class Draw:
    """How to draw the tokens of the row uid. seed: 64 bits, unsigned; drawn: tokens so far."""

    uid: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    drawn: int


@dataclass(frozen=True)
class Submit:
    """Start on a prompt. uid names it from now on; max_tokens counts generated tokens.

    stop_ids end the answer, as end-of-text does unless ignore_eos. forks are the uids of further
    choices from the same prompt, which share its prefill. score: rank 0 wants the prompt's
    log-probabilities.

    reuse: (entry, tokens), a kept prefix to begin with; empty for none. keep: (tokens, entry), at
    which lengths of the prompt to keep its cache. store: the entry for the answered text; 0: none.

    draws: for those of uid and forks that any rank may draw; rank 0 chooses for the others.

    embed: the hidden state of the prompt's last token is all that is wanted: the request ends with
    its prompt.
    """

    uid: int
    prompt: Sequence[int]
    max_tokens: int
    ignore_eos: bool = False
    stop_ids: Sequence[int] = ()
    forks: Sequence[int] = ()
    score: bool = False
    reuse: Sequence[int] = ()
    keep: Sequence[tuple[int, int]] = ()
    store: int = 0
    draws: Sequence[Draw] = ()
    embed: bool = False

    def draw(self, uid: int) -> Draw | None:
        """That of uid, or None."""
        return next((draw for draw in self.draws if draw.uid == uid), None)


@dataclass(frozen=True)
class Cancel:
    """Drop a request wherever it is. Unknown uids are ignored: it may just have finished.

    keep: the entry for what is computed of it so far; 0: none.
    """

    uid: int
    keep: int = 0


@dataclass(frozen=True)
class Cut:
    """Give up a kept prefix but for its first tokens."""

    entry: int
    length: int


@dataclass(frozen=True)
class Evict:
    """Give up kept prefixes."""

    entries: Sequence[int]


@dataclass(frozen=True)
class Store:
    """Begin to write a kept prefix to each rank's disk, under a name: of its tokens those from
    start on; the others are in base, which is there. job names the work from now on."""

    job: int
    entry: int
    name: str
    length: int
    base: str = ""
    start: int = 0


@dataclass(frozen=True)
class Restore:
    """Begin to read the first tokens of a name from each rank's disk. Where all ranks have done so
    (Settle), they are kept as this entry."""

    job: int
    entry: int
    name: str
    length: int


@dataclass(frozen=True)
class Settle:
    """All ranks tell each other what has become of these jobs; what is over everywhere, or has
    failed anywhere, is brought to its end on all."""

    jobs: Sequence[int]


@dataclass(frozen=True)
class Abandon:
    """Stop working on these jobs, and forget what has been done. Unknown ones are ignored."""

    jobs: Sequence[int]


@dataclass(frozen=True)
class Forget:
    """Delete these names from each rank's disk; no job is about them."""

    names: Sequence[str]


@dataclass(frozen=True)
class Settled:
    """What all ranks know of a job then. whole: it is done everywhere; failed: somewhere it could
    not be. kib: of each rank's file. No message."""

    job: int
    whole: bool
    failed: bool
    kib: tuple[int, ...]


@dataclass(frozen=True)
class To:
    """What follows in this bundle is about this model, by its place in the list of all that are
    served. What no To comes before is about the first."""

    model: int


@dataclass(frozen=True)
class Load:
    """Begin to load a model. Sent only while none is being loaded."""

    model: int


@dataclass(frozen=True)
class Unload:
    """Let go of a model, which has nothing to do, and of all that is kept for it."""

    model: int


@dataclass(frozen=True)
class Canary:
    """Prove again that all ranks compute the same. Sent only while nothing runs."""


@dataclass(frozen=True)
class Beat:
    """Nothing to do: an occasion for the ranks to tell of themselves (heartbeat.py)."""


@dataclass(frozen=True)
class Shutdown:
    """Leave the loop, all ranks together."""

    reason: str


OnDisk = Store | Restore | Settle | Abandon | Forget
Message = Submit | Cancel | Cut | Evict | OnDisk | To | Load | Unload | Canary | Beat | Shutdown
_KINDS = {kind.__name__: kind for kind in get_args(Message)}


def encode(messages: Sequence[Message]) -> bytes:
    """Bytes for all ranks."""
    records, prompts = [], []
    for message in messages:
        record = {"kind": type(message).__name__}
        for name, value in vars(message).items():  # asdict would copy every token id
            if name == "prompt":
                prompts.append(np.asarray(value, dtype="<i4"))
                value = len(value)
            elif name == "draws":
                value = [list(vars(draw).values()) for draw in value]
            record[name] = value
        records.append(record)
    text = json.dumps(records, separators=(",", ":")).encode()
    ids = np.concatenate(prompts).tobytes() if prompts else b""
    return struct.pack("<I", len(text)) + text + ids


def decode(data: bytes) -> list[Message]:
    """The messages back. Raises ValueError for bytes that are not ours."""
    try:
        return _decode(data)
    except (struct.error, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a bundle of messages: {error!r}") from error


def _decode(data: bytes) -> list[Message]:
    (length,) = struct.unpack_from("<I", data)
    records = json.loads(data[4 : 4 + length])
    ids = np.frombuffer(data, dtype="<i4", offset=4 + length)
    messages: list[Message] = []
    for record in records:
        kind = _KINDS[record.pop("kind")]
        if "prompt" in record:
            n = record["prompt"]
            if not 0 <= n <= len(ids):
                raise ValueError(f"a prompt of {n} tokens, but {len(ids)} token ids")
            record["prompt"] = ids[:n].tolist()
            ids = ids[n:]
            record["stop_ids"] = tuple(record["stop_ids"])
            record["forks"] = tuple(record["forks"])
            record["reuse"] = tuple(record["reuse"])
            record["keep"] = tuple((tokens, entry) for tokens, entry in record["keep"])
            record["draws"] = tuple(Draw(*draw) for draw in record["draws"])
        for name in {"entries", "jobs", "names"} & record.keys():
            record[name] = tuple(record[name])
        messages.append(kind(**record))
    if len(ids):
        raise ValueError(f"{len(ids)} token ids too many in a message")
    return messages
