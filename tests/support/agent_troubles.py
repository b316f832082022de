"""What happens to a server while an agent works: steps for an AgentModel, each a text that is said
while something else begins."""

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

from server.lifecycle.shutdown import Drainer
from server.protocol.events import Event
from server.scheduler.queue import Ticket
from tests.support.agent_model import KEY, AgentModel, Step

OCCUPY = "occupies a place"
NAP_S = 0.01
RETRY_S = 1.0  # Retry-After of who is refused


def rank_ends(model: AgentModel, text: str) -> Step:
    """No more than the text is said, as a rank ends; nobody listens for a moment, then the next run
    of the server loads until it has refused somebody."""

    def step(ticket: Ticket) -> Iterator[Event]:
        tokens = model.speak(text, ticket)
        yield from itertools.takewhile(lambda token: token.finish is None, tokens)
        threading.Thread(target=restart, daemon=True).start()

    def restart() -> None:
        front = model.front
        refused = model.refused(503)
        Drainer(lambda: None, front.line, front.status, 0).fail("rank 1 is gone")
        model.begin_again(loading=True)
        # The one that was cut off, and one who comes while it loads.
        model.wait_for(lambda: model.refused(503) > refused + 1)
        model.front.load()

    return step


def line_fills(model: AgentModel, text: str, flag: Path) -> Step:
    """Once the text is said others take every place, and leave when somebody has been refused.
    flag: the file that is there as soon as they have, for a command that waits for it."""

    def step(ticket: Ticket) -> Iterator[Event]:
        threading.Thread(target=fill, args=(len(model.closed),), daemon=True).start()
        return model.speak(text, ticket)

    def fill(closed: int) -> None:
        model.wait_for(lambda: len(model.closed) > closed)
        line, leave = model.front.line, threading.Event()
        model.front.engine.slot_free_s = RETRY_S
        model.aside[OCCUPY] = lambda ticket: _occupy(model, ticket, leave)
        places = line.max_running + line.max_waiting
        for _ in range(places):
            threading.Thread(target=ask, daemon=True).start()
        while line.held() < places:
            leave.wait(NAP_S)
        flag.touch()
        model.wait_for(lambda: model.refused(429) > 0)
        leave.set()

    def ask() -> None:
        body = {"messages": [{"role": "user", "content": OCCUPY}]}
        model.front.ask("POST", "/v1/chat/completions", body, f"Authorization: Bearer {KEY}")

    return step


def little_room(model: AgentModel, text: str, tokens: int) -> Step:
    """As the text is said, the model's context becomes what the prompt has and so many more."""

    def step(ticket: Ticket) -> Iterator[Event]:
        model.front.load(len(ticket.prompt) + tokens)
        return model.speak(text, ticket)

    return step


def _occupy(model: AgentModel, ticket: Ticket, leave: threading.Event) -> Iterator[Event | None]:
    while not leave.is_set():
        yield None
    yield from model.speak(model.thought("") + "Done.", ticket)
