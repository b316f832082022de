"""What rank 0 shows of its load. The scheduler's alone, on rank 0's main thread."""

from collections.abc import Iterable

from server.observe.views import DraftUse, Load, PrefixUse
from server.scheduler.disk_index import DiskIndex
from server.scheduler.pacing import PrefillPace
from server.scheduler.prefix_index import PrefixIndex
from server.scheduler.running import Running


def load_of(
    running: int,
    held: int,
    paused: int,
    kv_used: int,
    prefixes: PrefixUse,
    drafts: DraftUse,
    slot_free_s: float,
) -> Load:
    """One model's. held: tickets that wait or run."""
    waiting = max(0, held - running)
    return Load(running, waiting, paused, kv_used, prefixes, drafts, slot_free_s)


def prefix_use(prefixes: PrefixIndex, disk: DiskIndex) -> PrefixUse:
    """What is kept of prompts, and what it has saved."""
    return PrefixUse(
        entries=len(prefixes),
        tokens=prefixes.used,
        hit_tokens=prefixes.hit_tokens,
        miss_tokens=prefixes.miss_tokens,
        evicted_tokens=prefixes.evicted_tokens,
        disk=disk.look(),
    )


def slot_free_s(running: Iterable[Running], answer_tokens: float, pace: PrefillPace) -> float:
    """Seconds until a slot is likely to be free. answer_tokens: of an answer, on average."""
    left = [
        max(1.0, min(one.ticket.max_tokens, answer_tokens) - len(one.generated)) for one in running
    ]
    return min(left, default=1.0) * pace.step_s
