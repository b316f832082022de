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
from functools import partial
from typing import Any

from server.api.model_routes import Model
from server.api.routes import App
from server.api.warm_files import Warm
from server.api.warm_up import WarmUp
from server.engine.engine import Engine
from server.engine.kv_memory import RowBytes, kv_memory, row_bytes
from server.engine.prefix_store import REUSE_CUT, reuse_kind
from server.engine.rows_apart import Ways
from server.lifecycle.turn_times import TurnTimes
from server.lifecycle.watchdog import Watchdog
from server.loop import run_lockstep
from server.observe.status import Status
from server.observe.views import Capacity, Formats
from server.protocol.fingerprint import fingerprint
from server.protocol.settings import Settings, bits_of
from server.sampling.choosers import Chooser, ChoosesForAll, Follows
from server.scheduler.disk_entries import DiskEntries, OnEveryDisk
from server.scheduler.disk_index import KIB, DiskIndex, Rank0
from server.scheduler.embeddings import IN_FLIGHT
from server.scheduler.kv_budget import KvBudget, RankMemory, shared_budget
from server.scheduler.pacing import PrefillPace
from server.scheduler.prefix_index import EVERYBODY, PrefixIndex
from server.scheduler.queue import Line
from server.scheduler.scheduler import Scheduler
from server.scheduler.spectator import Spectator
from server.scheduler.speculation import Speculation
from server.scheduler.step_costs import StepCosts
from server.startup.canary import check_link
from server.startup.handshake import introduce, rank_memories, shake_hands
from server.startup.loading import Shard, Unloadable, load_shard
from server.startup.prefix_disk import Opened, open_disk
from server.startup.proof import Proof
from server.startup.step_curve import measure_curve
from server.text.calls.formats import NONE
from server.text.markup import known_of
from server.text.prompts import TokenizerPrompts
from server.text.template_quirks import quirks_of
from server.wire.heartbeat import Heartbeat
from server.wire.link import Link
from server.wire.mailbox import Mailbox, bundle_bytes_most

DRAFTS = ("of any row", "of a row that runs alone")  # for which steps there may be some
LINK_CHECK_VALUES_MOST = 2**24  # 64 MB of int32

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ready:
    """A rank that can serve. engine makes an empty one over this rank's shard, canary proves that
    all ranks compute the same; row is what one takes here; memories: what each rank has; opened:
    this rank's disk for prefixes; system names model and versions; prefixes are rank 0's to use;
    drafts: for which steps there may be some, or why for none; curve: seconds of a forward pass by
    tokens, where there may be."""

    settings: Settings
    link: Link
    shard: Shard
    budget: KvBudget
    row: RowBytes
    memories: list[RankMemory]
    prefixes: PrefixIndex
    opened: Opened
    system: str
    times: TurnTimes
    drafts: str
    curve: list[tuple[int, float]]
    engine: Callable[[Chooser], Engine]
    canary: Callable[[Callable[[str], None]], None]

    @property
    def bundle_most(self) -> int:
        """Bytes of rank 0's longest bundle of messages."""
        rows = self.settings.max_batch + IN_FLIGHT
        return bundle_bytes_most(rows, self.budget.capacity)


@dataclass(frozen=True)
class Met:
    """What the handshake tells: the name of what all have the same, how many ranks this machine
    has, and the bytes that each rank may use."""

    system: str
    ranks_here: int
    memories: list[int | None]


def greet(settings: Settings, link: Link, status: Status, tell: Callable[[str], None]) -> Met:
    """The handshake. Raises Mismatch, on every rank alike."""
    tell("handshake")
    introduction = introduce(settings, link)
    members = shake_hands(introduction, link)
    status.fleet.join(members)
    here = sum(member.host == members[link.rank].host for member in members)
    return Met("fp_" + fingerprint(introduction["same"]), here, rank_memories(members))


def prepare(
    settings: Settings, link: Link, met: Met, status: Status, tell: Callable[[str], None]
) -> Ready:
    """Load, and proof. tell is called with what comes next: the watchdog's food.

    Raises Mismatch or Unloadable, on every rank alike.
    """
    tell(f"loading on {link.size} ranks")
    shard = load_shard(
        settings.model_dir,
        settings.parallel,
        link,
        settings.context_max,
        tell,
        status.fleet.load,
        settings.trust_remote_code,
        met.memories,
        bits_of(settings.kv_bits),
        settings.kv_bits_from,
    )
    if link.size > 1:
        status.note(f"the model is split: {shard.arrangement}")
    if shard.last.ways.slower:
        status.note(f"requests of this model are computed {shard.last.ways}: see the log")
    if shard.last.ways.unfit:
        status.note(f"keys and values are whole, KV_BITS is not used: {shard.last.ways.unfit}")
    tell("waiting for all ranks to load")
    link.share_ints([0])
    tell("checking the link")
    rows = min(8, settings.max_batch)
    longest = min(rows * settings.prefill_step * shard.hidden, LINK_CHECK_VALUES_MOST)
    check_link(link, longest)
    tell("measuring the KV cache")
    budget, row, prefixes, memories = _share_memory(settings, link, shard, met.ranks_here)
    opened = _open_disk(settings, link, shard, prefixes, status, tell)
    times = TurnTimes(settings.stall_timeout)
    engine = partial(_make_engine, settings, link, shard)
    proof = Proof(engine, settings, link, shard, longest, status, times.observe)
    tell("canary")
    proof.run(tell)
    drafts = may_draft(settings.speculate, shard.last.ways, prefixes.cuttable)
    curve = measure_curve(shard.model, link, tell) if drafts in DRAFTS else []
    return Ready(
        settings, link, shard, budget, row, memories, prefixes, opened, met.system, times,
        drafts, curve, engine, proof.run,
    )  # fmt: skip


