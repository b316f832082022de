"""One rank's life once it has joined the others: compare, load, prove, serve in lockstep.

Runs on the main thread of every rank; the only thread that touches MLX. What differs between
rank 0 and a worker is chosen here, once: the dispatcher with its schedulers, and the chooser.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from server.api.models import Model
from server.api.routes import App
from server.api.warm_files import Warm
from server.api.warm_up import WarmUp
from server.lifecycle.watchdog import Watchdog
from server.loop import run_lockstep
from server.observe.fleet import PairSpeed
from server.observe.status import Status
from server.observe.views import Capacity, Formats
from server.protocol.fingerprint import fingerprint
from server.protocol.row_lengths import Precision
from server.protocol.settings import Settings
from server.ready import Maker, Ready
from server.residents import FIRST, Pieces, Resident, Residents
from server.sampling.choosers import ChoosesForAll, Follows
from server.scheduler.disk_entries import DiskEntries, OnEveryDisk
from server.scheduler.disk_index import KIB, DiskIndex, Rank0
from server.scheduler.dispatcher import Dispatcher
from server.scheduler.inbox import Inbox
from server.scheduler.kv_pool import UNKNOWN_CONTEXT, KvShare, Need, RankPart
from server.scheduler.model_drafts import ModelDrafts
from server.scheduler.pacing import FIRST as FIRST_CHUNK
from server.scheduler.pacing import PrefillPace
from server.scheduler.prefix_index import EVERYBODY
from server.scheduler.queue import Line
from server.scheduler.scheduler import Scheduler
from server.scheduler.seen import Seen
from server.scheduler.spectator import Spectator
from server.scheduler.speculation import Speculation
from server.scheduler.step_costs import StepCosts
from server.startup.expected import expect
from server.startup.handshake import Met, introduce, rank_memories, shake_hands
from server.startup.kinds_of_drafts import DRAFTS
from server.text.calls.formats import NONE
from server.text.markup import known_of
from server.text.prompts import Prompts, TokenizerPrompts
from server.text.template_quirks import quirks_of
from server.wire.heartbeat import Heartbeat
from server.wire.link import Link
from server.wire.mailbox import Header, Mailbox

log = logging.getLogger(__name__)


def greet(
    settings: Settings,
    link: Link,
    pairs: tuple[PairSpeed, ...],
    status: Status,
    tell: Callable[[str], None],
) -> Met:
    """The handshake. pairs: what this rank knows of its links. Raises Mismatch, on every rank
    alike."""
    tell("handshake")
    introduction = introduce(settings, link, pairs)
    members = shake_hands(introduction, link)
    status.fleet.join(members)
    here = sum(member.host == members[link.rank].host for member in members)
    return Met("fp_" + fingerprint(introduction["same"]), here, rank_memories(members))


@dataclass(frozen=True)
class Beside:
    """What rank 0 has of a model, made of its files. disk: entries there, where any are kept."""

    prompts: Prompts
    formats: Formats
    disk: DiskEntries | None


class Leads:
    """Rank 0: decides, and answers. ready: the model that is loaded; it may go, so nobody else may
    keep this."""

    def __init__(self, maker: Maker, ready: Ready, line: Line, app: App, status: Status) -> None:
        settings, link = maker.settings, maker.link
        self._maker, self._settings, self._app, self._status = maker, settings, app, status
        self._line, self._prefixes = line, ready.prefixes
        self._on_disk: dict[int, DiskEntries] = {}  # of the models that are loaded
        self._disks: list[DiskEntries] = []  # the same, as they share the disks
        self._arrangement = ready.shard.arrangement
        needs = {FIRST: (ready.need, 0)}
        for number, one in enumerate(expect(settings, link.size, maker.met.memories)):
            parts = tuple(RankPart(share, 0, 0) for share in one.shares)
            needs.setdefault(number, (Need(parts, UNKNOWN_CONTEXT), one.peak))
            app.catalog.note(number, bytes=one.whole)
        self._dispatcher = Dispatcher(
            line,
            status,
            app.catalog,
            maker.pool,
            needs,
            settings.idle_unload,
            app.models.promise,
        )
        heartbeat = Heartbeat(link, status.fleet, status.record)
        self._mailbox = Mailbox(
            heartbeat,
            heartbeat.beating(self._dispatcher.compose),
            self._dispatcher.nap_ms,
            self._dispatcher.chunk,
            self._dispatcher.late,
            maker.bundle_most,
            lambda: self._residents.drafts(),  # which are not there yet
        )
        self._residents = Residents(self._seat(ready, self._make(ready)), self._load, self._let_go)

    def serve(self, watchdog: Watchdog, warm: tuple[Warm, ...]) -> str:
        """Until told to stop; returns the reason. warm: what to compute first."""
        self._watchdog = watchdog
        settings, status = self._settings, self._status
        owner = EVERYBODY if settings.keys_apart else ""
        model = self._app.models[FIRST]
        fits, serve = self._prefixes.fits, self._tell_ready
        warming = WarmUp(warm, model, self._line, status.phases.stage, owner, fits).run
        if warm and self._prefixes.room:
            before = settings.prefix_warm_when == "before"
            steps = [warming, serve] if before else [serve, warming]
            threading.Thread(target=_each, args=steps, name="warm", daemon=True).start()
        else:
            if warm:
                log.warning(
                    "PREFIX_WARM: nothing is computed: this model's prefixes cannot be kept"
                )
            serve()
        return run_lockstep(
            self._residents,
            self._mailbox,
            self._dispatcher,
            watchdog.progress,
            self._maker.times.observe,
        )

    def _load(self, number: int) -> Pieces:
        catalog = self._app.catalog

        def tell(stage: str) -> None:
            self._watchdog.progress(stage)
            catalog.note(number, why=stage)

        def on_loaded(ranks: tuple) -> None:
            done, total = sum(one.done for one in ranks), sum(one.total for one in ranks)
            catalog.note(number, share=done / max(1, total))

        ready = yield from self._maker.another(
            number, tell, lambda: self._residents.decoding, on_loaded
        )
        beside: list[Beside] = []
        self._maker.agree(ready, lambda: beside.append(self._make(ready)))
        return self._seat(ready, beside[0])

    def _make(self, ready: Ready) -> Beside:
        """What depends on the model's files, and may fail at them."""
        shard, settings = ready.shard, self._settings
        prompts = self._app.models.prompts(ready.number, ready.system)
        if prompts is None:
            prompts = TokenizerPrompts(
                shard.tokenizer,
                shard.vocab,
                template_kwargs=settings.chat_template_kwargs,
                find_places=ready.prefixes.wants_places,
            )
            threading.Thread(target=prompts.warm, name="grammars", daemon=True).start()
        precision = self._maker.pool.budget(ready.number).precision
        disk = _load_entries(ready, settings, self._maker.link.size, precision)
        return Beside(prompts, tell_formats(shard.tokenizer), disk)

    def _seat(self, ready: Ready, beside: Beside) -> Resident:
        """All that rank 0 has of a model beside its shard."""
        shard, settings, number = ready.shard, self._settings, ready.number
        eos = tuple(sorted(shard.tokenizer.eos_token_ids))
        log.info("drafts: %s", ready.drafts)
        costs = StepCosts(ready.curve) if ready.curve else None
        drafter = _ask_draft_model(ready, settings)
        speculation = Speculation(costs, ready.drafts == DRAFTS[0], drafter)

        def schedule(inbox: Inbox, seen: Seen, share: KvShare) -> Scheduler:
            return Scheduler(
                inbox,
                seen,
                shard.vocab,
                share,
                PrefillPace(settings.prefill_pause_ms / 1000, settings.prefill_step),
                ready.prefixes,
                eos,
                settings.canary_interval,
                _index_disk(ready, beside.disk, share),
                speculation,
            )

        if beside.disk is not None:
            beside.disk.join(self._disks)
            self._on_disk[number] = beside.disk
        self._dispatcher.learn(number, ready.need)
        scheduler = self._dispatcher.seat(number, shard.context, schedule)
        budget = self._maker.pool.budget(number)
        context = min(shard.context, budget.reach)
        model = Model(beside.prompts, context, shard.sampling, ready.system, shard.embeddings)
        self._app.model_loaded(model, number)
        ways = shard.last.ways
        self._app.catalog.note(
            number,
            parallel=shard.arrangement.kind,
            batching=str(ways),
            kv_precision=ways.precision,
            drafts=ready.drafts,
            token_bytes=ready.row.token,
        )
        if number == FIRST:
            self._status.publish(beside.formats)
            self._status.publish(
                Capacity(
                    context,
                    budget.capacity,
                    ready.row.token,
                    budget.row_cost,
                    split=shard.arrangement.kind,
                    batching=str(ways),
                    kv_precision=ways.precision,
                    drafts=ready.drafts,
                )
            )
        self._mailbox.allow(self._maker.bundle_most)
        chooser = ChoosesForAll(
            scheduler.row, self._mailbox.header, scheduler.failed, speculation.draft
        )
        engine = ready.engine(chooser)
        return _resident(engine, scheduler, ready)

    def _let_go(self, number: int) -> None:
        if (entries := self._on_disk.pop(number, None)) is not None:
            entries.leave()
        self._maker.let_go(number)
        self._dispatcher.unloaded()
        self._mailbox.allow(self._maker.bundle_most)

    def _tell_ready(self) -> None:
        self._status.phases.serve()
        start = self._status.start
        self._status.note(f"ready after {time.time() - start.at:.0f} s")
        log.info(
            "ready: %s on %d ranks (%s), http port %d",
            start.model_id,
            self._maker.link.size,
            self._arrangement,
            self._settings.http_port,
        )


