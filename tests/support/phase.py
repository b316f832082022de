"""A server in another phase for a while, to see what it says then: a real one never goes back."""

import contextlib
from collections.abc import Iterator

from server.observe.status import Status
from server.observe.views import State


@contextlib.contextmanager
def in_phase(status: Status, phase: str) -> Iterator[None]:
    before = status.state
    status.phases.state = State(phase, before.detail)
    try:
        yield
    finally:
        status.phases.state = before