def may_draft(speculate: str, ways: Ways, cuttable: bool) -> str:
    """For which steps there may be drafts: one of DRAFTS, or why for none. cuttable: the model's
    caches can be cut, on all ranks."""
    if speculate == "off":
        return "off"
    if not (cuttable and ways.apart):
        return "none: this model's caches cannot be cut"
    return DRAFTS[not (ways.rows_apart or ways.bear_widths)]


def _open_disk(
    settings: Settings,
    link: Link,
    shard: Shard,
    prefixes: PrefixIndex,
    status: Status,
    tell: Callable[[str], None],
) -> Opened:
    """Where prefixes are kept over a restart."""
    if not settings.prefix_disk_gb:
        return Opened()
    opened = Opened(problem="none are kept in memory, for this model or PREFIX_CACHE_PERCENT 0")
    if prefixes.room:
        tell("opening the prefixes on disk")
        opened = open_disk(settings, link, shard, tell)
    if opened.problem and not link.rank:
        log.warning("no prefixes on disk: %s", opened.problem)
        status.note(f"no prefixes on disk: {opened.problem}")
    return opened


def _make_engine(settings: Settings, link: Link, shard: Shard, chooser: Chooser) -> Engine:
    return Engine(
        shard.last,
        link,
        chooser,
        max_batch=settings.max_batch,
        prefill_step=settings.prefill_step,
        eos=sorted(shard.tokenizer.eos_token_ids),
    )


def _share_memory(
    settings: Settings, link: Link, shard: Shard, ranks_here: int
) -> tuple[KvBudget, RowBytes, PrefixIndex, list[RankMemory]]:
    """What all ranks have room for, and what of it kept prefixes may take: by the smallest rank."""
    ways = shard.last.ways
    row = row_bytes(shard.model, ways.quantised)
    memory = kv_memory(settings.kv_budget_gb, ranks_here)
    mine = [reuse_kind(shard.model, ways), memory, row.fixed, row.token, row.whole]
    ranks = [json.loads(said) for said in link.gather_bytes(json.dumps(mine).encode())]
    start = ways.quantised.start if ways.quantised else 0
    budget = shared_budget((RankMemory(*numbers) for _, *numbers in ranks), ways.apart, start)
    reuse = min(kind for kind, *_ in ranks)
    log.info(
        "KV memory: room for %d tokens, %d bytes each here, and %d bytes for each request; "
        "keys and values: %s",
        budget.capacity,
        row.token,
        row.fixed,
        ways.precision,
    )
    if not budget.reach:
        raise Unloadable(
            f"no memory left for the KV cache: the smallest rank has room for {budget.capacity} "
            "tokens; set KV_BUDGET_GB, or use a smaller model or more ranks"
        )
    kept = budget.capacity * settings.prefix_cache_percent // 100
    prefixes = PrefixIndex(
        kept if reuse else 0, reuse == REUSE_CUT, budget.row_cost, budget.precision
    )
    return budget, row, prefixes, [RankMemory(*numbers) for _, *numbers in ranks]


