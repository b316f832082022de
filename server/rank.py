"""One rank's life once it has joined the others: compare, load, prove, serve in lockstep.

Runs on the main thread of every rank; the only thread that touches MLX. What differs between
rank 0 and a worker is chosen here, once: the scheduler and the chooser.
"""

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from server.api.model_routes import Model
from server.api.routes import App
from server.engine.engine import Engine
from server.engine.prefix_store import REUSE_CUT, reuse_kind
from server.lifecycle.shutdown import Drainer, Worker
from server.lifecycle.turn_times import TurnTimes
from server.lifecycle.watchdog import Watchdog
from server.loop import run_lockstep
from server.observe.fleet import Loaded, Member
from server.observe.status import Status
from server.protocol.fingerprint import fingerprint
from server.protocol.settings import Settings
from server.sampling.choosers import Chooser, ChoosesForAll, Follows
from server.scheduler.kv_budget import KvBudget, measure_capacity
from server.scheduler.pacing import PrefillPace
from server.scheduler.prefix_index import PrefixIndex
from server.scheduler.queue import Line
from server.scheduler.scheduler import Scheduler, Spectator
from server.startup.canary import check_link, check_model
from server.startup.handshake import Mismatch, introduce, shake_hands
from server.startup.loading import Shard, Unloadable, load_shard
from server.text.prompts import TokenizerPrompts
from server.wire.heartbeat import Heartbeat
from server.wire.link import Link
from server.wire.link_speed import measure_link
from server.wire.mailbox import Mailbox, bundle_bytes_most
from server.wire.seal import Garbled

