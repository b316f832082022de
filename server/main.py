"""One rank, from its command line to its end: one OpenAI-compatible endpoint on rank 0.

usage: openai_cluster_server.py [--run-dir DIR] [--run-id ID]

Settings come from the environment: MODEL_DIR (required) and others (protocol/settings_table.py).
scripts/run_openai_cluster_server.sh starts it; by hand, on two local ranks:

    MODEL_DIR=models/X mlx.launch -n 2 --backend ring -- server/openai_cluster_server.py

Rank 0 opens its port before anything else, so that /health can say "loading". Exit codes are in
server/protocol/exit_codes.py.
"""

import argparse
import errno
import logging
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from server.api.routes import App
from server.api.warm_files import Warm, read_warm
from server.lifecycle.file_limit import TooFewFiles, allow_files
from server.lifecycle.lease import watch_lifeline
from server.lifecycle.pidfile import keep_pidfile, remove_pidfile
from server.lifecycle.shutdown import (
    Drainer,
    Leaver,
    Worker,
    block_signals,
    handle_signals,
    signals_end_at_once,
)
from server.lifecycle.watchdog import Watchdog, limit_native
from server.observe.files import Files, open_files
from server.observe.fleet import SILENT_S, Fleet
from server.observe.rank_log import RankLog
from server.observe.recorder import Recorder
from server.observe.status import Status
from server.observe.views import Group, Trouble
from server.protocol.exit_codes import CONFIG, GARBLED, INTERNAL, NOT_JOINED, OK, PEER_LOST
from server.protocol.printable import PrintableFormatter, log_what_python_prints
from server.protocol.requests import Served
from server.protocol.settings import SettingError, Settings, read_settings
from server.scheduler.queue import Line
from server.startup.stages import Stages
from server.transport.http_server import Server

if TYPE_CHECKING:
    from server.wire.link import Link

SLOW_RANK = "a rank takes long to read its code and the model's small files, or has stopped"

log = logging.getLogger("server")


def main() -> None:
    """Sets up what watches over the rank, then lives its life. Never returns."""
    arguments = _parse_arguments()
    rank = int(os.environ.get("MLX_RANK") or 0)
    block_signals()
    rank_log = RankLog(rank)
    rank_log.take_streams()
    _log_as(rank, rank_log)
    try:
        settings = read_settings(os.environ, rank)
        served = Served(settings.model_id, settings.model_aliases)
        warm = read_warm(settings.prefix_warm, served) if rank == 0 else ()
        allow_files()
    except (SettingError, TooFewFiles) as error:
        log.error("ending with code %d: %s", CONFIG, error)
        sys.exit(CONFIG)
    _log_as(rank, rank_log, settings.log_level)
    why = f", restart {settings.restarts} after: {settings.last_failure}" * bool(settings.restarts)
    log.info("start: pid %d, run %s%s", os.getpid(), arguments.run_id or "-", why)

    record = Recorder()
    files = Files()
    if rank == 0:
        files = open_files(settings, arguments.run_id, arguments.run_dir, record)
    status = Status(
        settings.model_id,
        arguments.run_id,
        settings.restarts,
        settings.last_failure,
        fleet=Fleet(min(SILENT_S, settings.stall_timeout / 2)),
        record=record,
        events=files.events,
        points=files.points,
        log_dropped=lambda: rank_log.dropped,
    )
    line = Line(settings.max_batch, settings.queue_max, lambda: status.load.slot_free_s)
    pidfile = _keep_pidfile(arguments, rank, status)

    def on_end() -> None:
        files.close()
        remove_pidfile(pidfile)

    if rank == 0:
        leaver = Drainer(
            on_end, line, status, settings.drain_timeout, files.close, settings.supervised
        )
    else:
        leaver = Worker(on_end, status, settings.drain_timeout)
    watch_lifeline(partial(leaver.leave, PEER_LOST), on_word=leaver.follow)
    watchdog = Watchdog(settings.load_timeout, on_stall=leaver.fail)
    watchdog.start()
    app = App(settings, status, line, files.request_ended)
    if rank == 0:
        _listen(settings, app, leaver)
        status.series.start()
    try:
        tell = Stages(status.phases, watchdog.progress).tell
        link = _join(settings, arguments.run_id, status, tell)
        handle_signals(leaver)
        reason = _live(settings, arguments.run_id, link, tell, app, status, line, watchdog, warm)
    except Exception as error:
        leaver.leave(*_explain(error))
    log.info("left the loop: %s", reason)
    leaver.end(OK)


