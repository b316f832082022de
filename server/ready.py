"""A model made ready on this rank: loaded, measured, proven. At the start, and beside others.

On the main thread of every rank. What comes of it is the same on all of them, or none of them has
it: at the start a failure ends the ranks; later all let go of the model, and go on.
"""

import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from functools import partial

from server.disk.folder import Lock
from server.draft_beside import DraftBeside
from server.engine.draft_model import DraftModel
from server.engine.engine import Engine
from server.engine.kv_memory import SPARE_SHARE, RowBytes, kv_memory
from server.engine.prefix_store import REUSE_CUT
from server.lifecycle.turn_times import TurnTimes
from server.measured import Measured, measure, need_of
from server.observe.fleet import Loaded
from server.observe.status import Status
from server.protocol.failures import is_shared
from server.protocol.fingerprint import fingerprint, fingerprint_files
from server.protocol.model_list import ServedModel
from server.protocol.settings import Settings, bits_of
from server.residents import FIRST, NotLoaded, give_back
from server.sampling.choosers import Chooser
from server.scheduler.embeddings import IN_FLIGHT
from server.scheduler.kv_budget import KvBudget, RankMemory
from server.scheduler.kv_pool import KvPool, Need, RankRoom
from server.scheduler.pacing import PrefillPace
from server.scheduler.prefix_index import PrefixIndex
from server.startup.agreement import agree
from server.startup.canary import Others, check_link
from server.startup.handshake import Met, Mismatch, compare_files
from server.startup.kinds_of_drafts import DRAFTS, may_draft
from server.startup.loading import Shard, Unloadable, load_pieces, load_shard
from server.startup.piece_pace import AllAtOnce, Considerate, Failed, Pace, at_once
from server.startup.prefix_disk import Opened, open_disk
from server.startup.proof import Proof
from server.startup.step_curve import MOST_S, measure_curve
from server.wire.link import Link
from server.wire.mailbox import bundle_bytes_most

LINK_CHECK_VALUES_MOST = 2**24  # 64 MB of int32

log = logging.getLogger(__name__)

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Ready:
    """A model that this rank can serve. engine makes an empty one over its shard, canary proves
    that all ranks compute the same; row is what one takes here; memories: what each rank has;
    opened: this rank's disk for prefixes; system names model and versions; prefixes are rank 0's to
    use; drafts: for which steps there may be some, or why for none; curve: seconds of a forward
    pass by tokens, where there may be; draft_model: rank 0's, if there is one."""

    number: int
    model: ServedModel
    shard: Shard
    need: Need
    row: RowBytes
    memories: list[RankMemory]
    prefixes: PrefixIndex
    opened: Opened
    system: str
    drafts: str
    engine: Callable[[Chooser], Engine]
    canary: Callable[[Tell], None]
    curve: tuple[tuple[int, float], ...] = ()
    draft_model: DraftModel | None = None