SLOW_CANARY = 3  # times what is usual
CANARY_BEYOND_CHUNK = 24  # tokens of the canary's prompt after its first full chunk
LINK_CHECK_VALUES_MOST = 2**24  # 64 MB of int32

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ready:
    """A rank that can serve. members are all ranks; system names model and versions."""

    settings: Settings
    link: Link
    shard: Shard
    members: tuple[Member, ...]
    budget: KvBudget
    prefixes: PrefixIndex  # rank 0's is used
    system: str
    status: Status
    longest: int  # numbers in the longest message
    times: TurnTimes

    def engine(self, chooser: Chooser) -> Engine:
        """An empty engine over this rank's shard."""
        return Engine(
            self.shard.last,
            self.link,
            chooser,
            max_batch=self.settings.max_batch,
            prefill_step=self.settings.prefill_step,
            eos=sorted(self.shard.tokenizer.eos_token_ids),
        )

    @property
    def bundle_most(self) -> int:
        """Bytes of rank 0's longest bundle of messages."""
        return bundle_bytes_most(self.settings.max_batch, self.budget.capacity)

    def canary(self, progress: Callable[[str], None]) -> None:
        """Proves that all ranks still compute the same. Every rank calls it, with empty engines."""
        length = min(self.settings.prefill_step + CANARY_BEYOND_CHUNK, self.shard.context // 2)
        prompt = [i * 7919 % self.shard.vocab for i in range(1, length + 1)]
        began = time.monotonic()
        status = self.status
        try:
            tokens = check_model(self.engine, self.link, prompt, progress, self.times.observe)
        except Mismatch as mismatch:
            if status.canary_seconds or self.settings.restarts:
                # The same ranks have agreed before, on the same prompt.
                raise Garbled("canary", str(mismatch)) from None
            raise
        seconds = time.monotonic() - began
        log.info("canary: %d ranks agree on %s after %d tokens", self.link.size, tokens, length)
        usual = status.canary_seconds or seconds
        if seconds > SLOW_CANARY * usual + 1:
            status.note(f"slow canary: {seconds:.1f} s, where {usual:.1f} s is usual")
        status.canary_seconds = min(usual, seconds)
        progress("measuring the link")
        status.link = measure_link(self.link, self.longest, self.shard.sums)
        status.fleet.hear()


def prepare(settings: Settings, link: Link, status: Status, tell: Callable[[str], None]) -> Ready:
    """Handshake, load, and proof. tell is called with what comes next: the watchdog's food.

    Raises Mismatch or Unloadable, on every rank alike.
    """
    tell("handshake")
    introduction = introduce(settings, link, status.run_id)
    members = status.fleet.members = shake_hands(introduction, link)
    status.fleet.hear()
    tell(f"loading on {link.size} ranks")

    def on_loaded(loaded: tuple[Loaded, ...]) -> None:
        status.fleet.loaded = loaded
        status.fleet.hear()

    shard = load_shard(
        settings.model_dir, settings.parallel, link, settings.context_max, tell, on_loaded
    )
    tell("waiting for all ranks to load")
    link.share_ints([0])
    tell("checking the link")
    rows = min(8, settings.max_batch)
    longest = min(rows * settings.prefill_step * shard.hidden, LINK_CHECK_VALUES_MOST)
    check_link(link, longest)
    tell("measuring the KV cache")
    ranks_here = sum(m.host == members[link.rank].host for m in members)
    memory = measure_capacity(shard.model, settings.kv_budget_gb, ranks_here)
    status.kv_token_bytes = memory.token_bytes
    mine = [memory.capacity, reuse_kind(shard.model), -memory.row_cost]
    capacity, reuse, row_cost = map(
        min, zip(*map(json.loads, link.gather_bytes(json.dumps(mine).encode())), strict=True)
    )
    budget, kept = KvBudget(capacity), capacity * settings.prefix_cache_percent // 100
    log.info("KV memory: room for %d tokens, %d bytes each here", capacity, memory.token_bytes)
    if not budget.reach:
        raise Unloadable(
            f"no memory left for the KV cache: the smallest rank has room for {budget.capacity} "
            "tokens; set KV_BUDGET_GB, or use a smaller model or more ranks"
        )
    system = "fp_" + fingerprint(introduction["same"])
    prefixes = PrefixIndex(kept if reuse else 0, reuse == REUSE_CUT, -row_cost)
    times = TurnTimes(settings.stall_timeout)
    ready = Ready(settings, link, shard, members, budget, prefixes, system, status, longest, times)
    tell("canary")
    ready.canary(tell)
    return ready


def lead(
    ready: Ready,
    line: Line,
    app: App,
    status: Status,
    leaver: Drainer,
    watchdog: Watchdog,
) -> str:
    """Rank 0: serves until told to stop; returns the reason."""
    shard, settings = ready.shard, ready.settings
    scheduler = Scheduler(
        line,
        status,
        shard.vocab,
        ready.budget,
        PrefillPace(settings.prefill_pause_ms / 1000, settings.prefill_step),
        ready.prefixes,
        tuple(sorted(shard.tokenizer.eos_token_ids)),
        settings.canary_interval,
    )
    heartbeat = Heartbeat(ready.link, status.fleet, status.record)
    compose = heartbeat.beating(scheduler.compose)
    mailbox = Mailbox(
        heartbeat, compose, scheduler.nap_ms, scheduler.chunk, scheduler.late, ready.bundle_most
    )
    engine = ready.engine(ChoosesForAll(scheduler.row, mailbox.header, scheduler.failed))
    context = min(shard.context, ready.budget.reach)
    prompts = TokenizerPrompts(shard.tokenizer, shard.vocab)
    threading.Thread(target=prompts.warm, name="grammars", daemon=True).start()
    app.with_model.model = Model(prompts, context, shard.sampling, ready.system)
    status.context = context
    status.kv_capacity = ready.budget.capacity
    leaver.stop = scheduler.stop
    status.phase, status.detail = "ok", "serving"
    status.note(f"ready after {time.time() - status.started:.0f} s")
    log.info(
        "ready: %s on %d ranks, http port %d", status.model_id, ready.link.size, settings.http_port
    )
    return run_lockstep(
        engine, mailbox, scheduler, ready.canary, watchdog.progress, ready.times.observe
    )


def follow(ready: Ready, leaver: Worker, watchdog: Watchdog) -> str:
    """A worker: computes until told to stop; returns the reason."""
    spectator = Spectator()
    heartbeat = Heartbeat(ready.link, ready.status.fleet, ready.status.record)
    mailbox = Mailbox(
        heartbeat,
        spectator.compose,
        spectator.nap_ms,
        spectator.chunk,
        spectator.late,
        ready.bundle_most,
    )
    leaver.serving = True
    log.info("ready: rank %d of %d", ready.link.rank, ready.link.size)
    return run_lockstep(
        ready.engine(Follows()),
        mailbox,
        spectator,
        ready.canary,
        watchdog.progress,
        ready.times.observe,
    )