class Worker:
    """Any other rank: computes. ready: as Leads has it."""

    def __init__(self, maker: Maker, ready: Ready, status: Status) -> None:
        self._maker, self._status, self._spectator = maker, status, Spectator()
        heartbeat = Heartbeat(maker.link, status.fleet, status.record)
        self._mailbox = Mailbox(
            heartbeat,
            self._spectator.compose,
            self._spectator.nap_ms,
            self._spectator.chunk,
            self._spectator.late,
            maker.bundle_most,
        )
        self._residents = Residents(self._seat(ready), self._load, self._let_go)

    def serve(self, watchdog: Watchdog) -> str:
        """Until told to stop; returns the reason."""
        self._watchdog = watchdog
        self._status.phases.serve()
        log.info("ready: rank %d of %d", self._maker.link.rank, self._maker.link.size)
        return run_lockstep(
            self._residents,
            self._mailbox,
            self._spectator,
            watchdog.progress,
            self._maker.times.observe,
        )

    def _load(self, number: int) -> Pieces:
        ready = yield from self._maker.another(
            number, self._watchdog.progress, lambda: self._residents.decoding
        )
        self._maker.agree(ready, lambda: None)  # what rank 0 makes beside it
        self._mailbox.allow(self._maker.bundle_most)
        return self._seat(ready)

    def _seat(self, ready: Ready) -> Resident:
        return _resident(ready.engine(Follows()), self._spectator, ready)

    def _let_go(self, number: int) -> None:
        self._maker.let_go(number)
        self._mailbox.allow(self._maker.bundle_most)