class Maker:
    """Of this rank's models, which all have one memory (pool). tell is called with what comes next:
    the watchdog's food."""

    def __init__(self, settings: Settings, link: Link, met: Met, status: Status) -> None:
        self.settings, self.link, self.met = settings, link, met
        self.pool: KvPool | None = None  # when the first is loaded
        self.times = TurnTimes(settings.stall_timeout)
        self._proven = 0  # numbers in the longest message that the link was tried with
        self._status = status
        self._lock = Lock()  # of the folder for prefixes on disk, which all models share
        self._beside = DraftBeside(settings, link, met.memories, status.note)

    @property
    def bundle_most(self) -> int:
        """Bytes of rank 0's longest bundle of messages, for the models that are loaded."""
        tokens = sum(budget.capacity for budget in self.pool.budgets())
        rows = (self.settings.max_batch + IN_FLIGHT) * len(self.pool.budgets())
        return bundle_bytes_most(rows, tokens)

    def first(self, tell: Tell) -> Ready:
        """The model that is there from the start. Raises Mismatch or Unloadable, on every rank
        alike."""
        settings, link, status = self.settings, self.link, self._status
        tell(f"loading on {link.size} ranks")
        shard = load_shard(
            settings.model_dir,
            settings.parallel,
            link,
            settings.context_max,
            tell,
            status.fleet.load,
            settings.trust_remote_code,
            self._beside.memories(FIRST),
            bits_of(settings.kv_bits),
            settings.kv_bits_from,
        )
        self._note(shard)
        tell("waiting for all ranks to load")
        link.share_ints([0])
        tell("checking the link")
        self._check_link(shard)
        draft = at_once(self._beside.load(FIRST, shard, AllAtOnce(), tell))
        tell("measuring the KV cache")
        give_back()  # what was given up on the way would count as used for as long as this runs
        ranks = self._measure(shard, draft)
        need = need_of(shard, ranks)
        spent = 0.0 if settings.kv_budget_gb else SPARE_SHARE
        rooms = [RankRoom(one.caches, max(one.spare, one.caches), spent) for one in ranks]
        most = settings.models_gb and int(settings.models_gb * 1e9)
        self.pool = KvPool(rooms, need, most)
        self.pool.add(FIRST, need)
        budget = self.pool.budget(FIRST)
        if not budget.reach:
            raise Unloadable(
                "no memory left for the KV cache: the smallest rank has room for "
                f"{budget.capacity} tokens; set KV_BUDGET_GB, or use a smaller model or more ranks"
            )
        memories = [part.memory(one.caches) for part, one in zip(need.parts, ranks, strict=True)]
        proving = self._prove(FIRST, shard, need, budget, ranks, memories, self.met.system, tell)
        return replace(at_once(proving), draft_model=draft)

    def another(
        self,
        number: int,
        tell: Tell,
        decoding: Callable[[], int],
        on_loaded: Callable[[tuple[Loaded, ...]], None] = lambda loaded: None,
    ) -> Generator[None, None, Ready]:
        """One more, piece by piece. decoding: rows of other models that wait for each piece, the
        same on every rank. Raises NotLoaded, on every rank alike, and leaves nothing of it then."""
        try:
            return (yield from self._another(number, tell, decoding, on_loaded))
        except (Failed, Mismatch, Unloadable) as error:
            self.pool.remove(number)
            raise NotLoaded(str(error)) from None
        except Exception as error:
            # By the rule of failures: what comes from the model's files all ranks have.
            if not is_shared(error):
                raise
            log.error("a model cannot be loaded", exc_info=error)
            self.pool.remove(number)
            raise NotLoaded(f"{type(error).__name__}: {error}") from None

    def agree(self, ready: Ready, act: Callable[[], object]) -> None:
        """What one rank alone does for a model that all have made ready. Raises NotLoaded, on every
        rank alike, and leaves nothing of it then."""
        if wrong := agree(self.link, act, Exception):
            if ready.opened.disk is not None:
                ready.opened.disk.close()
            self.pool.remove(ready.number)
            raise NotLoaded(wrong)

    def _another(
        self,
        number: int,
        tell: Tell,
        decoding: Callable[[], int],
        on_loaded: Callable[[tuple[Loaded, ...]], None],
    ) -> Generator[None, None, Ready]:
        settings, link = self.settings, self.link
        model, pause_s = settings.models[number], settings.prefill_pause_ms / 1000
        pace = Considerate(pause_s, lambda: decoding() > 0)
        tell("comparing files")
        files = yield from self._compare_files(model, pace)
        shard = yield from load_pieces(
            model.folder,
            settings.parallel,
            link,
            settings.context_max,
            tell,
            on_loaded,
            settings.trust_remote_code,
            self._beside.memories(number),
            bits_of(settings.kv_bits),
            settings.kv_bits_from,
            pace,
        )
        self._note(shard, model.name)
        yield
        draft = yield from self._beside.load(number, shard, pace, tell)
        ranks = self._measure(shard, draft)
        need = need_of(shard, ranks)
        if misfit := self.pool.misfit(need):
            raise Unloadable(misfit)
        self.pool.add(number, need)
        tell("checking the link")
        self._check_link(shard)
        yield
        budget = self.pool.budget(number)
        memories = [
            part.memory(caches) for caches, part in zip(self.pool.caches(), need.parts, strict=True)
        ]
        system = "fp_" + fingerprint(self.met.system, files)
        others = Others(decoding, PrefillPace(pause_s, settings.prefill_step))
        ready = yield from self._prove(
            number, shard, need, budget, ranks, memories, system, tell, others, pace
        )
        return replace(ready, draft_model=draft)

    def let_go(self, number: int) -> None:
        """Of a model that is unloaded."""
        self.pool.remove(number)

    def _note(self, shard: Shard, name: str = "") -> None:
        """What an operator should know of how a model is computed. name: of one of several."""
        tell, ways = self._status.note, shard.last.ways
        of = f"{name}: " if name else ""
        if self.link.size > 1:
            tell(f"{of}the model is split: {shard.arrangement}")
        if ways.slower:
            tell(f"{of}requests of this model are computed {ways}: see the log")
        if ways.unfit:
            tell(f"{of}keys and values are whole, KV_BITS is not used: {ways.unfit}")

    def _with_curve(
        self, ready: Ready, tell: Tell, others: Others | None
    ) -> Generator[None, None, Ready]:
        """The same, with what drafts would cost."""
        if ready.drafts not in DRAFTS:
            return ready
        # The next size takes twice as long at most.
        bearable_s = self.settings.prefill_pause_ms / 2000
        curve = yield from measure_curve(
            ready.shard.model,
            self.link,
            tell,
            lambda: bearable_s if others is not None and others.decoding() else MOST_S,
        )
        return replace(ready, curve=tuple(curve))

    def _compare_files(
        self, model: ServedModel, pace: Considerate
    ) -> Generator[None, None, dict[str, str]]:
        """Before any is read: ranks whose files differ would compute nonsense."""
        files: dict[str, str] = {}

        def look() -> None:
            try:
                files.update(fingerprint_files(model.folder))
            except OSError as error:
                files[f"(rank {self.link.rank})"] = f"unreadable: {error}"

        yield from pace.aside(self.link, look)
        compare_files(model.name, files, self.link)
        return files

    def _check_link(self, shard: Shard) -> None:
        """With a message as long as any of a model, unless it has carried such a one."""
        if (longest := self._longest(shard)) > self._proven:
            check_link(self.link, longest)
            self._proven = longest

    def _longest(self, shard: Shard) -> int:
        """Numbers in the longest message of a model."""
        rows = min(8, self.settings.max_batch)
        return min(rows * self.settings.prefill_step * shard.hidden, LINK_CHECK_VALUES_MOST)

    def _measure(self, shard: Shard, draft: DraftModel | None) -> list[Measured]:
        """draft: this rank's draft model."""
        here = self.met.ranks_here
        caches = self._beside.leaves(kv_memory(self.settings.kv_budget_gb, here), shard, draft)
        weights = shard.weights + (draft.weights if draft else 0)
        return measure(shard, self.link, caches, weights, here)

    def _prove(
        self,
        number: int,
        shard: Shard,
        need: Need,
        budget: KvBudget,
        ranks: list[Measured],
        memories: list[RankMemory],
        system: str,
        tell: Tell,
        others: Others | None = None,
        pace: Pace | None = None,
    ) -> Generator[None, None, Ready]:
        settings, link, model = self.settings, self.link, self.settings.models[number]
        mine = ranks[link.rank]
        log.info(
            "KV memory: room for %d tokens, %d bytes each here, and %d bytes for each request; "
            "keys and values: %s",
            budget.capacity,
            mine.token,
            mine.fixed,
            shard.last.ways.precision,
        )
        reuse = min(one.reuse for one in ranks)
        kept = budget.capacity * settings.prefix_cache_percent // 100
        prefixes = PrefixIndex(
            kept if reuse else 0, reuse == REUSE_CUT, budget.row_cost, budget.precision
        )
        opened = yield from self._open_disk(model, shard, prefixes, tell, pace)
        engine = partial(_make_engine, settings, link, shard)
        longest = self._longest(shard)
        agreed = number == FIRST and settings.restarts > 0  # the same ranks, on the same prompt
        proof = Proof(
            engine, settings, link, shard, longest, self._status, self.times.observe, agreed
        )
        row = RowBytes(mine.fixed, mine.token, mine.whole)
        drafts = may_draft(settings.speculate, shard.last.ways, reuse)
        ready = Ready(
            number, model, shard, need, row, memories, prefixes, opened, system, drafts, engine,
            proof.run,
        )  # fmt: skip
        tell("canary")
        try:
            if others is None:
                proof.run(tell)
            else:
                yield from proof.by_pieces(tell, others)
            return (yield from self._with_curve(ready, tell, others))
        except Exception:
            if opened.disk is not None:
                opened.disk.close()
            raise

    def _open_disk(
        self,
        model: ServedModel,
        shard: Shard,
        prefixes: PrefixIndex,
        tell: Tell,
        pace: Pace | None,
    ) -> Generator[None, None, Opened]:
        """Where prefixes are kept over a restart."""
        settings, link = self.settings, self.link
        if not settings.prefix_disk_gb:
            return Opened()
        opened = Opened(problem="none are kept in memory, for this model or PREFIX_CACHE_PERCENT 0")
        if prefixes.room:
            tell("opening the prefixes on disk")
            opened = yield from open_disk(
                settings, link, shard, tell, model.folder, self._lock, pace
            )
        if opened.problem and not link.rank:
            log.warning("no prefixes on disk: %s", opened.problem)
            self._status.note(f"no prefixes on disk: {opened.problem}")
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
