"""What a rank knows of itself, for whoever asks: /health, /queue, /cluster, /metrics, the page.

Holds the newest of each view (views.py), and what counts: the record, the events, the series. Those
who write publish views, from threads of their own; HTTP threads look, and wait for nobody.
"""

from collections.abc import Callable

from server.observe.event_log import EventLog
from server.observe.fleet import Fleet
from server.observe.phases import Phases
from server.observe.recorder import Recorder
from server.observe.series import Kept, Series
from server.observe.views import (
    Capacity,
    Formats,
    Group,
    LinkSpeed,
    Load,
    Start,
    State,
    Trouble,
    View,
)


class Status:
    """phases says where this rank is, fleet knows the ranks, record counts what happens, events
    tells what happened, series the last minutes. log_dropped: lines of rank 0's log that were lost
    so far."""

    def __init__(
        self,
        model_id: str,
        run_id: str,
        restarts: int = 0,
        last_failure: str = "",
        *,
        fleet: Fleet | None = None,
        record: Recorder | None = None,
        events: EventLog | None = None,
        points: Kept | None = None,
        log_dropped: Callable[[], int] = lambda: 0,
    ) -> None:
        self.start = Start(model_id, run_id, restarts, last_failure)
        self.phases = Phases()
        self.fleet = fleet or Fleet()
        self.record = record or Recorder()
        self.events = events or EventLog()
        self.log_dropped = log_dropped
        # By type; the last published one each.
        self._published: dict[type, object] = {
            type(view): view for view in (Trouble(), Group(), Capacity(), Load())
        }
        self.series = Series(self.record, lambda: self.load, points or Kept())
        if restarts:
            before = last_failure or "unknown"
            self.note(f"restarted (restart {restarts}); the end before: {before}")
        else:
            self.note("started")

    def publish(self, view: Trouble | Group | Capacity | Formats | Load | LinkSpeed) -> None:
        """Puts a view in the place of the last of its kind. Each kind has one writer."""
        self._published[type(view)] = view

    def note(self, text: str) -> None:
        """Remembers an event. Any thread."""
        self.events.note(text)

    @property
    def state(self) -> State:
        return self.phases.state

    @property
    def load(self) -> Load:
        return self._published[Load]

    def look(self) -> View:
        """Everything that is known now. What it shows as served has been published before: the
        state is read first, and serving begins last."""
        return View(
            start=self.start,
            state=self.phases.state,
            trouble=self._published[Trouble],
            group=self._published[Group],
            ranks=self.fleet.ranks,
            capacity=self._published[Capacity],
            load=self._published[Load],
            link=self._published.get(LinkSpeed),
            formats=self._published.get(Formats),
        )