def _keep_pidfile(arguments: argparse.Namespace, rank: int, status: Status) -> Path | None:
    def tell(problem: str) -> None:
        if problem:
            log.warning("%s; going on without a pid file, trying again", problem)
        else:
            log.info("the pid file is written")
        status.publish(Trouble(problem))

    if arguments.run_dir is None:
        return None
    return keep_pidfile(arguments.run_dir, rank, arguments.run_id, tell)


def _listen(settings: Settings, app: App, leaver: Leaver) -> None:
    try:
        Server(settings.http_host, settings.http_port, app).start()
    except OSError as error:
        hint = "; something else listens there" if error.errno == errno.EADDRINUSE else ""
        leaver.leave(
            CONFIG,
            f"HTTP_HOST={settings.http_host!r} HTTP_PORT={settings.http_port}: cannot listen: "
            f"{error.strerror}{hint}",
        )


def _join(settings: Settings, run_id: str, status: Status, tell: Callable[[str], None]) -> "Link":
    # mlx and mlx-lm take seconds to import; the port is open by now. Then MLX waits for the other
    # ranks in native code, for ever, and no other thread of ours can run meanwhile.
    until = time.monotonic() + settings.join_timeout
    with limit_native(settings.join_timeout), signals_end_at_once():
        from server import rank  # noqa: F401  # its imports are slow, too
        from server.startup import joining

        status.publish(Group(joining.name_backend(os.environ)))
        tell("joining the other ranks")
        _flush_log()
        return joining.join(os.environ, until - time.monotonic(), _say_now)


def _say_now(text: str) -> None:
    log.info("%s", text)
    _flush_log()


def _flush_log() -> None:
    """Before MLX keeps the interpreter to itself: the log's thread cannot run then, either."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def _live(
    settings: Settings,
    run_id: str,
    link: "Link",
    tell: Callable[[str], None],
    app: App,
    status: Status,
    line: Line,
    watchdog: Watchdog,
    warm: tuple[Warm, ...],
) -> str:
    from server import rank
    from server.startup.joining import meet
    from server.startup.pairs import WHAT_TO_DO

    def tell_pair(stage: str, extra_s: float) -> None:
        watchdog.set_limit(settings.handshake_timeout + extra_s)
        tell(stage)

    # All have joined, so all are here; only small files are read until hands are shaken.
    with watchdog.within(settings.handshake_timeout, NOT_JOINED, WHAT_TO_DO):
        pairs = meet(link, os.environ, run_id, tell_pair)
    with watchdog.within(settings.handshake_timeout, NOT_JOINED, SLOW_RANK):
        met = rank.greet(settings, link, pairs, status, tell)
    maker = rank.Maker(settings, link, met, status)
    if link.rank == 0:
        leads = rank.Leads(maker, maker.first(tell), line, app, status)
        watchdog.follow(settings.stall_timeout, maker.times)
        return leads.serve(watchdog, warm)
    worker = rank.Worker(maker, maker.first(tell), status)
    watchdog.follow(settings.stall_timeout, maker.times)
    return worker.serve(watchdog)


def _explain(error: Exception) -> tuple[int, str]:
    """Exit code and reason for what ended the main thread."""
    if isinstance(error, ImportError):
        # The next start would not find it, either; nor do the classes below have to be there.
        log.error("an import failed", exc_info=error)
        return CONFIG, f"a package is missing or broken: {error}"
    from server.startup.handshake import Mismatch
    from server.startup.joining import NotJoined, ToBeMended
    from server.startup.link_errors import explain
    from server.startup.loading import Unloadable
    from server.wire.seal import Garbled

    if isinstance(error, Garbled):
        return GARBLED, str(error)
    if isinstance(error, Mismatch | Unloadable | SettingError):
        return CONFIG, str(error)
    if isinstance(error, NotJoined):
        return NOT_JOINED, str(error)
    if isinstance(error, ToBeMended):
        return INTERNAL, str(error)
    log.error("unexpected error", exc_info=error)
    meaning = explain(str(error))
    if meaning is None:
        return INTERNAL, f"{type(error).__name__}: {error}"
    lost = not meaning.is_own
    return PEER_LOST if lost else INTERNAL, f"{'lost a peer: ' * lost}{error}: {meaning.text}"


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run-dir", type=Path, help="where to write this rank's pid file")
    parser.add_argument("--run-id", default="", help="names the run; scripts check pids by it")
    return parser.parse_args()


def _log_as(rank: int, handler: logging.Handler, level: str = "INFO") -> None:
    """Whole lines, each with the rank: the launcher mixes the ranks' output. All of it printable,
    whatever a client wrote."""
    text = f"%(asctime)s [rank {rank}] %(levelname)s %(message)s"
    handler.setFormatter(PrintableFormatter(text))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    log_what_python_prints(log)
