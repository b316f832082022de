"""What rank 0 writes beside its log: the run's events and charts, and the request log.

Opened and closed by the thread that starts and the one that ends the rank.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from server.observe.account import Account
from server.observe.event_file import keep_events
from server.observe.event_log import EventLog
from server.observe.recorder import Recorder
from server.observe.request_log import RequestLog
from server.observe.rotating_file import RotatingFile
from server.observe.series import Kept
from server.observe.series_file import keep_points
from server.protocol.settings import Settings

log = logging.getLogger("server")


@dataclass(frozen=True)
class Files:
    """Without a file events are kept in memory, and nobody hears of requests that have ended."""

    events: EventLog = field(default_factory=EventLog)
    points: Kept = Kept()
    request_ended: Callable[[Account], None] = lambda account: None
    opened: tuple[RotatingFile | RequestLog, ...] = ()

    def close(self) -> None:
        """Writes what there is. More than once does no harm."""
        for file in self.opened:
            file.close()


def open_files(settings: Settings, run_id: str, run_dir: Path | None, record: Recorder) -> Files:
    """Those that the settings and the command line ask for. record counts lines that are lost."""
    files = Files()
    if run_dir is not None:
        events, file = keep_events(run_id, run_dir)
        points, series = keep_points(run_id, run_dir)
        files = replace(files, events=events, points=points, opened=(file, series))
    if settings.log_dir is None:
        if settings.log_prompts:
            log.warning("LOG_PROMPTS=1 has no effect without a LOG_DIR: there is no request log")
        return files
    path = settings.log_dir / f"requests-{settings.http_port}.jsonl"
    size = int(settings.log_max_mb * 1e6)
    requests = RequestLog(path, settings.model_id, size, record.line_dropped)
    if settings.log_prompts:
        log.warning("LOG_PROMPTS=1: prompts and answers are written to %s", path)
    return replace(files, request_ended=requests.add, opened=(*files.opened, requests))
