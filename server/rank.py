"""One rank's life after the entry: join, compare, load, serve in lockstep.

Runs on the main thread of every rank; the only thread that touches MLX. What differs between
rank 0 and a worker is chosen here, once: the director and the chooser.
"""

import logging
from collections.abc import Callable

import mlx.core as mx

from server.director import Director, Spectator
from server.engine import ChoosesForAll, Engine, Follows
from server.handshake import Mismatch, expected_ranks, introduce, shake_hands
from server.link import Link
from server.loading import Shard, load_shard
from server.loop import run_lockstep
from server.mailbox import Mailbox
from server.model_files import fingerprint
from server.prompts import TokenizerPrompts
from server.routes import App, Model
from server.settings import Settings
from server.shutdown import RankZero, Worker
from server.status import Status
from server.tickets import Line
from server.watchdog import Watchdog

log = logging.getLogger(__name__)


def join(env: dict[str, str]) -> Link:
    """Joins the group of ranks. Raises Mismatch when it is not as large as the launcher meant."""
    expected = expected_ranks(env)
    group = mx.distributed.init(strict=expected > 1)
    if group.size() != expected:
        raise Mismatch(f"the launcher started {expected} ranks, but {group.size()} joined")
    return Link(group)


def prepare(
    settings: Settings, link: Link, status: Status, progress: Callable[[str], None]
) -> tuple[Shard, str]:
    """Handshake and load. Returns the shard and the system's fingerprint."""
    progress("handshake")
    introduction = introduce(settings, link)
    status.members = shake_hands(introduction, link)
    log.info("%d ranks agree: %s", link.size, ", ".join(m.host for m in status.members))

    def tell(stage: str) -> None:
        progress(stage)
        status.detail = stage
        log.info("%s", stage)

    shard = load_shard(settings.model_dir, settings.parallel, link, settings.context_max, tell)
    progress("waiting for the other ranks to load")
    link.share_ints([1])
    return shard, "fp_" + fingerprint(introduction["same"])


def lead(
    settings: Settings,
    link: Link,
    shard: Shard,
    line: Line,
    app: App,
    status: Status,
    leaver: RankZero,
    watchdog: Watchdog,
    system_fingerprint: str,
) -> str:
    """Rank 0: serves until told to stop; returns the reason."""
    director = Director(line, status, shard.vocab)
    mailbox = Mailbox(link, director.compose, director.nap_ms)
    chooser = ChoosesForAll(director.row, mailbox.header, director.failed)
    engine = _engine(settings, link, shard, chooser)
    status.context = shard.context
    app.model = Model(
        TokenizerPrompts(shard.tokenizer, shard.vocab),
        shard.context,
        shard.sampling,
        system_fingerprint,
    )
    leaver.stop = director.stop
    status.phase, status.detail = "ok", "serving"
    log.info("ready: %s on %d ranks, http port %d", status.model_id, link.size, settings.http_port)
    return run_lockstep(engine, mailbox, director, watchdog.progress)


def follow(settings: Settings, link: Link, shard: Shard, leaver: Worker, watchdog: Watchdog) -> str:
    """A worker: computes until told to stop; returns the reason."""
    spectator = Spectator()
    mailbox = Mailbox(link, spectator.compose, spectator.nap_ms)
    engine = _engine(settings, link, shard, Follows())
    leaver.serving = True
    return run_lockstep(engine, mailbox, spectator, watchdog.progress)


def _engine(settings: Settings, link: Link, shard: Shard, chooser) -> Engine:
    return Engine(
        shard.model,
        link,
        chooser,
        max_batch=settings.max_batch,
        prefill_step=settings.prefill_step,
        eos=sorted(shard.tokenizer.eos_token_ids),
    )
