"""Reads what the engine's side has put into a ticket's queue."""

import queue

from server.protocol.events import Event
from server.scheduler.queue import Ticket


def next_event(ticket: Ticket) -> Event | None:
    """The oldest event that was not read, which must be this choice's; None: there is none."""
    try:
        choice, event = ticket.events.get_nowait()
    except queue.Empty:
        return None
    assert choice == ticket.choice
    return event


def all_events(ticket: Ticket) -> list[tuple[int, Event]]:
    """Every (choice, event) that was not read, of all choices that share the queue."""
    events = []
    while not ticket.events.empty():
        events.append(ticket.events.get_nowait())
    return events