def _resident(engine: Any, scheduler: Scheduler | Spectator, ready: Ready) -> Resident:
    engine.steer(Header(chunk=FIRST_CHUNK))  # others may decode when its first prompt comes
    return Resident(engine, scheduler, ready.canary, ready.opened.disk)


def _ask_draft_model(ready: Ready, settings: Settings) -> ModelDrafts:
    """What asks it, if there is one; told in the log."""
    model = ready.draft_model
    if model is not None:
        log.info(
            "draft model: %s, %.1f GB and as much as %.1f GB of caches; %.1f ms a token, "
            "%.2f ms for one that it reads",
            settings.draft_model_dir,
            model.weights / 1e9,
            model.room / 1e9,
            1e3 * model.draft_s,
            1e3 * model.read_s,
        )
    pace = PrefillPace(settings.prefill_pause_ms / 1000, settings.prefill_step)
    return ModelDrafts(model, pace)


def _load_entries(
    ready: Ready, settings: Settings, ranks: int, precision: Precision
) -> DiskEntries | None:
    """What all ranks have on their disks; None where nothing is kept there."""
    opened = ready.opened
    if opened.disk is None:
        return None
    limit = int(settings.prefix_disk_gb * 1e9) // KIB
    entries = DiskEntries(limit, ranks, ready.prefixes.cuttable, precision)
    entries.load(
        OnEveryDisk(*entry, opened.found[entry[0]].label, opened.found[entry[0]].used)
        for entry in opened.entries
    )
    opened.found.clear()  # the labels are many tokens
    return entries


def _index_disk(ready: Ready, entries: DiskEntries | None, share: KvShare) -> DiskIndex:
    """Rank 0's, of what all ranks have on their disks."""
    opened = ready.opened
    if entries is None:
        return DiskIndex()
    return DiskIndex(
        entries,
        ready.memories,
        Rank0(opened.disk.is_over, opened.disk.touch, opened.labels),
        share.row_cost,
        precision=share.precision,
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
