"""What rank 0 shows of itself: immutable views, each swapped whole by the one that writes it.

Any thread may hold a view and read it without a lock: it never changes. Who writes which stands
beside it, and tests/observe/test_status.py holds it.
"""

import time
from dataclasses import dataclass, field

from server.observe.fleet import Ranks


@dataclass(frozen=True)
class Start:
    """How this process was started. at: by the wall clock; since: by the one that only goes on.
    Written by the Status, once."""

    model_id: str
    run_id: str
    restarts: int = 0
    last_failure: str = ""
    at: float = field(default_factory=time.time)
    since: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class State:
    """phase: "loading", then "ok", then "draining"; "failed" or "restarting" just before the
    process ends. detail: what it does in it. Written by Phases."""

    phase: str
    detail: str


@dataclass(frozen=True)
class Trouble:
    """What is wrong beside that, and does not keep it from serving. Written by main.py, for the
    pid file."""

    text: str = ""


@dataclass(frozen=True)
class Group:
    """What carries the collectives. Written by main.py, before it joins."""

    backend: str = "none"


@dataclass(frozen=True)
class Capacity:
    """context: tokens of prompt and answer; 0 until the model is loaded. kv_tokens: that the ranks
    have room for; token_bytes: that one costs rank 0; row_tokens: what a request costs beside
    its own; split: the kind of arrangement over the ranks; batching: how rows are computed;
    kv_precision: what keys and values are kept in, and why where KV_BITS is not used; drafts: for
    which steps there may be some. Written by rank.py, before it serves."""

    context: int = 0
    kv_tokens: int = 0
    token_bytes: int = 0
    row_tokens: int = 0
    split: str = ""
    batching: str = ""
    kv_precision: str = ""
    drafts: str = ""


@dataclass(frozen=True)
class Formats:
    """What is known of how the model writes. calls: the name of its tool calls' format, known by
    its template, its vocabulary or its type; thinking: the markers; "none" without any. template:
    what the chat template leaves out, in words. Written by rank.py, before it serves."""

    calls: str
    calls_by: str
    thinking: str
    template: tuple[str, ...]


@dataclass(frozen=True)
class LinkSpeed:
    """latency: seconds of a sum of one number. bandwidth: bytes a second of a large one, the size
    of its message over its time, whatever the backend sends for it. step: seconds of the sums of
    a decode step of one row; None where a step does not consist of sums (pipelines). Written by
    startup/proof.py, with each canary."""

    latency: float
    bandwidth: float
    step: float | None


@dataclass(frozen=True)
class DiskUse:
    """Prefixes kept on disk: entries, and bytes on the fullest rank's disk, now and at most. So
    far: tokens of prompts that were read back, bytes on the fullest disk that were read, written
    and evicted; jobs that failed on some rank."""

    entries: int = 0
    bytes: int = 0
    limit_bytes: int = 0
    hit_tokens: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    evicted_bytes: int = 0
    failures: int = 0


@dataclass(frozen=True)
class PrefixUse:
    """Kept prefixes and their tokens now; tokens of prompts so far that need not be computed, and
    that had to be; tokens that were evicted. disk: what is kept there, too."""

    entries: int = 0
    tokens: int = 0
    hit_tokens: int = 0
    miss_tokens: int = 0
    evicted_tokens: int = 0
    disk: DiskUse = DiskUse()


@dataclass(frozen=True)
class DraftUse:
    """So far: drafts, those that were right, and the steps that had any."""

    drafted: int = 0
    right: int = 0
    steps: int = 0


@dataclass(frozen=True)
class Load:
    """Choices that run, that wait, and those of the waiting that had begun; tokens of KV memory in
    use; slot_free_s: seconds until a slot is likely to be free. Written by the scheduler, twice a
    turn."""

    running: int = 0
    waiting: int = 0
    paused: int = 0
    kv_used: int = 0
    prefixes: PrefixUse = PrefixUse()
    drafts: DraftUse = DraftUse()
    slot_free_s: float = 5.0


@dataclass(frozen=True)
class View:
    """All of them, as they stand together. link is None for one rank, and until it is measured;
    formats until the model is loaded."""

    start: Start
    state: State
    trouble: Trouble
    group: Group
    ranks: Ranks
    capacity: Capacity
    load: Load
    link: LinkSpeed | None
    formats: Formats | None

    @property
    def loading(self) -> bool:
        return self.state.phase == "loading"

    @property
    def detail(self) -> str:
        """What rank 0 does, and what else is wrong there."""
        text = self.trouble.text
        return f"{self.state.detail}; {text}" if text else self.state.detail