def lead(
    ready: Ready,
    line: Line,
    app: App,
    status: Status,
    watchdog: Watchdog,
    warm: tuple[Warm, ...] = (),
) -> str:
    """Rank 0: serves until told to stop; returns the reason. warm: what to compute first."""
    shard, settings, budget = ready.shard, ready.settings, ready.budget
    log.info("drafts: %s", ready.drafts)
    costs = StepCosts(ready.curve) if ready.curve else None
    speculation = Speculation(costs, several=ready.drafts == DRAFTS[0])
    scheduler = Scheduler(
        line,
        status,
        shard.vocab,
        budget,
        PrefillPace(settings.prefill_pause_ms / 1000, settings.prefill_step),
        ready.prefixes,
        tuple(sorted(shard.tokenizer.eos_token_ids)),
        settings.canary_interval,
        _index_disk(ready),
        speculation,
    )
    heartbeat = Heartbeat(ready.link, status.fleet, status.record)
    compose = heartbeat.beating(scheduler.compose)
    mailbox = Mailbox(
        heartbeat, compose, scheduler.nap_ms, scheduler.chunk, scheduler.late, ready.bundle_most,
        scheduler.drafts,
    )  # fmt: skip
    chooser = ChoosesForAll(scheduler.row, mailbox.header, scheduler.failed, speculation.draft)
    engine = ready.engine(chooser)
    context = min(shard.context, budget.reach)
    prompts = TokenizerPrompts(
        shard.tokenizer,
        shard.vocab,
        template_kwargs=settings.chat_template_kwargs,
        find_places=ready.prefixes.wants_places,
    )
    status.publish(tell_formats(shard.tokenizer))
    threading.Thread(target=prompts.warm, name="grammars", daemon=True).start()
    model = Model(prompts, context, shard.sampling, ready.system, shard.embeddings)
    app.model_loaded(model)
    status.publish(
        Capacity(
            context,
            budget.capacity,
            ready.row.token,
            budget.row_cost,
            split=shard.arrangement.kind,
            batching=str(shard.last.ways),
            kv_precision=shard.last.ways.precision,
            drafts=ready.drafts,
        )
    )
    owner = EVERYBODY if settings.keys_apart else ""
    warming = WarmUp(warm, model, line, status.phases.stage, owner, ready.prefixes.fits).run
    serve = partial(_serve, ready, status)
    if warm and ready.prefixes.room:
        before = settings.prefix_warm_when == "before"
        steps = [warming, serve] if before else [serve, warming]
        threading.Thread(target=_each, args=steps, name="warm", daemon=True).start()
    else:
        if warm:
            log.warning("PREFIX_WARM: nothing is computed: this model's prefixes cannot be kept")
        serve()
    return run_lockstep(
        engine, mailbox, scheduler, ready.canary, watchdog.progress, ready.times.observe,
        ready.opened.disk,
    )  # fmt: skip


def _serve(ready: Ready, status: Status) -> None:
    status.phases.serve()
    start = status.start
    status.note(f"ready after {time.time() - start.at:.0f} s")
    log.info(
        "ready: %s on %d ranks (%s), http port %d",
        start.model_id,
        ready.link.size,
        ready.shard.arrangement,
        ready.settings.http_port,
    )


def _index_disk(ready: Ready) -> DiskIndex:
    """Rank 0's, of what all ranks have on their disks."""
    opened = ready.opened
    if opened.disk is None:
        return DiskIndex()
    limit = int(ready.settings.prefix_disk_gb * 1e9) // KIB
    entries = DiskEntries(limit, ready.link.size, ready.prefixes.cuttable, ready.budget.precision)
    entries.load(
        OnEveryDisk(*entry, opened.found[entry[0]].label, opened.found[entry[0]].used)
        for entry in opened.entries
    )
    opened.found.clear()  # the labels are many tokens
    return DiskIndex(
        entries,
        ready.memories,
        Rank0(opened.disk.is_over, opened.disk.touch, opened.labels),
        ready.budget.row_cost,
        precision=ready.budget.precision,
    )


def _each(*steps: Callable[[], None]) -> None:
    """One after another, whatever becomes of the one before."""
    for step in steps:
        try:
            step()
        except Exception:
            log.exception("a step of the start has failed")


def tell_formats(tokenizer: Any) -> Formats:
    """What is known of how the model writes; told in the log."""
    known, quirks = known_of(tokenizer), quirks_of(tokenizer)
    if known.calls == NONE:
        log.warning(
            "tool calls: no format is known for this model: what it writes as a call reaches "
            "clients as text. scripts/read_answer.py shows what becomes of an answer"
        )
    else:
        log.info("tool calls: format %s, known by its %s", known.calls, known.calls_by)
    log.info("thinking: %s", known.thinking)
    for quirk in quirks:
        log.info("chat template: %s", quirk)
    return Formats(known.calls, known.calls_by, known.thinking, quirks)


def follow(ready: Ready, status: Status, watchdog: Watchdog) -> str:
    """A worker: computes until told to stop; returns the reason."""
    spectator = Spectator()
    heartbeat = Heartbeat(ready.link, status.fleet, status.record)
    mailbox = Mailbox(
        heartbeat,
        spectator.compose,
        spectator.nap_ms,
        spectator.chunk,
        spectator.late,
        ready.bundle_most,
    )
    engine = ready.engine(Follows())
    status.phases.serve()
    log.info("ready: rank %d of %d", ready.link.rank, ready.link.size)
    return run_lockstep(
        engine, mailbox, spectator, ready.canary, watchdog.progress, ready.times.observe,
        ready.opened.disk,
    )  # fmt: skip
